"""Loops that frameworks run: timed, drained and resumed as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.staging import Go, StepReport
from cloudshift_lab.training import Cursor, Drained
from cloudshift_lab.training.callbacks.frameworks import bare, load
from cloudshift_lab.training.callbacks.resuming import Resumption
from cloudshift_lab.training.callbacks.timing import Timing, loss_of
from cloudshift_lab.training.sections import Sections

from .conftest import AroundUs

TOTAL = 10
PARTS = {"data", "forward", "backward", "optimizer"}
Weights = dict[str, torch.Tensor]
Loop = Callable[[Path, int, Callable[[int], None]], Weights]


class Net(nn.Module):
    """Takes what a tokenizer gives; its dropout uses torch's randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(32, 8)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 32)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.drop(self.words(input_ids)))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def samples() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(5)
    texts = torch.randint(32, (16, 7), generator=draw)
    return [{"input_ids": text[:-1], "labels": text[1:]} for text in texts]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def weights_of(model: nn.Module) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def _same_randomness_afterwards() -> Iterator[None]:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


# -- the loops ------------------------------------------------------------------------------------


def huggingface(folder: Path, seed: int, after: Callable[[int], None]) -> Weights:
    """A Trainer; epochs of four batches, two of them in a step."""
    transformers = pytest.importorskip("transformers")
    from cloudshift_lab.training.callbacks.huggingface import CloudshiftCallback

    class Told(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
            after(state.global_step)

    seed_all(seed)
    model = Net()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=TOTAL, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, learning_rate=0.01, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=samples(),
        callbacks=[CloudshiftCallback(), Told()],
    )  # fmt: skip
    trainer.train()
    return weights_of(model)


def accelerated(folder: Path, seed: int, after: Callable[[int], None]) -> Weights:
    """A loop of one's own with the same batches."""
    accelerate = pytest.importorskip("accelerate")
    from cloudshift_lab.training.callbacks.accelerate import AcceleratedSession

    order = accelerate.DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=2, dataloader_config=order
    )
    seed_all(seed)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4)
    loader: Any = DataLoader(samples(), batch_size=4, shuffle=True)  # type: ignore[arg-type]
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    session = AcceleratedSession(accelerator, model=model, optimizer=optimizer, scheduler=scheduler)
    done = session.start_step
    for batch in session.batches(loader, TOTAL):
        after(done)
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        done += accelerator.sync_gradients
        session.end_batch()
    return weights_of(model)


def lightning(folder: Path, seed: int, after: Callable[[int], None]) -> Weights:
    """A Trainer whose data a cursor deals."""
    pl = pytest.importorskip("lightning.pytorch")
    from cloudshift_lab.training.callbacks.lightning import CloudshiftCallback, CursorBatches

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
            after(self.trainer.global_step)
            loss: torch.Tensor = self.net(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [
                {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4), "interval": "step"}
            ]

    seed_all(seed)
    data = samples()
    batches = CursorBatches(Cursor(len(data), seed=3), 4)
    loader: Any = DataLoader(data, batch_sampler=batches)  # type: ignore[arg-type]
    module = Module()
    run = CloudshiftCallback(batches)
    pl.Trainer(
        max_steps=TOTAL, accelerator="cpu", devices=1, callbacks=[run], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, accumulate_grad_batches=2, default_root_dir=folder,
    ).fit(module, loader)  # fmt: skip
    return weights_of(module.net)


FRAMEWORKS = pytest.mark.parametrize("loop", [huggingface, accelerated, lightning])
QUIET = pytest.mark.filterwarnings("default")  # what the frameworks say of each other is theirs


def is_timed(row: StepReport) -> bool:
    """Whether the parts of a step are all there, and not more than it."""
    parts = row.sections or {}
    return set(parts) == PARTS and 0 < sum(parts.values()) <= (row.step_s or 0)


@QUIET
@FRAMEWORKS
@pytest.mark.parametrize("drained_after", [2, 3])
def test_a_run_that_was_drained_goes_on_bit_by_bit_with_its_steps_timed(
    loop: Loop, drained_after: int, around: AroundUs, tmp_path: Path
) -> None:
    whole = loop(tmp_path, 0, lambda step: None)
    rows = around.rows()
    losses = {row.step: row.loss for row in rows}
    assert [row.step for row in rows if not is_timed(row)] == []
    assert sorted(losses) == list(range(1, TOTAL + 1))
    assert around.state().state == "finished"

    def drain(step: int) -> None:
        if step == drained_after - 1:
            around.say(drain=True)

    around.say(go=Go())
    with pytest.raises(Drained) as stopped:
        loop(tmp_path, 0, drain)
    step = stopped.value.step
    assert drained_after <= step < TOTAL
    around.say(go=around.save(step), drain=False)
    resumed = loop(tmp_path, 99, lambda step: None)
    assert {row.step: row.loss for row in around.rows()} == losses
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@QUIET
@FRAMEWORKS
def test_a_run_that_is_over_trains_no_further(loop: Loop, around: AroundUs, tmp_path: Path) -> None:
    whole = loop(tmp_path, 0, lambda step: None)
    around.rows()
    around.say(go=around.save(TOTAL))
    again = loop(tmp_path, 99, lambda step: None)
    assert around.rows() == []
    assert around.state().state == "finished"
    assert all(torch.equal(again[name], whole[name]) for name in whole)


# -- their parts ----------------------------------------------------------------------------------


def test_a_framework_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(UsageError, match=r"pip install 'cloudshift-lab\[huggingface\]'"):
        load("no_such_framework", "huggingface")


def test_the_optimizer_within_a_wrapper_is_found() -> None:
    class Wrapped:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    real = torch.optim.SGD(nn.Linear(1, 1).parameters())
    assert bare(Wrapped(Wrapped(real))) is real
    assert bare(real) is real


@pytest.mark.parametrize(
    ("output", "loss"),
    [
        (torch.tensor(2.0), 2.0),
        (torch.tensor([2.0]), 2.0),
        ({"loss": torch.tensor(2.0), "logits": torch.zeros(3)}, 2.0),
        ((torch.tensor(2.0), torch.zeros(3)), 2.0),
        ({"logits": torch.zeros(3)}, None),
        (torch.zeros(3), None),
        (None, None),
        ((), None),
    ],
)  # fmt: skip
def test_the_loss_is_found_where_models_put_it(output: object, loss: float | None) -> None:
    found = loss_of(output)
    assert (None if found is None else found.item()) == loss


def test_batches_of_one_step_are_one_loss_and_their_tokens_add_up() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters())
    timing = Timing(Sections(), model, optimizer)
    timing.begin()
    first, second = (
        {name: value[None] for name, value in sample.items()} for sample in samples()[:2]
    )
    losses = [model(**batch)["loss"].item() for batch in (first, second)]
    loss = timing.loss()
    assert loss is not None and loss.item() == pytest.approx(sum(losses) / 2)
    assert timing.tokens == 12
    model.eval()
    model(**first)
    assert timing.tokens == 12
    timing.begin()
    assert (timing.loss(), timing.tokens) == (None, None)
    timing.close()
    model.train()
    model(**first)
    assert timing.tokens is None


class Led:
    """A loader that remembers where it was led."""

    def __init__(self, num_batches: int) -> None:
        self._num_batches = num_batches
        self.skip_batches = 0
        self._sampler: Any = self
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def get_sampler(self) -> Any:
        return self._sampler

    def set_sampler(self, sampler: Any) -> None:
        self._sampler = sampler


@pytest.mark.parametrize(
    ("done", "epoch", "skipped"), [(1, 0, 2), (2, 0, 4), (3, 1, 0), (7, 2, 2), (9, 3, 0)]
)
def test_a_loader_is_led_to_the_epoch_and_past_its_batches(
    done: int, epoch: int, skipped: int
) -> None:
    loader = Led(5)
    place = Resumption(loader, start_step=done, total=20, accumulate=2)
    place.begin_epoch()
    assert (loader.epochs, loader.skip_batches) == ([epoch], skipped)
    place.begin_epoch()
    loader.get_sampler().set_epoch(1)
    assert (loader.epochs, loader.skip_batches) == ([epoch, epoch + 1], 0)


def test_a_loader_of_a_fresh_run_is_left_alone() -> None:
    loader = Led(5)
    place = Resumption(loader, start_step=0, total=20, accumulate=2)
    place.begin_epoch()
    assert (loader.get_sampler(), loader.epochs) == (loader, [])


def test_randomness_is_put_back_once_at_the_first_batch_that_counts() -> None:
    loader = Led(5)
    torch.manual_seed(1)
    place = Resumption(loader, start_step=1, total=20, accumulate=1)
    expected = torch.rand(3)
    place.begin_epoch()
    torch.rand(17)
    place.begin_step()
    assert torch.equal(torch.rand(3), expected)
    later = torch.get_rng_state()
    place.begin_step()
    assert torch.equal(torch.get_rng_state(), later)


def test_a_loader_that_cannot_go_on_is_refused_only_when_it_has_to() -> None:
    loader: Any = DataLoader(samples(), batch_size=4)  # type: ignore[arg-type]
    Resumption(loader, start_step=0, total=20, accumulate=1)
    with pytest.raises(UsageError, match=r"let accelerator\.prepare"):
        Resumption(loader, start_step=3, total=20, accumulate=1)
