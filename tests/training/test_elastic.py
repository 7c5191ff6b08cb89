"""Saved on one mesh, restored on another, bit by bit: random models, then real ranks."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from cloudshift_lab.checkpoint import Checkpoint
from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.state import RestoreReport, TrainingState

from .elastic_ranks import Job, opened
from .simulated import as_rank, committed, local, spread

MESHES = [(1,), (2,), (3,), (4,), (2, 2), (1, 3), (2, 3)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
ADAM = ("exp_avg", "exp_avg_sq")


@pytest.fixture(autouse=True)
def _same_randomness_afterwards() -> Iterator[None]:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


@dataclass(frozen=True)
class Described:
    """A parameter of a random model; ``stage`` 0: frozen, 1: never stepped, 2: with state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stage: int


@dataclass(frozen=True)
class World:
    """A mesh of all ranks and how each parameter lies on it; None: an ordinary tensor."""

    mesh: tuple[int, ...]
    placements: tuple[tuple[Placement, ...] | None, ...]

    @property
    def size(self) -> int:
        return math.prod(self.mesh)

    def place(self, index: int, value: torch.Tensor) -> torch.Tensor:
        placements = self.placements[index]
        return value.clone() if placements is None else spread(value, self.mesh, placements)


class Truth:
    """The global values, from which every rank of every world gets its part."""

    def __init__(self, described: Sequence[Described]) -> None:
        draw = torch.Generator().manual_seed(7)
        self.described = described

        def value(d: Described) -> torch.Tensor:
            return torch.randn(d.shape, generator=draw).to(d.dtype)

        self.params = [value(d) for d in described]
        self.states = [{key: value(d) for key in ADAM} for d in described]
        self.buffer = torch.randn(3, generator=draw)

    def build(self, world: World, *, is_blank: bool) -> tuple[nn.Module, torch.optim.AdamW]:
        model = nn.Module()
        for i, param in enumerate(self.params):
            value = world.place(i, torch.zeros_like(param) if is_blank else param)
            model.register_parameter(
                f"p{i}", nn.Parameter(value, requires_grad=self.described[i].stage > 0)
            )
        model.register_buffer("b", self.buffer * (not is_blank))
        model.register_buffer("cache", torch.full((2,), float(is_blank)), persistent=False)
        if self.params:
            model.tied = model.p0
        named = [(d, p) for d, p in zip(self.described, model.parameters(), strict=False)]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for d, p in named if d.stage], "lr": 0.5 if is_blank else 0.01},
                {"params": [p for d, p in named if not d.stage], "weight_decay": 0.3},
            ],
            betas=(0.9, 0.5 if is_blank else 0.95),
        )
        if not is_blank:
            for i, (d, p) in enumerate(named):
                if d.stage == 2:
                    placed = {k: world.place(i, v) for k, v in self.states[i].items()}
                    optimizer.state[p] = {"step": torch.tensor(3.0), **placed}
        return model, optimizer


@st.composite
def worlds(draw: st.DrawFn, described: Sequence[Described]) -> World:
    mesh = draw(st.sampled_from(MESHES))

    def placement(shape: tuple[int, ...]) -> Placement:
        if not shape or draw(st.integers(0, 3)) == 0:
            return Replicate()
        axis = draw(st.integers(0, len(shape) - 1))
        stripes = draw(st.sampled_from([1, 1, 1, 2]))
        return Shard(axis) if stripes == 1 else _StridedShard(axis, split_factor=stripes)

    return World(
        mesh,
        tuple(
            tuple(placement(d.shape) for _ in mesh) if draw(st.integers(0, 3)) else None
            for d in described
        ),
    )


def described() -> st.SearchStrategy[list[Described]]:
    shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
    return st.lists(
        st.builds(Described, shapes, st.sampled_from(DTYPES), st.integers(0, 2)), max_size=5
    )


def save(truth: Truth, world: World) -> Checkpoint:
    shares: list[Share] = []
    for rank in range(world.size):
        with as_rank(rank, world.size):
            model, optimizer = truth.build(world, is_blank=False)
            state = TrainingState(model, optimizer, {}, rank=rank, world_size=world.size)
            shares.append(state.share(1))
    return committed(shares)


def check_restored(
    truth: Truth, world: World, model: nn.Module, optimizer: torch.optim.AdamW
) -> None:
    params = list(model.parameters())
    for i, d in enumerate(truth.described):
        assert same_bits(params[i], world.place(i, truth.params[i]))
        state = optimizer.state.get(params[i], {})
        assert set(state) == ({"step", *ADAM} if d.stage == 2 else set())
        for key in ADAM if d.stage == 2 else ():
            assert same_bits(state[key], world.place(i, truth.states[i][key]))
            assert type(state[key]) is type(params[i].data)
    assert torch.equal(model.b, truth.buffer) and bool((model.cache == 1).all())
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.001]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    a, b = local(ours).detach(), local(theirs)
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_any_mesh_saved_any_other_mesh_restores_bit_by_bit(data: st.DataObject) -> None:
    truth = Truth(data.draw(described()))
    checkpoint = save(truth, data.draw(worlds(truth.described)))
    target = data.draw(worlds(truth.described))
    for rank in range(target.size):
        with as_rank(rank, target.size):
            model, optimizer = truth.build(target, is_blank=True)
            kept = [id(value) for value in (*model.parameters(), *model.buffers())]
            state = TrainingState(model, optimizer, {}, rank=rank, world_size=target.size)
            report = state.restore(checkpoint)
            check_restored(truth, target, model, optimizer)
            assert report.fits
            assert kept == [id(value) for value in (*model.parameters(), *model.buffers())]


def restored(checkpoint: Checkpoint, rank: int, size: int) -> tuple[RestoreReport, float]:
    model = nn.Linear(2, 2)
    state = TrainingState(
        model, torch.optim.SGD(model.parameters()), {}, rank=rank, world_size=size
    )
    return state.restore(checkpoint), torch.rand(1).item() + random.random()


def test_at_another_world_size_each_rank_gets_randomness_of_its_own_and_always_the_same() -> None:
    torch.manual_seed(5)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    checkpoint = committed([TrainingState(model, optimizer, {}, rank=0, world_size=1).share(1)])
    first = [restored(checkpoint, rank, 3) for rank in range(3)]
    again = [restored(checkpoint, rank, 3) for rank in range(3)]
    assert [draw for _, draw in first] == [draw for _, draw in again]
    assert len({draw for _, draw in first}) == 3
    assert {report.randomness for report, _ in first} == {"derived"}
    assert restored(checkpoint, 0, 1)[0].randomness == "exact"


class Average:
    """A moving average that somebody keeps beside the model."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]


def test_a_sharded_tensor_among_the_extras_is_refused_by_name() -> None:
    with as_rank(0, 2):
        model = nn.Linear(2, 2)
        extra = {"ema": Average(spread(torch.ones(4), (2,), [Shard(0)]))}
        optimizer = torch.optim.SGD(model.parameters())
        state = TrainingState(model, optimizer, extra, rank=0, world_size=2)
        with pytest.raises(Unsupported, match="'extra/0/ema/value' is a sharded tensor"):
            state.share(1)


# -- real ranks -----------------------------------------------------------------------------------

Seen = dict[str, list[dict[str, Any]]]


def torchrun(root: Path, world_size: int, *tasks: str) -> Seen:
    """Per task what each rank answered."""
    out = root / f"out-{world_size}"
    out.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(world_size), "-m", "tests.training.elastic_ranks",
        f"file://{root}/store", str(out), *tasks,
    ]  # fmt: skip
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    answered = [out / f"{rank}.json" for rank in range(world_size)]
    assert all(path.exists() for path in answered), done.stderr[-3000:]
    ranks = [json.loads(path.read_text()) for path in answered]
    return {task: [answers[task] for answers in ranks] for task in tasks}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elastic")
    (path / "store").mkdir()
    return path


@pytest.fixture(scope="module")
def four(root: Path) -> Seen:
    return torchrun(root, 4, "save:fsdp2:f", "save:hsdp:h", "save:ddp:d4")


@pytest.fixture(scope="module")
def two(root: Path, four: Seen) -> Seen:
    return torchrun(
        root, 2, "save:ddp:d", "restore:fsdp2:f", "restore:ddp:h", "save:fsdp2+fused:fused",
        "save:fsdp2+sgd:sgd", "save:fsdp2+muon:muon",
    )  # fmt: skip


@pytest.fixture(scope="module")
def three(root: Path, two: Seen) -> Seen:
    return torchrun(root, 3, "restore:fsdp2:d")


RESUMED = [
    ("four", "save:fsdp2:f"), ("four", "save:hsdp:h"), ("four", "save:ddp:d4"),
    ("two", "save:fsdp2+fused:fused"), ("two", "save:fsdp2+sgd:sgd"),
    ("two", "save:fsdp2+muon:muon"),
]  # fmt: skip


@pytest.mark.parametrize(("world", "task"), RESUMED)
def test_the_losses_after_a_restore_are_those_of_a_run_that_was_never_stopped(
    world: str, task: str, request: pytest.FixtureRequest
) -> None:
    for answer in request.getfixturevalue(world)[task]:
        assert answer["restored"] == answer["digests"]
        assert answer["resumed"] == answer["losses"]
        assert answer["ends"][0] == answer["ends"][1] != answer["digests"]


def test_the_plan_of_a_sharded_model_holds_through_its_training(four: Seen, two: Seen) -> None:
    for task in [*four.values(), two["save:fsdp2+fused:fused"], two["save:fsdp2+muon:muon"]]:
        assert all(answer["is_same_plan"] for answer in task)


def test_each_rank_trains_on_data_of_its_own(four: Seen) -> None:
    assert len({answer["losses"][0] for answer in four["save:fsdp2:f"]}) == 4


def digests(seen: Seen, task: str) -> dict[str, str]:
    first, *others = [answer["digests"] for answer in seen[task]]
    assert all(other == first for other in others)
    return first


def test_four_shards_become_two_and_then_one_plain_model(root: Path, four: Seen, two: Seen) -> None:
    saved = digests(four, "save:fsdp2:f")
    assert digests(two, "restore:fsdp2:f") == saved
    with as_rank(0, 1):
        job = Job("plain", seed=4)
        job.state.restore(opened(f"file://{root}/store", "f-fsdp22"))
        assert job.digests() == saved


def test_hybrid_shards_become_replicas_and_one_plain_model(
    root: Path, four: Seen, two: Seen
) -> None:
    saved = digests(four, "save:hsdp:h")
    assert digests(two, "restore:ddp:h") == saved
    with as_rank(0, 1):
        job = Job("plain", seed=4)
        job.state.restore(opened(f"file://{root}/store", "h"))
        assert job.digests() == saved


def test_replicas_become_three_uneven_shards(two: Seen, three: Seen) -> None:
    assert digests(three, "restore:fsdp2:d") == digests(two, "save:ddp:d")


def test_tied_weights_and_replicas_are_staged_once(root: Path, four: Seen) -> None:
    checkpoint = opened(f"file://{root}/store", "h")
    names = checkpoint.names()
    assert "model/head.weight" not in names
    whole = sum(
        math.prod(spec.global_shape) * (8 if spec.dtype == "int64" else 4)
        for spec in map(checkpoint.spec, names)
        if not spec.name.startswith("rng/")
    )
    randomness = 4 * torch.get_rng_state().nbytes
    assert checkpoint.manifest.raw_bytes == whole + randomness
