"""What a save costs training: stall, lost time, memory, bytes; all savers and none, in turns.

Twice: with training on all processors, where whatever a saver computes is taken from it, and with
one processor to spare, as hosts of GPUs have.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.sim.bench import gpt, rivals
from cloudshift_lab.sim.bench.overlapped import Overlapped
from cloudshift_lab.sim.bench.rows import (
    Row,
    Say,
    Size,
    at_least,
    at_most,
    exactly,
    median,
    percentile,
    row,
)

SLACK_BYTES = 256e6
NOTHING_S = 0.001


class _Scale(NamedTuple):
    """How much is measured.

    ``rounds`` at most, ``least_rounds`` at least, none begun after ``budget_s`` seconds; with a
    processor to spare as many, but none after ``spare_s`` seconds more. ``steps`` are looked at
    after each save at least. ``alone``: saves of ours alone in either half, for its stalls, none
    begun after ``alone_s`` seconds of them.
    """

    shape: gpt.Shape
    rounds: int
    least_rounds: int
    budget_s: float
    spare_s: float
    steps: int
    alone: int
    alone_s: float


_SCALES = {
    "full": _Scale(
        gpt.Shape(layers=12, dim=512, heads=8, vocab=10_000, block=128, batch=2),
        6, 2, 40.0, 90.0, 3, 12, 25.0,
    ),
    "tiny": _Scale(
        gpt.Shape(layers=1, dim=64, heads=2, vocab=512, block=16, batch=2),
        2, 1, 30.0, 30.0, 3, 2, 10.0,
    ),
}  # fmt: skip
_LONGEST_S = 120.0
_RESUMED_STEPS = 3


class Saver(Protocol):
    """Anything that saves a state beside or instead of training."""

    @property
    def name(self) -> str: ...

    def forget(self) -> None:
        """Remove earlier saves that this one does not need; not timed."""

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Save, or begin to."""

    def between_steps(self) -> None:
        """Called after every step."""

    @property
    def is_done(self) -> bool:
        """Whether the newest save is durable."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the newest save."""

    def close(self) -> None:
        """Give everything back."""


class Window(NamedTuple):
    """A save and the steps until it was durable; seconds. ``wait_s``: in the optimizer's step."""

    call_s: float
    wait_s: float
    steps_s: tuple[float, ...]

    @property
    def stall_s(self) -> float:
        return self.call_s + self.wait_s

    def lost_s(self, step_s: float) -> float:
        """Training time lost, if a step without a save takes ``step_s``."""
        return self.call_s + sum(self.steps_s) - len(self.steps_s) * step_s


class Measured(NamedTuple):
    """Per round: steps without a save, and per saver its window; the first round apart.

    ``alone``: further saves of ours, followed until they were durable and no longer.
    """

    controls: list[tuple[float, ...]]
    windows: dict[str, list[Window]]
    first: dict[str, Window]
    alone: list[Window]

    def stalls_ms(self, name: str) -> list[float]:
        """Stalls of a saver's saves, milliseconds; of ours also of those alone."""
        alone = self.alone if name == Overlapped.name else []
        return [1000 * window.stall_s for window in (*self.windows[name], *alone)]


class _Bench:
    """One training, and everything that saves it."""

    def __init__(self, size: Size, folder: Path, say: Say) -> None:
        self.scale = _SCALES[size]
        self.say = say
        shape = self.scale.shape
        self.data = gpt.corpus(shape.vocab, 1_000_000)
        model = gpt.build(shape)
        self.training = gpt.Training(model, _adamw(model), self.data, shape)
        self.losses: dict[int, float] = {}
        for _ in range(2):
            self._step()
        places = [folder / name for name in ("torch", "dcp", "async", "shared", "process", "ours")]
        for place in places:
            place.mkdir()
        self.ours = Overlapped(self.training, places[5])
        self.savers: tuple[Saver, ...] = (
            rivals.TorchSave(places[0]), rivals.DcpSave(places[1]), self.ours,
            rivals.DcpAsyncSave(places[2]), rivals.DcpSharedStager(places[3]),
            rivals.DcpProcessSave(places[4]),
        )  # fmt: skip

    def run(self) -> Measured:
        """All savers in turns, with steps without a save before each round."""
        first = {saver.name: self._window(saver) for saver in self.savers}
        return self._rounds(self.savers, self.scale.budget_s)._replace(first=first)

    def run_with_a_spare_processor(self) -> Measured:
        """The same while torch leaves one processor idle; every saver has saved before.

        Without ``dcp.save``, which ours is not compared with, for more rounds of the others.
        """
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))
        self.say(f"with {torch.get_num_threads()} threads")
        savers = tuple(saver for saver in self.savers if saver.name != "dcp.save")
        return self._rounds(savers, self.scale.spare_s)

    def _rounds(self, savers: Sequence[Saver], budget_s: float) -> Measured:
        """Rounds of these savers, then saves of ours alone."""
        began = time.monotonic()
        found = Measured([], {saver.name: [] for saver in savers}, {}, [])
        for number in range(self.scale.rounds):
            late = time.monotonic() - began > budget_s
            if late and number >= self.scale.least_rounds:
                break
            self._round(number, savers, found)
        began = time.monotonic()
        while len(found.alone) < self.scale.alone:
            if time.monotonic() - began > self.scale.alone_s:
                break
            found.alone.append(self._window(self.ours, num_steps=1))
        self.say(f"{len(found.alone)} saves of ours alone")
        return found

    def _round(self, number: int, savers: Sequence[Saver], found: Measured) -> None:
        found.controls.append(self._control())
        turn = number % len(savers)
        for saver in (*savers[turn:], *savers[:turn]):
            found.windows[saver.name].append(self._window(saver))
        self._tell(number, found)

    def _tell(self, number: int, found: Measured) -> None:
        step_s = median(found.controls[-1])
        lost = ", ".join(
            f"{name} {windows[-1].lost_s(step_s):.2f} s" for name, windows in found.windows.items()
        )
        self.say(f"round {number + 1}: a step takes {step_s:.2f} s; lost by {lost}")

    def _step(self) -> float:
        began = time.perf_counter()
        number = self.training.num_steps
        self.losses[number] = self.training.step()
        return time.perf_counter() - began

    def _control(self) -> tuple[float, ...]:
        self._settle()
        return tuple(self._step() for _ in range(self.scale.steps))

    def _settle(self) -> None:
        """Let the disk come to rest, and take a step that does not count."""
        os.sync()
        self._step()

    def _window(self, saver: Saver, num_steps: int | None = None) -> Window:
        """Save, and train on until the save is durable, some steps at least."""
        least = self.scale.steps if num_steps is None else num_steps
        saver.forget()
        self._settle()
        began = time.perf_counter()
        saver.save(gpt.state_of(self.training), self.training.num_steps)
        call_s = time.perf_counter() - began
        steps: list[float] = []
        while len(steps) < least or not saver.is_done:
            began = time.perf_counter()
            self._step()
            saver.between_steps()
            steps.append(time.perf_counter() - began)
            assert sum(steps) < _LONGEST_S or saver.is_done, f"{saver.name} never ends"
        wait_s = sum(self.ours.waits_s[:1]) if saver is self.ours else 0.0
        return Window(call_s, wait_s, tuple(steps))

    def memcpy_s(self) -> list[float]:
        """Copying the state into warm memory while training waits, several times."""
        sources = list(gpt.state_tensors(self.training).values())
        targets = [tensor.clone() for tensor in sources]
        found = []
        for _ in range(5):
            began = time.perf_counter()
            torch._foreach_copy_(targets, sources)
            found.append(time.perf_counter() - began)
        return found

    def num_resumed_wrong(self) -> int:
        """Restore the newest save into a fresh model and train on: losses that differ in a bit."""
        model = gpt.build(self.scale.shape, seed=1)
        training = gpt.Training(model, _adamw(model), self.data, self.scale.shape)
        step = training.num_steps = self.ours.restore(model, training.optimizer)
        while self.training.num_steps < step + _RESUMED_STEPS:
            self._step()
        steps = range(step, step + _RESUMED_STEPS)
        found = np.array([training.step() for _ in steps])
        expected = np.array([self.losses[number] for number in steps])
        return int((found.view(np.uint64) != expected.view(np.uint64)).sum())

    def close(self) -> None:
        for saver in self.savers:
            saver.close()


def _adamw(model: gpt.GPT) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Train, and save in turns with everything there is."""
    with tempfile.TemporaryDirectory() as folder, rivals.group_of_one():
        say("building a GPT")
        bench, threads = _Bench(size, Path(folder), say), torch.get_num_threads()
        try:
            found = bench.run()
            spared = bench.run_with_a_spare_processor()
            return (*_costs(bench, found), *_spared(bench, spared), *_rest(bench))
        finally:
            torch.set_num_threads(threads)
            bench.close()


def _costs(bench: _Bench, found: Measured) -> tuple[Row, ...]:
    """What saves cost where training computes on every processor."""
    return (
        *_stalls(bench, found),
        *_ratios(found, bench.ours.name, ""),
        *_per_saver(found, ""),
        *(
            row(f"{name}: first save, stall", 1000 * window.stall_s, "ms",
                samples=[1000 * window.stall_s],
                note="what starts a process or takes memory; counted nowhere else")
            for name, window in found.first.items()
        ),
        *_without(found, ""),
    )  # fmt: skip


def _spared(bench: _Bench, found: Measured) -> tuple[Row, ...]:
    """What they cost where one processor is idle."""
    prefix = "a processor to spare, "
    return (
        *_ratios(found, bench.ours.name, prefix),
        *_per_saver(found, prefix),
        *_without(found, prefix),
    )


def _stalls(bench: _Bench, found: Measured) -> tuple[Row, ...]:
    stalls = found.stalls_ms(bench.ours.name)
    memcpy = [1000 * seconds for seconds in bench.memcpy_s()]
    return (
        row("ours: stall p50", percentile(stalls, 0.5), "ms", samples=stalls, goal=at_most(5.0),
            full_only=True, note="the call, and the wait for the copy before the optimizer's step"),
        row("ours: stall p99", percentile(stalls, 0.99), "ms", samples=stalls,
            goal=at_most(percentile(memcpy, 0.5)), full_only=True,
            note=f"the goal is one copy of the state; of {len(stalls)} saves"),
        row("copy of the state into warm memory", median(memcpy), "ms", samples=memcpy),
    )  # fmt: skip


def _ratios(found: Measured, ours: str, prefix: str) -> tuple[Row, ...]:
    """Our lost time over each rival's.

    Less than what steps scatter without any save cannot be told from nothing, so ours is at least
    that.
    """
    lost = {name: median(_lost(found, name)) for name in found.windows}
    mine = max(lost[ours], median([abs(each) for each in _noise(found)]))
    return tuple(
        row(f"{prefix}ours: lost training time / {rival}'s",
            mine / max(lost[rival], NOTHING_S), "x", goal=at_most(0.1), full_only=True)
        for rival in lost
        if rival not in (ours, "dcp.save")
    )  # fmt: skip


def _per_saver(found: Measured, prefix: str) -> tuple[Row, ...]:
    rows: list[Row] = []
    for name in found.windows:
        lost, calls = _lost(found, name), found.stalls_ms(name)
        rows.append(row(f"{prefix}{name}: lost training time per save", median(lost), "s",
                        samples=lost))  # fmt: skip
        if name != "ours" or prefix:
            rows.append(row(f"{prefix}{name}: stall p50", median(calls), "ms", samples=calls))
    return tuple(rows)


def _without(found: Measured, prefix: str) -> tuple[Row, ...]:
    steps = [seconds for control in found.controls for seconds in control]
    noise = _noise(found)
    return (
        row(f"{prefix}no save: a step", median(steps), "s", samples=steps),
        row(f"{prefix}no save: scatter of as many steps", median([abs(each) for each in noise]),
            "s", samples=noise, note="what is lost without any save: our loss counts as no less"),
    )  # fmt: skip


def _noise(found: Measured) -> list[float]:
    steps = [seconds for control in found.controls for seconds in control]
    return [sum(control) - len(control) * median(steps) for control in found.controls]


def _lost(found: Measured, name: str) -> list[float]:
    """Per round, against the steps without a save of the same round."""
    pairs = zip(found.windows[name], found.controls, strict=True)
    return [window.lost_s(median(control)) for window, control in pairs]


def _rest(bench: _Bench) -> tuple[Row, ...]:
    mine = bench.ours
    state_bytes = gpt.num_state_bytes(bench.training)
    # The first save also started the saver.
    rates = [state_bytes / 1e9 / max(cpu_s, 0.01) for cpu_s in mine.saver_cpu_s[1:]]
    sizes = tuple(
        row(f"{saver.name}: bytes of a save", saver.stored_bytes, "bytes") for saver in bench.savers
    )
    return (
        *sizes,
        row("ours: raw state per processor second of the saver", median(rates),
            "GB/s", samples=rates, goal=at_least(0.5), full_only=True,
            note=f"reading, hash, codec and writing, niced; state {format_bytes(state_bytes)}"),
        row("ours: extra host memory", mine.extra_bytes, "bytes",
            goal=at_most(1.05 * state_bytes + SLACK_BYTES),
            note="the arena and the most that the saver had besides it"),
        row("ours: losses that differ after a restore", bench.num_resumed_wrong(), "losses",
            goal=exactly(0), note=f"{_RESUMED_STEPS} steps after a restore, compared bit by bit"),
    )  # fmt: skip
