"""What a move touches of one attempt: its job, its agent, its store, its run log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from cloudshift_lab.conductor.inbox import AgentLine
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Saga
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

OpenStore = Callable[[str, str], Store]
"""Opens a store by its cloud's name, whose options open it, and its url."""


class Side:
    """One attempt as the conductor reaches it.

    Args:
        name: What messages call it: "the source".
        job: The attempt.
        engine: Where its agent runs.
        open_store: Opens the store of the attempt, which its agent uses too.
        world: Clock.
    """

    def __init__(
        self, name: str, job: JobSpec, engine: Engine, *, open_store: OpenStore, world: World
    ) -> None:
        self.name = name
        self.job = job
        self._engine = engine
        self._open_store = open_store
        self._world = world
        self._store: Store | None = None
        self._line: AgentLine | None = None
        self._log: RunLog | None = None

    @property
    def store(self) -> Store:
        """Opened at first use, so that a cloud that is away fails a call and not a restart."""
        if self._store is None:
            self._store = self._open_store(self.job.placement.cloud, self.job.store_url)
        return self._store

    @property
    def line(self) -> AgentLine:
        if self._line is None:
            self._line = AgentLine(self.store, self.job.run_id, self.job.generation, self._world)
        return self._line

    @property
    def log(self) -> RunLog:
        if self._log is None:
            self._log = RunLog(self.store, self.job.run_id, self._world)
        return self._log

    def submit(self) -> None:
        """Start the agent, unless it was started before."""
        self._engine.submit(self.job)

    def revive(self) -> None:
        """Start the agent again, unless it runs."""
        self._engine.revive(self.job)

    def was_started(self) -> bool:
        """Whether the engine was ever asked for this attempt."""
        return self._engine.find(self.job.run_id, self.job.generation) is not None

    def is_gone(self) -> bool:
        """Whether nothing of this attempt runs (any more)."""
        handle = self._engine.find(self.job.run_id, self.job.generation)
        return handle is None or self._engine.observe(handle).is_gone

    def machine(self) -> str:
        """What the engine calls the machine of the first node; empty: it does not tell."""
        handle = self._engine.find(self.job.run_id, self.job.generation)
        return "" if handle is None else handle.machine

    def stop(self, grace_s: float) -> None:
        """End whatever runs of this attempt; nothing to do when it never started."""
        stop_attempt(self._engine, self.job.run_id, self.job.generation, grace_s)

    def logs(self, rank: int | None, tail: int) -> str:
        """The newest lines of a rank, or of the agent; empty when it never started."""
        handle = self._engine.find(self.job.run_id, self.job.generation)
        return "" if handle is None else self._engine.logs(handle, rank, tail)


def job_of_try(first: JobSpec, saga: Saga) -> JobSpec:
    """The job of a saga's present try: the first target's, elsewhere and with its own generation.

    Every try has a generation and an owner of its own, so that a half that was given up and wakes
    late is fenced.
    """
    if not saga.tries:
        return first
    return msgspec.structs.replace(
        first,
        generation=first.generation + saga.tries,
        owner=f"{first.owner}:{saga.tries}",
        placement=saga.target,
        store_url=saga.target_url,
        workdir=str(Path(first.workdir).with_name(str(first.generation + saga.tries))),
    )


def stop_attempt(engine: Engine, run_id: str, generation: int, grace_s: float) -> None:
    """End whatever runs of one attempt; nothing to do when it never started."""
    handle = engine.find(run_id, generation)
    if handle is not None:
        engine.stop(handle, grace_s)
