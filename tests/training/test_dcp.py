"""DCP on our store: save, load and async_save unchanged, any world size, no pickle in the store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cloudshift_lab.checkpoint import open_run, verify
from cloudshift_lab.core.errors import Conflict
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training import stager as stager_module
from cloudshift_lab.training.dcp import (
    ArenaStager,
    CasStorageReader,
    CasStorageWriter,
    SafeLoadPlanner,
    SafeSavePlanner,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",
)
RANKS = Path(__file__).with_name("dcp_ranks.py")


class Tied(nn.Module):
    """A small model with tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(131, 16)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 131, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.wte(x)))


def trained(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randint(0, 131, (8,))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def odd_state() -> dict[str, Any]:
    """Every sort of leaf that a state can have."""
    generator = torch.Generator().manual_seed(3)
    return {
        "bf16": torch.randn(5, 3).bfloat16(),
        "fp8": torch.randn(9).to(torch.float8_e4m3fn),
        "fp8b": torch.randn(9).to(torch.float8_e5m2),
        "complex": torch.randn(4, dtype=torch.complex64),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "bools": torch.tensor([True, False]),
        "strange": torch.tensor([float("nan"), -0.0, float("inf")]),
        "slice": torch.arange(24).reshape(4, 6)[:, 1:4],
        "list": [torch.ones(2), 3, {"deep": torch.zeros(1)}],
        "tuple": ("MT19937", np.arange(4, dtype=np.uint32), torch.arange(3), 2.5),
        "generator": generator.get_state(),
        "python": random.Random(3).getstate(),
        "plain": {"a": None, "inf": float("inf"), "big": 2**70, "bytes": b"\x80\x04", "s": "ß"},
        "ints": [1, 2, 3],
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        raw_a, raw_b = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_a, raw_b)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and (a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


def blank(value: Any) -> Any:
    """The same structure with other content, as a fresh process would build it."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blank(item) for item in value]
    return None


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def stored_bytes(url: str) -> Iterator[bytes]:
    for path in Path(url.removeprefix("file://")).rglob("*"):
        if path.is_file():
            yield path.read_bytes()


@pytest.mark.parametrize("ours", [False, True])
def test_a_state_with_every_sort_of_leaf_comes_back_exactly(url: str, ours: bool) -> None:
    state = odd_state()
    save_planner = SafeSavePlanner() if ours else None
    dcp.save(state, storage_writer=CasStorageWriter(url, "odd", step=5), planner=save_planner)
    loaded = blank(state)
    dcp.load(
        loaded, storage_reader=CasStorageReader(url, "odd"),
        planner=SafeLoadPlanner() if ours else None,
    )  # fmt: skip
    assert same(loaded, state)
    store = open_store(url)
    found = open_run(store, "odd")
    assert verify(store, "odd", found.manifest_key, found.manifest_digest).ok


def test_nothing_in_the_store_is_a_pickle(url: str) -> None:
    dcp.save(odd_state(), storage_writer=CasStorageWriter(url, "odd"))
    held = list(stored_bytes(url))
    assert len(held) > 5
    assert not any(b"PK\x03\x04" in data or b"ctorch" in data for data in held)


def test_model_and_optimizer_resume_bitwise_and_a_second_step_writes_only_what_changed(
    url: str,
) -> None:
    model, optimizer = trained()
    for step in (1, 2):
        sd_model, sd_optim = get_state_dict(model, optimizer)
        state = {"model": sd_model, "optim": sd_optim, "frozen": torch.arange(600_000)}
        dcp.save(state, storage_writer=CasStorageWriter(url, "run", step=step))
        torch.manual_seed(step)
        train(model, optimizer)
    commits = RunLog(open_store(url), "run").sync().commits
    assert [c.step for c in commits] == [1, 2]
    packs = [set(open_run(open_store(url), "run", s).packs()) for s in (1, 2)]
    assert packs[0] & packs[1]
    fresh, fresh_optimizer = trained(seed=9)
    sd_model, sd_optim = get_state_dict(fresh, fresh_optimizer)
    wanted = {"model": sd_model, "optim": sd_optim}
    dcp.load(wanted, storage_reader=CasStorageReader(url, "run", step=2))
    set_state_dict(
        fresh, fresh_optimizer, model_state_dict=wanted["model"], optim_state_dict=wanted["optim"]
    )
    torch.manual_seed(step)
    train(fresh, fresh_optimizer)
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert same(fresh_optimizer.state_dict(), optimizer.state_dict())


def test_tied_weights_are_stored_once(url: str) -> None:
    model, _ = trained()
    dcp.save({"model": model.state_dict()}, storage_writer=CasStorageWriter(url, "tied"))
    checkpoint = open_run(open_store(url), "tied")
    ids = [c.id for c in checkpoint.locations()]
    assert len(ids) - len(set(ids)) >= 1
    assert {"model.wte.weight", "model.head.weight"} <= set(checkpoint.names())


def test_the_step_comes_from_the_checkpoint_id_or_follows_the_newest(url: str) -> None:
    writer = CasStorageWriter(url, "run")
    dcp.save({"x": torch.ones(2)}, checkpoint_id="run/step-7", storage_writer=writer)
    dcp.save({"x": torch.ones(2) * 2}, storage_writer=CasStorageWriter(url, "run"))
    assert [c.step for c in RunLog(open_store(url), "run").sync().commits] == [7, 8]
    wanted = {"x": torch.zeros(2)}
    dcp.load(wanted, checkpoint_id="step-7", storage_reader=CasStorageReader(url, "run"))
    assert wanted["x"].tolist() == [1, 1]


def failure(excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    error = excinfo.value
    assert isinstance(error, CheckpointException)
    return str(next(iter(error.failures.values()))[0])


def test_a_step_that_exists_is_refused_before_anything_is_written(url: str) -> None:
    dcp.save({"x": torch.ones(2)}, storage_writer=CasStorageWriter(url, "run", step=4))
    before = len(list(stored_bytes(url)))
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"x": torch.ones(3)}, storage_writer=CasStorageWriter(url, "run", step=4))
    assert "committed step 4 already" in failure(caught)
    assert len(list(stored_bytes(url))) == before + 1  # the second writer's word that it owns it


def test_a_leaf_that_json_cannot_hold_is_named_by_its_key_path(url: str) -> None:
    state = {"model": {"w": torch.ones(2)}, "extra": {"sampler": {"thing": object()}}}
    with pytest.raises(CheckpointException) as caught:
        dcp.save(state, storage_writer=CasStorageWriter(url, "run"))
    assert "extra.sampler.thing is a object" in failure(caught)
    arrays = {"a": np.array([object()])}
    with pytest.raises(CheckpointException) as caught:
        dcp.save(arrays, storage_writer=CasStorageWriter(url, "run"))
    assert "a is an array of Python objects" in failure(caught)
    assert RunLog(open_store(url), "run").sync().commits == ()


class Streams(DefaultSavePlanner):
    """A planner that makes pickled streams of its own."""

    def transform_object(self, write_item: Any, object: Any) -> Any:  # noqa: A002
        return super().transform_object(write_item, object)


def test_a_planner_with_its_own_streams_is_asked_to_give_way(url: str) -> None:
    with pytest.raises(CheckpointException) as caught:
        dcp.save(
            {"x": torch.ones(1), "n": 3}, storage_writer=CasStorageWriter(url, "run"),
            planner=Streams(),
        )  # fmt: skip
    assert "pass planner=SafeSavePlanner()" in failure(caught)


def test_two_processes_with_one_run_id_the_older_is_fenced(url: str) -> None:
    older, newer = CasStorageWriter(url, "run"), CasStorageWriter(url, "run")
    dcp.save({"x": torch.ones(1)}, storage_writer=older)
    dcp.save({"x": torch.ones(2)}, storage_writer=newer)
    with pytest.raises(CheckpointException) as caught:
        dcp.save({"x": torch.ones(3)}, storage_writer=older)
    assert "another process took run 'run' over" in failure(caught)


def test_a_mismatch_is_refused_with_names_and_strict_false_takes_what_fits(url: str) -> None:
    saved = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(4), "n": 5}
    dcp.save(saved, storage_writer=CasStorageWriter(url, "run"))

    def wanted() -> dict[str, Any]:
        return {
            "a": torch.zeros(2), "b": torch.zeros(9), "c": torch.zeros(4, dtype=torch.int64),
            "d": torch.zeros(1),
        }  # fmt: skip

    with pytest.raises(CheckpointException) as caught:
        dcp.load(wanted(), storage_reader=CasStorageReader(url, "run"), planner=SafeLoadPlanner())
    message = failure(caught)
    assert "1 not in the checkpoint (d)" in message
    assert "b: float32[9] here, float32[3] in the checkpoint" in message
    assert "c: int64[4] here" in message and "strict=False" in message
    state, planner = wanted(), SafeLoadPlanner(strict=False)
    dcp.load(state, storage_reader=CasStorageReader(url, "run"), planner=planner)
    assert state["a"].tolist() == [1, 1] and state["b"].tolist() == [0] * 9
    assert (planner.report.missing, planner.report.unexpected) == (("d",), ("n",))
    assert set(planner.report.differing) == {"b", "c"}


def test_a_flipped_bit_is_never_loaded(url: str) -> None:
    dcp.save({"x": torch.randn(5000)}, storage_writer=CasStorageWriter(url, "run"))
    pack = next(Path(url.removeprefix("file://")).rglob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(bytes(data))
    with pytest.raises(CheckpointException) as caught:
        dcp.load({"x": torch.zeros(5000)}, storage_reader=CasStorageReader(url, "run"))
    assert "differs" in failure(caught) or "damaged" in failure(caught)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_cached_plans_work_with_our_planner_and_are_refused_with_dcps(url: str) -> None:
    for planner in (SafeSavePlanner, DefaultSavePlanner):
        run = planner.__name__
        dcp.save(
            {"x": torch.ones(2), "n": 1}, storage_writer=CasStorageWriter(url, run),
            planner=planner(enable_plan_caching=True),
        )  # fmt: skip
        again: dict[str, Any] = {
            "state_dict": {"x": torch.ones(2) * 2, "n": 2},
            "storage_writer": CasStorageWriter(url, run),
            "planner": planner(enable_plan_caching=True),
        }
        if planner is DefaultSavePlanner:
            with pytest.raises(CheckpointException) as caught:
                dcp.save(**again)
            assert "SafeSavePlanner(enable_plan_caching=True)" in failure(caught)
        else:
            dcp.save(**again)
            wanted = {"x": torch.zeros(2), "n": 0}
            dcp.load(wanted, storage_reader=CasStorageReader(url, run))
            assert (wanted["x"].tolist(), wanted["n"]) == ([2, 2], 2)


def test_ranks_that_would_not_coordinate_are_refused(url: str) -> None:
    with pytest.raises(Exception, match="use_collectives=False"):
        dcp.save(
            {"x": torch.ones(1)}, storage_writer=CasStorageWriter(url, "run"),
            use_collectives=False,
        )  # fmt: skip


# -- asynchronous -------------------------------------------------------------------------------


def test_async_save_holds_the_state_of_the_moment_of_the_call(url: str) -> None:
    model, optimizer = trained()
    stager = ArenaStager(optimizer)
    for step in (1, 2, 3):
        state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": step}
        expected = {k: v.clone() for k, v in model.state_dict().items()}
        response = dcp.async_save(
            state, storage_writer=CasStorageWriter(url, "run", step=step), async_stager=stager
        )
        train(model, optimizer)
        response.upload_completion.result()
        wanted = {"model": blank(model.state_dict()), "step": 0}
        dcp.load(wanted, storage_reader=CasStorageReader(url, "run"))
        assert same(dict(wanted["model"]), dict(expected)) and wanted["step"] == step
    stager.close()


def test_a_copy_that_was_torn_is_not_given_to_the_save_and_later_ones_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, optimizer = trained()
    stager = ArenaStager(optimizer)
    go = threading.Event()
    original = stager_module._copy

    def copy(*args: Any) -> None:
        assert threading.current_thread() is threading.main_thread() or go.wait(60)
        original(*args)

    monkeypatch.setattr(stager_module, "_copy", copy)
    staging = stager.stage({"model": model.state_dict()})
    assert isinstance(staging, Future)
    model.wte.weight.data.mul_(2.0)
    go.set()
    with pytest.raises(Conflict, match=r"'model\.wte\.weight' changed.*save again"):
        staging.result()
    train(model, optimizer)
    again = stager.stage({"model": model.state_dict()})
    assert isinstance(again, dict)
    assert same(dict(again["model"]), dict(model.state_dict()))
    stager.close()


def test_the_stager_takes_its_memory_once_and_never_overwrites_what_a_save_still_reads() -> None:
    stager = ArenaStager()
    source = {"w": torch.zeros(1000), "n": {"list": [1, 2]}}
    first = stager.stage(source)
    assert isinstance(first, dict)
    address = first["w"].data_ptr()
    source["w"] += 1
    second = stager.stage(source)
    assert isinstance(second, dict)
    assert second["w"].data_ptr() != address
    assert first["w"].sum() == 0 and second["w"].sum() == 1000
    address = second["w"].data_ptr()
    del first, second
    third = stager.stage(source)
    assert isinstance(third, dict) and third["w"].data_ptr() == address
    source["n"]["list"].append(3)
    assert third["n"] == {"list": [1, 2]}
    stager.close()


def test_async_save_with_dcps_own_stager_works_too(url: str) -> None:
    future = dcp.async_save({"x": torch.ones(3)}, storage_writer=CasStorageWriter(url, "run"))
    future.result()
    wanted = {"x": torch.zeros(3)}
    dcp.load(wanted, storage_reader=CasStorageReader(url, "run"))
    assert wanted["x"].tolist() == [1, 1, 1]


# -- several ranks ------------------------------------------------------------------------------


def ranks(count: int, *arguments: str) -> str:
    """Run the script of many ranks under torchrun."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}",
            "--standalone", str(RANKS), *arguments,
        ],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


def test_fsdp2_saves_at_three_ranks_and_loads_at_two_and_at_one_bitwise(
    url: str, tmp_path: Path
) -> None:
    ranks(3, "save", "fsdp2", url)
    ranks(2, "check", "fsdp2", url)
    ranks(2, "check", "ddp", url)
    ranks(1, "check", "plain", url)
    checkpoint = open_run(open_store(url), "ranks")
    assert checkpoint.world_size == 3 and checkpoint.coverage == "complete"


def test_the_process_checkpointer_takes_our_writer_and_stager(url: str) -> None:
    ranks(2, "process", "fsdp2", url)
    assert [c.step for c in RunLog(open_store(url), "ranks").sync().commits] == [0, 1]


def test_a_rank_that_fails_leaves_no_step_and_the_next_save_works(url: str) -> None:
    assert "refused on both" in ranks(2, "fail", "ddp", url)
    assert [c.step for c in RunLog(open_store(url), "ranks").sync().commits] == [1]


def test_a_copy_torn_on_one_rank_fails_the_save_on_all_and_nobody_waits(tmp_path: Path) -> None:
    assert "refused on 2" in ranks(2, "torn", "ddp", f"file://{tmp_path}/store")
