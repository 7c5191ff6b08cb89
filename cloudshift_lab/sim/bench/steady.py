"""What a session costs a training loop at every step while nothing is saved, moved or healed.

The loop times four parts of its step and reports it to a process that listens as an agent does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import (
    CONTROL_FILE,
    JOB_ENV,
    NODE_DIR_ENV,
    ROWS_SOCKET,
    Control,
    Go,
    replace_file,
)
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.sim.bench import gpt
from cloudshift_lab.sim.bench.rows import Row, Say, Size, at_most, median, row
from cloudshift_lab.training import Session

PARTS = ("data", "forward", "backward", "optimizer")
_NEVER = "1000000"
_LISTENS_WITHIN_S = 60.0
_LISTENER = """
import sys
from pathlib import Path
from cloudshift_lab.agent.rows import RowReceiver
receiver = RowReceiver(Path(sys.argv[1]), lambda rows: None)
sys.stdin.read()
receiver.close()
"""


class _Scale(NamedTuple):
    """``rounds`` of ``steps`` with a session and as many without.

    ``calls`` of what is timed alone make one of its samples.
    """

    shape: gpt.Shape
    rounds: int
    steps: int
    calls: int

    @property
    def total(self) -> int:
        """Steps of the session: one round goes before those that count."""
        return (self.rounds + 1) * self.steps + _NUM_SAMPLES * self.calls


_NUM_SAMPLES = 20
_SCALES = {
    "full": _Scale(gpt.Shape(4, 256, 8, 4096, 128, 4), 20, 8, 500),
    "tiny": _Scale(gpt.Shape(1, 48, 2, 128, 16, 2), 2, 2, 10),
}


def run(size: Size, say: Say) -> tuple[Row, ...]:
    """Time a loop with a session and without one, in turns, and what it adds alone."""
    scale = _SCALES[size]
    with _listened_to() as around:
        timed = around.training(scale)
        say(f"{scale.rounds} rounds of {scale.steps} steps, with and without a session")
        ratios, controls_s = _ratios(scale, timed, _control(scale.shape))
        say("the parts alone")
        parts_us = _each_us(scale.calls, timed.parts)
        step_us = _each_us(scale.calls, timed.boundary)
        timed.finish()
    return (
        row("timing four parts of a step", median(parts_us), "us", samples=parts_us,
            goal=at_most(20), full_only=True),
        row("what a session does at the end of a step, with its report", median(step_us), "us",
            samples=step_us, note="looks for the agent's word and for changed tensors, agrees with "
            "the other ranks (here none), and sends the row with its parts"),
        row("step with a session / without", median(ratios), "", samples=ratios,
            goal=at_most(1.01), full_only=True,
            note="medians of neighbouring rounds, one after the other in changing order; a step "
            f"without takes {1000 * median(controls_s):.1f} ms"),
    )  # fmt: skip


class _Around:
    """A folder as an agent prepares it, in whose environment sessions begin."""

    def __init__(self, root: Path) -> None:
        self._node_dir = root / "node"
        self._node_dir.mkdir()
        job = JobSpec(
            run_id="run-b", generation=1, owner="bench",
            placement=Placement("local", "here", "this-machine", ranks_per_node=1),
            store_url=f"file://{root}/store", script="train.py", home=str(root / "home"),
            workdir=str(root), save_policy=_NEVER, seed=0,
        )  # fmt: skip
        self._job_file = root / "job.json"
        self._job_file.write_bytes(to_json(job))
        replace_file(self._node_dir / CONTROL_FILE, to_json(Control(go=Go())))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """A process of its own takes the rows, so that the loop pays for none of that."""
        with subprocess.Popen(
            [sys.executable, "-c", _LISTENER, str(self._node_dir)], stdin=subprocess.PIPE
        ) as listener:
            until = time.monotonic() + _LISTENS_WITHIN_S
            while not (self._node_dir / ROWS_SOCKET).exists():
                assert listener.poll() is None and time.monotonic() < until, "nobody listens"
                time.sleep(0.01)
            yield

    def training(self, scale: _Scale) -> _Timed:
        """A loop with a session."""
        ours = {NODE_DIR_ENV: str(self._node_dir), JOB_ENV: str(self._job_file)}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            return _Timed(_control(scale.shape), scale.total)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextlib.contextmanager
def _listened_to() -> Iterator[_Around]:
    with tempfile.TemporaryDirectory(prefix="cloudshift-bench-") as folder:
        around = _Around(Path(folder))
        with around.listening():
            yield around


def _control(shape: gpt.Shape) -> gpt.Training:
    model = gpt.build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    return gpt.Training(model, optimizer, gpt.corpus(shape.vocab, 200_000), shape)


class _Timed:
    """A training whose loop is a session's, and times four parts of each step."""

    def __init__(self, training: gpt.Training, total: int) -> None:
        self._training = training
        self._session = Session(model=training.model, optimizer=training.optimizer)
        self._steps = self._session.steps(total)

    def step(self) -> None:
        """One step; its parts are timed around all of it, which costs as much."""
        next(self._steps)
        self.parts()
        loss = self._training.step()
        self._session.step(loss=loss, tokens=1)

    def parts(self) -> None:
        """The timing of a step's parts, with nothing in them."""
        for name in PARTS:
            with self._session.section(name):
                pass

    def boundary(self) -> None:
        """The end of a step that did nothing."""
        next(self._steps)
        self.parts()
        self._session.step(loss=0.0, tokens=1)

    def finish(self) -> None:
        """All steps are done."""
        assert next(self._steps, None) is None, "no step is left"


def _ratios(
    scale: _Scale, timed: _Timed, control: gpt.Training
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per round how much longer a step is with a session, and how long it is without, seconds."""
    loops: tuple[Callable[[], object], ...] = (timed.step, control.step)
    _round(loops, scale.steps)
    ratios, controls_s = [], []
    for number in range(scale.rounds):
        order = loops if number % 2 else loops[::-1]
        took_s = dict(zip(order, _round(order, scale.steps), strict=True))
        ratios.append(took_s[timed.step] / took_s[control.step])
        controls_s.append(took_s[control.step])
    return tuple(ratios), tuple(controls_s)


def _round(loops: tuple[Callable[[], object], ...], num_steps: int) -> list[float]:
    """Median step of each loop, the steps of all taken in turns."""
    took_s: list[list[float]] = [[] for _ in loops]
    for _ in range(num_steps):
        for loop, each in zip(loops, took_s, strict=True):
            began = time.perf_counter()
            loop()
            each.append(time.perf_counter() - began)
    return [median(each) for each in took_s]


def _each_us(calls: int, call: Callable[[], None]) -> tuple[float, ...]:
    """Microseconds of a call, as means over so many of them."""
    samples = []
    for _ in range(_NUM_SAMPLES):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append(1e6 * (time.perf_counter() - began) / calls)
    return tuple(samples)
