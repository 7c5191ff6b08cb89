"""What a move touches of one attempt: its job, its store, its run log, the line to its agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cloudshift_lab.conductor.inbox import AgentLine
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

OpenStore = Callable[[str], Store]


class Jobs(Protocol):
    """The engine as a move needs it: attempts named by their job, never by a handle."""

    def submit(self, job: JobSpec) -> None:
        """Start the attempt's agent, once: nothing happens when it was started before."""

    def revive(self, job: JobSpec) -> None:
        """Start the agent of an attempt again; nothing happens while one runs."""

    def is_gone(self, job: JobSpec) -> bool:
        """Whether nothing of this attempt runs (any more), for certain."""

    def stop(self, job: JobSpec, grace_s: float) -> None:
        """End whatever runs of this attempt; nothing to do when nothing does."""


class Side:
    """One attempt as a move sees it: its job, its store, its log, the line to its agent."""

    def __init__(self, name: str, job: JobSpec, open_store: OpenStore, world: World) -> None:
        self.name = name
        self.job = job
        self._open_store = open_store
        self._world = world
        self._store: Store | None = None
        self._line: AgentLine | None = None
        self._log: RunLog | None = None

    @property
    def store(self) -> Store:
        """Opened at first use, so that a cloud that is away fails an effect and not a restart."""
        if self._store is None:
            self._store = self._open_store(self.job.placement.cloud)
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
