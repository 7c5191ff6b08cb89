"""Restore from a store far away (simulated): ours against DCP's FsspecReader."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from cloudshift_lab.checkpoint.reader import open_run
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.sim.bench import far, gpt, ours, rivals
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_least, at_most, exactly, median, row

LATENCY_S = 0.03
BYTES_PER_S = 100e6
AHEAD = {"5 MiB": 5 * 2**20, "50 MiB": 50 * 2**20}
_SHAPES = {
    "full": gpt.Shape(layers=6, dim=384, heads=6, vocab=4096, block=128, batch=4),
    "tiny": gpt.Shape(layers=1, dim=128, heads=2, vocab=1024, block=32, batch=2),
}
_REPEATS = {"full": 3, "tiny": 1}


class Try(NamedTuple):
    """One restore: seconds, requests, bytes that travelled, tensors that came back wrong."""

    seconds: float
    num_requests: int
    num_bytes: int
    num_wrong: int


class Scene:
    """One trained state, saved both ways into memory, and the way there."""

    def __init__(self, size: Size) -> None:
        shape = _SHAPES[size]
        model = gpt.build(shape)
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
        training = gpt.Training(model, optimizer, gpt.corpus(shape.vocab, 500_000), shape)
        for _ in range(3):
            training.step()
        self._tensors = gpt.state_tensors(training)
        self._state = gpt.state_of(training)
        self.num_bytes = gpt.num_state_bytes(training)
        self.link = far.Link(LATENCY_S, BYTES_PER_S)
        self.store = far.FarStore(self.link)
        self.stored_bytes = ours.save(self.store, self._tensors, 3).stored_bytes
        self._objects = _saved_by_dcp(self._state)
        self.stored_by_dcp = sum(map(len, self._objects.values()))

    def ours(self) -> Try:
        """Open the newest committed step and read it into tensors that are there."""
        found = {name: torch.zeros_like(tensor) for name, tensor in self._tensors.items()}
        seconds = self._timed(lambda: ours.restore(open_run(self.store, ours.RUN), found))
        return self._try(seconds, ours.num_different(found, self._tensors))

    def dcp(self, ahead: int) -> Try:
        """``dcp.load`` into a state dictionary that is there, reading ``ahead`` bytes ahead."""
        far.register()
        found = tree_map(_zeroed, self._state)

        def load() -> None:
            reader = rivals.FsspecReader(
                f"{far.PROTOCOL}://dcp", objects=self._objects, link=self.link, block_size=ahead
            )
            rivals.dcp_load(found, reader)

        seconds = self._timed(load)
        return self._try(seconds, ours.num_different(_numbered(found), _numbered(self._state)))

    def _timed(self, load: Callable[[], None]) -> float:
        self.link.reset()
        began = time.perf_counter()
        load()
        return time.perf_counter() - began

    def _try(self, seconds: float, num_wrong: int) -> Try:
        return Try(seconds, self.link.num_requests, self.link.num_bytes, num_wrong)


def _zeroed(value: object) -> object:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _numbered(state: object) -> dict[str, torch.Tensor]:
    leaves = tree_leaves(state)
    return {str(n): leaf for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}


def _saved_by_dcp(state: dict[str, object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        rivals.dcp_save(state, Path(folder))
        return {f"dcp/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Restore in turns, ours and DCP's, and compare the medians."""
    say("training and saving a small GPT")
    scene = Scene(size)
    mine: list[Try] = []
    theirs: dict[str, list[Try]] = {name: [] for name in AHEAD}
    for number in range(_REPEATS[size]):
        for name, ahead in AHEAD.items():
            theirs[name].append(scene.dcp(ahead))
            say(f"{number + 1}: DCP, {name} ahead: {theirs[name][-1].seconds:.2f} s")
        mine += [scene.ours(), scene.ours()]
        say(f"{number + 1}: ours: {mine[-2].seconds:.2f} s, {mine[-1].seconds:.2f} s")
    return _rows(scene, mine, theirs)


def _rows(scene: Scene, mine: list[Try], theirs: dict[str, list[Try]]) -> tuple[Row, ...]:
    seconds = [each.seconds for each in mine]
    what = (
        f"{format_bytes(scene.num_bytes)} of fp32 state, store simulated: 30 ms a request, "
        "100 MB/s a connection"
    )
    rows = [
        row("ours: restore", median(seconds), "s", samples=seconds, note=what),
        row("ours: requests", mine[-1].num_requests, "requests"),
        row(
            "ours: bytes read / stored", mine[-1].num_bytes / scene.stored_bytes, "x",
            samples=[each.num_bytes / scene.stored_bytes for each in mine], goal=at_most(1.05),
        ),
        row("ours: tensors that differ", sum(e.num_wrong for e in mine), "tensors",
            goal=exactly(0)),
    ]  # fmt: skip
    for name, tries in theirs.items():
        slow = [each.seconds for each in tries]
        rows += [
            row(f"DCP FsspecReader, {name} ahead: restore", median(slow), "s", samples=slow),
            row(f"DCP FsspecReader, {name} ahead: requests", tries[-1].num_requests, "requests"),
            row(f"DCP FsspecReader, {name} ahead: bytes read / stored",
                tries[-1].num_bytes / scene.stored_by_dcp, "x"),
            row(f"DCP FsspecReader, {name} ahead: tensors that differ",
                sum(e.num_wrong for e in tries), "tensors"),
            row(f"ours is faster than DCP with {name} ahead", median(slow) / median(seconds), "x",
                samples=[a / b for a in slow for b in seconds], goal=at_least(8.0), full_only=True),
        ]  # fmt: skip
    return tuple(rows)
