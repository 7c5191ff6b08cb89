"""Optimizers of every kind go on exactly; what does not fit is named, or kept when asked."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloudshift_lab.checkpoint import Checkpoint, open_checkpoint
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.inventory import ModelTensors, OptimizerTensors
from cloudshift_lab.training.matching import OptimizerRestore, SavedState
from cloudshift_lab.training.restore import Differences
from cloudshift_lab.training.state import TrainingState

from .simulated import committed


@pytest.fixture(autouse=True)
def _same_randomness_afterwards() -> Iterator[None]:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


class Net(nn.Module):
    """Tied weights, a frozen part, a part that is trained now and then, buffers of two kinds."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.norm = nn.BatchNorm1d(width)
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.expert = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.rand(2), persistent=False)

    def forward(self, x_B: torch.Tensor, *, with_expert: bool = False) -> torch.Tensor:
        h = self.base(self.norm(self.embed(x_B)))
        return self.head(h + self.expert(h) if with_expert else h).square().mean()


def matrices(net: Net) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad and p.dim() == 2]


def vectors(net: Net) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad and p.dim() < 2]


def grouped(net: Net) -> list[dict[str, Any]]:
    return [{"params": matrices(net)}, {"params": vectors(net), "weight_decay": 0.0}]


OPTIMIZERS: dict[str, Callable[[Net, float], Any]] = {
    "adamw": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr, foreach=False),
    "adamw-foreach": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr, foreach=True),
    "adamw-fused": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr, fused=True),
    "adamw-amsgrad": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr, amsgrad=True),
    "adamw-tensor-lr": lambda net, lr: torch.optim.AdamW(
        grouped(net), lr=torch.tensor(lr), foreach=False
    ),
    "sgd": lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr),
    "sgd-momentum": lambda net, lr: torch.optim.SGD(grouped(net), lr=lr, momentum=0.9),
    "adafactor": lambda net, lr: torch.optim.Adafactor(grouped(net), lr=lr),
    "nadam": lambda net, lr: torch.optim.NAdam(grouped(net), lr=lr),
    "rmsprop": lambda net, lr: torch.optim.RMSprop(grouped(net), lr=lr, momentum=0.5),
    "lbfgs": lambda net, lr: torch.optim.LBFGS([p for p in net.parameters() if p.requires_grad]),
    "muon+adamw": lambda net, lr: {
        "muon": torch.optim.Muon(matrices(net), lr=lr),
        "adamw": torch.optim.AdamW(vectors(net), lr=lr),
    },
}


class Job:
    """A model with its optimizers, a scheduler, a scaler and data from torch's generator."""

    def __init__(self, kind: str, seed: int, width: int = 4) -> None:
        torch.manual_seed(seed)
        self.net = Net(width)
        built = OPTIMIZERS[kind](self.net, 0.01 * seed)
        self.optimizers = list(built.values()) if isinstance(built, dict) else [built]
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizers[0], 2, 0.5)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0 * seed)
        self.scaler.scale(torch.ones(()))
        self.state = TrainingState(
            self.net, built, {"scheduler": self.scheduler, "scaler": self.scaler},
            rank=0, world_size=1,
        )  # fmt: skip

    def train(self, steps: int, *, with_expert: bool = False) -> list[float]:
        return [self._step(with_expert) for _ in range(steps)]

    def _step(self, with_expert: bool) -> float:
        x_B = torch.randint(7, (5,))
        losses = []

        def closure() -> torch.Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss = self.net(x_B, with_expert=with_expert)
            loss.backward()
            losses.append(loss.item())
            return loss

        for optimizer in self.optimizers:
            optimizer.step(closure)
        self.scheduler.step()
        self.scaler.update(self.scaler.get_scale() * 0.5)
        return losses[-1]

    def save(self) -> Checkpoint:
        return committed([self.state.share(1)])

    def bits(self) -> dict[str, Any]:
        tensors = dict(self.net.state_dict())
        for i, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            tensors |= {f"{i}/{p}/{k}": v for p, s in state["state"].items() for k, v in s.items()}
            tensors |= {f"{i}/groups": state["param_groups"]}
        return {
            **tensors,
            "scheduler": self.scheduler.state_dict(),
            "scale": self.scaler.state_dict(),
        }


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("has_stepped", [False, True])
def test_a_restored_job_goes_on_as_the_one_that_was_saved(kind: str, has_stepped: bool) -> None:
    first = Job(kind, seed=1)
    first.train(3)
    checkpoint = first.save()
    second = Job(kind, seed=2)
    if has_stepped:
        second.train(1, with_expert=True)
    report = second.state.restore(checkpoint)
    assert report.fits and report.randomness == "exact"
    assert equal(second.bits(), first.bits())
    randomness = torch.get_rng_state()
    resumed = second.train(3, with_expert=True)
    torch.set_rng_state(randomness)
    assert resumed == first.train(3, with_expert=True)
    assert equal(second.bits(), first.bits())


def test_states_that_exist_are_filled_in_place() -> None:
    first, second = Job("adamw", seed=1), Job("adamw", seed=2)
    first.train(2)
    second.train(2)
    weight = second.net.embed.weight
    average = second.optimizers[0].state[weight]["exp_avg"]
    second.state.restore(first.save())
    assert second.optimizers[0].state[weight]["exp_avg"] is average
    assert torch.equal(average, first.optimizers[0].state[first.net.embed.weight]["exp_avg"])


def test_a_state_that_the_saved_run_did_not_have_yet_is_removed() -> None:
    first, second = Job("adamw", seed=1), Job("adamw", seed=2)
    first.train(1)
    second.train(1, with_expert=True)
    assert second.net.expert.weight in second.optimizers[0].state
    second.state.restore(first.save())
    assert second.net.expert.weight not in second.optimizers[0].state


def test_a_model_of_another_width_is_refused_with_names_and_both_shapes() -> None:
    first, second = Job("adamw", seed=1), Job("adamw", seed=2, width=5)
    first.train(1)
    before = second.bits()
    with pytest.raises(UsageError) as caught:
        second.state.restore(first.save())
    message = caught.value.message
    assert "model/embed.weight (saved float32[7, 4], built float32[7, 5])" in message
    assert "and 5 more" in message and message.endswith("to keep what differs as built")
    assert equal(second.bits(), before)


def test_what_does_not_fit_keeps_its_built_values_when_asked() -> None:
    first, second = Job("adamw", seed=1), Job("adamw", seed=2)
    first.train(2)
    second.net.expert = nn.Linear(4, 6, bias=False)
    second.net.extra_head = nn.Linear(4, 2, bias=False)
    second.net.base = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    second.optimizers = [torch.optim.AdamW(grouped(second.net), lr=0.5)]
    state = TrainingState(
        second.net, second.optimizers, {"cursor": second.scaler}, rank=0, world_size=1
    )
    built = {name: value.clone() for name, value in second.net.state_dict().items()}
    report = state.restore(first.save(), strict=False)
    assert set(report.missing) == {
        "model/extra_head.weight", "optimizer/base.weight", "optimizer/extra_head.weight",
        "extra/cursor",
    }  # fmt: skip
    assert set(report.unexpected) == {"model/base.bias", "extra/scheduler", "extra/scaler"}
    assert [text.split(" ")[0] for text in report.mismatched] == [
        "model/base.weight", "model/expert.weight",
    ]  # fmt: skip
    assert torch.equal(second.net.embed.weight, first.net.embed.weight)
    for name in ("expert.weight", "extra_head.weight", "base.weight"):
        assert torch.equal(second.net.state_dict()[name], built[name])
    assert second.net.expert.weight not in second.optimizers[0].state
    assert second.optimizers[0].state[second.net.embed.weight]["step"] == 2
    assert not report.fits and "only in the script" in str(report)


def test_another_optimizer_is_refused_and_left_alone_when_asked() -> None:
    first, second = Job("adamw", seed=1), Job("sgd-momentum", seed=2)
    first.train(1)
    checkpoint = first.save()
    with pytest.raises(UsageError, match=r"optimizer \(saved AdamW, built SGD\)"):
        second.state.restore(checkpoint)
    report = second.state.restore(checkpoint, strict=False)
    assert report.mismatched == ("optimizer (saved AdamW, built SGD)",)
    assert second.optimizers[0].param_groups[0]["momentum"] == 0.9
    assert torch.equal(second.net.embed.weight, first.net.embed.weight)


def test_a_parameter_that_changed_its_group_is_named() -> None:
    first, second = Job("adamw", seed=1), Job("adamw", seed=2)
    groups = second.optimizers[0].param_groups
    groups[1]["params"].append(groups[0]["params"].pop())
    with pytest.raises(UsageError, match=r"group 0 \(has or lacks expert\.weight\)"):
        second.state.restore(first.save())


def test_parameters_beside_the_model_are_saved_with_their_values() -> None:
    def job(value: float) -> tuple[nn.Parameter, TrainingState]:
        model, scale = nn.Linear(2, 2), nn.Parameter(torch.full((3,), value))
        optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
        return scale, TrainingState(model, optimizer, {}, rank=0, world_size=1)

    _, saved = job(2.0)
    scale, state = job(3.0)
    state.restore(committed([saved.share(1)]))
    assert scale.tolist() == [2.0] * 3


def test_a_parameter_that_is_not_contiguous_is_filled_through_its_strides() -> None:
    def job(value: float) -> tuple[nn.Module, TrainingState]:
        model = nn.Module()
        model.weight = nn.Parameter((torch.arange(12.0).reshape(3, 4) * value).t())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, TrainingState(model, optimizer, {}, rank=0, world_size=1)

    first, saved = job(1.0)
    second, state = job(0.0)
    state.restore(committed([saved.share(1)]))
    assert torch.equal(first.weight, second.weight)
    assert not second.weight.is_contiguous() and second.weight.shape == (4, 3)


class Quantizing(nn.Linear):
    """Saves something else than it holds, by a hook."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_state_dict_post_hook(_halve)
        self.register_load_state_dict_pre_hook(_double)


def _halve(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].detach() / 2


def _double(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2


def test_what_a_hook_computes_goes_back_through_the_models_own_loading() -> None:
    def job() -> tuple[nn.Module, TrainingState]:
        model = nn.Sequential(Quantizing())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, TrainingState(model, optimizer, {}, rank=0, world_size=1)

    first, saved = job()
    second, state = job()
    saved.share(1)
    with torch.no_grad():
        first[0].weight.fill_(3.0)
    checkpoint = committed([saved.share(2)])
    assert checkpoint.tensor("model/0.weight").tolist() == [[1.5] * 3] * 2
    assert state.restore(checkpoint).fits
    assert torch.equal(second[0].weight, first[0].weight)
    assert torch.equal(second[0].bias, first[0].bias)


def test_weights_that_were_tied_restore_into_a_model_that_unties_them() -> None:
    first, second = Job("sgd", seed=1), Job("sgd", seed=2)
    second.net.head.weight = nn.Parameter(torch.zeros(7, 4))
    state = TrainingState(
        second.net, torch.optim.SGD(second.net.parameters()), {}, rank=0, world_size=1
    )
    state.restore(first.save(), strict=False)
    assert torch.equal(second.net.head.weight, first.net.embed.weight)


class Remembering(nn.Linear):
    """Keeps more than tensors in its ``state_dict``."""

    restored: Any = None

    def get_extra_state(self) -> Any:
        return {"seen": 7, "history": torch.arange(3)}

    def set_extra_state(self, state: Any) -> None:
        self.restored = state


class FirstReleaseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.mid = Remembering(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_of_the_first_release_still_restores(world_size: int) -> None:
    place = Path(__file__).parent / "layout1"
    expected = json.loads((place / "expected.json").read_text())
    key, digest = expected["manifest"]
    checkpoint = open_checkpoint(open_store(f"file://{place}"), "old", key, digest=digest)
    net = FirstReleaseNet()
    net.mid.bias.requires_grad_(False)
    matrices, rest = [net.embed.weight, net.mid.weight], [*net.norm.parameters(), net.mid.bias]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": rest}], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    state = TrainingState(net, optimizer, {"scheduler": scheduler}, rank=0, world_size=world_size)
    assert state.restore(checkpoint).fits
    names = {id(p): name for name, p in net.named_parameters()}
    found = {f"model/{k}": v for k, v in net.state_dict().items() if isinstance(v, torch.Tensor)}
    for param, values in optimizer.state.items():
        found |= {f"optimizer/{names[id(param)]}/{k}": v for k, v in values.items()}
    data = {name: value.detach().numpy().tobytes() for name, value in found.items()}
    assert {n: hashlib.sha256(d).hexdigest() for n, d in data.items()} == expected["tensors"]
    assert [group["lr"] for group in optimizer.param_groups] == expected["lr"]
    assert scheduler.last_epoch == 3
    assert net.mid.restored["seen"] == 7 and net.mid.restored["history"].tolist() == [0, 1, 2]
    assert (torch.rand(1).item() == expected["next_draw"]) == (world_size == 2)


@pytest.mark.parametrize("saved_fused", [True, False])
def test_step_counters_lie_where_the_saved_settings_want_them(*, saved_fused: bool) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(matrices(net), fused=saved_fused)
    net(torch.arange(4)).backward()
    optimizer.step()
    saved = TrainingState(net, optimizer, {}, rank=0, world_size=1)
    checkpoint = SavedState(committed([saved.share(1)]), rank=0, world_size=1)
    other = Net()
    built = torch.optim.AdamW(matrices(other), fused=not saved_fused)
    tensors = OptimizerTensors(built, ModelTensors(other))
    restore = OptimizerRestore(tensors, checkpoint, Differences(), set())
    for param in matrices(other):  # stands in for another device
        torch.utils.swap_tensors(param, nn.Parameter(param.to("meta")))
    restore.prepare()
    places = {state["step"].device.type for state in built.state.values()}
    assert places == {"meta" if saved_fused else "cpu"}
