"""Bytes that a save takes, per way of training: ours against entropy, ``torch.save`` and DCP."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.checkpoint.write import write_rank
from cloudshift_lab.sim.bench import gpt, ours, regimes, rivals
from cloudshift_lab.sim.bench.floor import floor_bytes
from cloudshift_lab.sim.bench.regimes import Snapshot, Tensors
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_least, at_most, exactly, median, row
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Blob

POINT = 1.0


class _Scale(NamedTuple):
    """Sizes and steps of the trainings."""

    dense: gpt.Shape
    sparse: gpt.Shape
    wide: gpt.Shape
    text_bytes: int
    long: int
    short: int


_SCALES = {
    "full": _Scale(
        gpt.Shape(layers=4, dim=256, heads=4, vocab=4096, block=64, batch=4),
        gpt.Shape(layers=2, dim=192, heads=4, vocab=16384, block=64, batch=4, classes=256),
        gpt.Shape(layers=6, dim=384, heads=6, vocab=8192, block=64, batch=1),
        3_000_000, 100, 20,
    ),
    "tiny": _Scale(
        gpt.Shape(layers=1, dim=64, heads=2, vocab=512, block=16, batch=2),
        gpt.Shape(layers=1, dim=48, heads=2, vocab=4096, block=16, batch=2, classes=64),
        gpt.Shape(layers=2, dim=128, heads=4, vocab=4096, block=16, batch=1),
        200_000, 4, 3,
    ),
}  # fmt: skip


class Case(NamedTuple):
    """A state to save. ``base`` is what was committed before it, in the same store.

    ``goal``: percent of the raw bytes to be saved, where one is set besides the entropy.
    """

    name: str
    state: Snapshot
    base: Snapshot | None = None
    goal: float | None = None
    note: str = ""


class Weighed(NamedTuple):
    """Bytes of a case: raw, new in our store with all metadata, floor, and the rivals'."""

    raw: int
    new: int
    floor: float
    torch_save: int
    dcp: int
    num_wrong: int


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Train each regime for a little while, save, weigh, restore and compare."""
    scale = _SCALES[size]
    rows: list[Row] = []
    num_wrong = 0
    largest: Tensors = {}
    for case in _cases(scale, say):
        found = weigh(case)
        num_wrong += found.num_wrong
        say(f"{case.name}: {100 * (1 - found.new / found.raw):.1f} % saved")
        rows += _rows(case, found)
        largest = max(largest, case.state.tensors, key=_num_bytes)
    rates = [encode_rate(largest) for _ in range(5)]
    rows += [
        row("tensors that differ after a restore, all cases", num_wrong, "tensors",
            goal=exactly(0)),
        row("raw bytes per second of processor, with hash and codec", median(rates), "GB/s",
            samples=rates, goal=at_least(0.5), full_only=True),
    ]  # fmt: skip
    return tuple(rows)


def _rows(case: Case, found: Weighed) -> list[Row]:
    saved = 100 * (1 - found.new / found.raw)
    above = 100 * (found.new - found.floor) / found.raw
    goal = None if case.goal is None else at_least(case.goal)
    rows = [
        row(f"{case.name}: saved", saved, "%", goal=goal, note=case.note,
            samples=(found.raw, found.new), full_only=True),
        row(f"{case.name}: above the entropy floor", above, "points", goal=at_most(POINT),
            full_only=True),
    ]  # fmt: skip
    if case.base is None:
        rows += [
            row(f"{case.name}: torch.save / raw", found.torch_save / found.raw, "x"),
            row(f"{case.name}: DCP / raw", found.dcp / found.raw, "x"),
        ]
    return rows


def weigh(case: Case) -> Weighed:
    """Save a case after its base in a store of its own, and read it back."""
    store = MemoryStore("memory://codec")
    base = None
    if case.base is not None:
        ours.save(store, case.base.tensors, 1, case.base.leaves)
        base = open_run(store, ours.RUN)
    before = _stored(store)
    ours.save(store, case.state.tensors, 2, case.state.leaves, base=base)
    tensors = case.state.tensors
    found = {name: torch.zeros_like(value) for name, value in tensors.items()}
    ours.restore(open_run(store, ours.RUN), found)
    old = None if case.base is None else ours.stage(case.base.tensors, 1)
    return Weighed(
        raw=_num_bytes(tensors), new=_stored(store) - before,
        floor=floor_bytes(ours.stage(tensors, 2), old), torch_save=_torch_save_bytes(tensors),
        dcp=_dcp_bytes(tensors), num_wrong=ours.num_different(found, tensors),
    )  # fmt: skip


def _stored(store: MemoryStore) -> int:
    return sum(store.size(key) or 0 for key in store.list(""))


def _num_bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _torch_save_bytes(tensors: Tensors) -> int:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.tell()


def _dcp_bytes(tensors: Tensors) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rivals.dcp_save(tensors, Path(folder))
        return sum(path.stat().st_size for path in Path(folder).iterdir())


class _Nowhere(MemoryStore):
    """Takes everything and keeps nothing."""

    def put(self, key: str, data: Blob) -> None:
        del key, data


def encode_rate(tensors: Tensors) -> float:
    """GB of state per second of processor time that hashing and coding take, in one thread."""
    staged = ours.stage(tensors, 1)
    began = time.process_time()
    written = write_rank(_Nowhere(), ours.RUN, staged, generation=ours.GENERATION, threads=1)
    return written.raw_bytes / 1e9 / (time.process_time() - began)


# -- cases ----------------------------------------------------------------------------------------


def _cases(scale: _Scale, say: Say) -> Iterator[Case]:
    data = gpt.corpus(scale.dense.vocab, scale.text_bytes)
    training = regimes.pretraining(scale.dense, data)
    _train(training, scale.long, say, "pre-training")
    yield from _pretraining(training)
    weights = {name: value.clone() for name, value in training.model.state_dict().items()}
    yield from _fine_tuning(_model(scale.dense, weights), scale, data)
    yield from _pure_bf16(scale, weights, data)
    yield from _sparse(scale, say)
    yield from _adapters(scale)


def _pretraining(training: gpt.Training) -> Iterator[Case]:
    start = regimes.snapshot(training)
    yield Case("fp32 AdamW", start)
    yield Case("bf16 + fp32 master", start._replace(tensors=regimes.with_master(start.tensors)))
    yield Case(
        "fp32, moments bf16", start._replace(tensors=regimes.with_half_moments(start.tensors))
    )
    _train(training, 1)
    yield Case("fp32 AdamW, one step later", regimes.snapshot(training), start, 70.0,
               note="the cut-over: the step is replayed, what differs is stored")  # fmt: skip
    _train(training, 9)
    yield Case("fp32 AdamW, 10 steps later", regimes.snapshot(training), start)


def _fine_tuning(model: gpt.GPT, scale: _Scale, data: torch.Tensor) -> Iterator[Case]:
    training = regimes.fine_tuning(model, scale.dense, data)
    published = regimes.half_weights(regimes.snapshot(training).tensors)
    _train(training, scale.short)
    before = regimes.snapshot(training)
    _train(training, 10)
    after = regimes.snapshot(training)
    yield Case("fine-tune fp32, 10 steps later", after, before)
    yield Case(
        "fine-tune, bf16 weights, against what it began from",
        Snapshot(regimes.half_weights(after.tensors), None),
        Snapshot(published, None),
    )


def _pure_bf16(scale: _Scale, weights: Tensors, data: torch.Tensor) -> Iterator[Case]:
    for rate in (3e-4, 1e-5):
        training = regimes.pure_bf16(_model(scale.dense, weights), scale.dense, data, rate)
        _train(training, scale.short)
        start = regimes.snapshot(training)
        if rate == 3e-4:
            yield Case("pure bf16", start)
        _train(training, 1)
        yield Case(f"pure bf16, rate {rate:g}, one step later", regimes.snapshot(training), start)
        _train(training, 9)
        yield Case(f"pure bf16, rate {rate:g}, 10 steps later", regimes.snapshot(training), start)


def _sparse(scale: _Scale, say: Say) -> Iterator[Case]:
    """A large embedding of which a fine-tune sees few rows."""
    everything = gpt.corpus(scale.sparse.vocab, scale.text_bytes)
    training = regimes.pretraining(scale.sparse, everything)
    _train(training, scale.short, say, "a large embedding")
    model = training.model
    assert isinstance(model, gpt.GPT)
    narrow = regimes.fine_tuning(model, scale.sparse, everything[: len(everything) // 20])
    began = Snapshot(dict(regimes.snapshot(narrow).tensors), None)
    _train(narrow, scale.short)
    after = regimes.snapshot(narrow)
    yield Case("fine-tune, sparse embedding", after)
    yield Case("fine-tune, sparse embedding, against what it began from", after, began)


def _adapters(scale: _Scale) -> Iterator[Case]:
    data = gpt.corpus(scale.wide.vocab, scale.text_bytes)
    training = regimes.adapters(gpt.build(scale.wide), scale.wide, data)
    _train(training, 2)
    before = regimes.snapshot(training)
    yield Case("LoRA, first save", before)
    _train(training, 2)
    yield Case("LoRA, later save", regimes.snapshot(training), before, 98.0)


def _model(shape: gpt.Shape, weights: Tensors) -> gpt.GPT:
    model = gpt.build(shape)
    model.load_state_dict(weights)
    return model


def _train(training: gpt.Training, steps: int, say: Say | None = None, what: str = "") -> None:
    for number in range(steps):
        loss = training.step()
        if say is not None and number % 25 == 24:
            say(f"{what}: step {number + 1}, loss {loss:.2f}")
