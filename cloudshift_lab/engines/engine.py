"""What every engine can do: start, find, look at, end one agent per attempt."""

from __future__ import annotations

import itertools
from typing import Literal, Protocol

import msgspec

from cloudshift_lab.core.run import JobSpec

JobState = Literal["starting", "running", "exited", "lost"]


class Handle(msgspec.Struct, frozen=True):
    """One started attempt; can be written down and used by another process later.

    ``start_time`` tells the process from a later one with the same pid. ``machine`` is what its
    engine calls the machine, empty where it does not tell.
    """

    run_id: str
    generation: int
    pid: int
    start_time: str
    workdir: str
    machine: str = ""


class Observation(msgspec.Struct, frozen=True):
    """What the engine knows of an attempt's agent.

    ``starting``: it runs but has not begun its work. ``exited``: it ended by itself with
    ``returncode``. ``lost``: it is gone without having said so (killed, machine restarted).
    """

    state: JobState
    returncode: int | None = None

    @property
    def is_gone(self) -> bool:
        """Nothing of the attempt runs any more."""
        return self.state in ("exited", "lost")


def machine_of(job: JobSpec) -> str:
    """The machine of a job's node, where a place has numbered ones: ``local:here/0``.

    The nodes of an attempt take the lowest numbers that it may use.
    """
    numbers = (n for n in itertools.count() if _machine(job, n) not in job.exclude)
    return _machine(job, next(itertools.islice(numbers, job.node, None)))


def num_usable(job: JobSpec, num: int) -> int:
    """How many of the first ``num`` machines of its place a job may use."""
    return sum(_machine(job, n) not in job.exclude for n in range(num))


def _machine(job: JobSpec, number: int) -> str:
    return f"{job.placement.target}/{number}"


class Engine(Protocol):
    """Runs attempts. Every call is idempotent; none starts a second agent beside a living one."""

    def submit(self, job: JobSpec) -> Handle:
        """Start the attempt's agent; one that was ever started for this generation is returned.

        Raises:
            UsageError: The job cannot run here (no interpreter, no script).
            Exhausted: Every machine that there is is one the job must not use.
            Unavailable: The agent did not come up in time.
        """

    def revive(self, job: JobSpec) -> Handle:
        """Start the attempt's agent again if it is gone; otherwise as ``submit``."""

    def find(self, run_id: str, generation: int) -> Handle | None:
        """The attempt's handle; None when it was never started here."""

    def observe(self, handle: Handle) -> Observation:
        """How the agent is now."""

    def stop(self, handle: Handle, grace_s: float) -> Observation:
        """Ask it to end, wait up to ``grace_s`` seconds, then end it and all its ranks by force."""

    def logs(self, handle: Handle, rank: int | None = None, tail: int = 200) -> str:
        """The last ``tail`` lines of a rank's output.

        With ``rank`` None of all ranks and the agent together, each line with whose it is.
        """
