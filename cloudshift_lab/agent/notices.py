"""What a machine hears of its own end, from a service or by a signal, passed on to its agent."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloudshift_lab.agent.nodes import Seen
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.placement import Notices
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.notices import Notice
from cloudshift_lab.engines.notices_watch import NoticeWatch, dialect_of

SLURM_END_ENV = "SLURM_JOB_END_TIME"
SIMULATED = "SIMULATED"
_DEAF = frozenset({"SIGKILL", "SIGSTOP"})


class Heeding(Protocol):
    """The agent of a node, as far as its machine's end concerns it."""

    def notice(self, name: str, within_s: float, says: str, /) -> bool:
        """Heed a notice; the same name again changes nothing. False: not yet, say it again."""

    def has_heeded(self, name: str, /) -> bool:
        """Whether everything that this notice asked for is done."""

    def note(self, topic: str, message: str) -> None:
        """Show a warning in the status; one per topic."""


@dataclass
class _Told:
    """A notice on its way: ``wants_answer`` until the provider was told that we are ready."""

    notice: Notice
    is_signal: bool = False
    is_taken: bool = False
    wants_answer: bool = True


class MachineNotices:
    """Everything that says that this machine goes, passed on once each; no call waits.

    Args:
        signals: Seconds that are left after each signal, by its name.
        watch: Asks the provider's service; None: there is none.
        world: Clock.
        ends_at: When the machine's time is over in any case, wall-clock seconds; None: not known.
        followers: The other nodes as the leader sees them; what they hear concerns all.
    """

    def __init__(
        self,
        signals: Mapping[str, float],
        watch: NoticeWatch | None,
        world: World,
        *,
        ends_at: float | None = None,
        followers: Callable[[], list[Seen | None]] | None = None,
    ) -> None:
        for name in signals:
            if name in _DEAF or not hasattr(signal.Signals, name):
                raise UsageError(
                    f"no notice can come by '{name}'; mend 'notices' of this cloud in clouds.json"
                )
        self._signals = signals
        self._watch = watch
        self._world = world
        self._ends_at = ends_at
        self._followers = followers
        self._told: dict[str, _Told] = {}
        self._received: deque[tuple[str, float]] = deque()

    def start(self) -> None:
        """Begin to listen; the signals are the caller's to receive, with ``signalled``."""
        if self._watch is not None:
            self._watch.start()

    @property
    def signals(self) -> tuple[signal.Signals, ...]:
        """Those that are notices here."""
        return tuple(signal.Signals[name] for name in self._signals)

    def signalled(self, number: int) -> bool:
        """Take a signal in, from its handler; False when it is no notice."""
        name = signal.Signals(number).name
        if name not in self._signals:
            return False
        self._received.append((name, self._world.monotonic()))
        return True

    def tick(self, agent: Heeding) -> None:
        """Pass on what is new, and tell the provider once all that it asked for is done."""
        for told in (*self._of_service(agent), *self._of_signals(), *self._of_followers()):
            self._told.setdefault(told.notice.notice_id, told)
        for told in self._told.values():
            if not told.is_taken:
                told.is_taken = self._pass_on(told.notice, agent)
            elif told.wants_answer and self._watch is not None:
                self._answer(told, agent)

    def may_leave(self, agent: Heeding) -> bool:
        """Whether a signal asked this process to end, and all is saved."""
        return any(
            told.is_signal and agent.has_heeded(name) for name, told in self._told.items()
        )  # fmt: skip

    def close(self) -> None:
        """Stop listening."""
        if self._watch is not None:
            self._watch.close()

    # -- who says so -------------------------------------------------------------------------------

    def _of_service(self, agent: Heeding) -> list[_Told]:
        if self._watch is None:
            return []
        for complaint in self._watch.complaints():
            agent.note("metadata", complaint)
        return [_Told(notice) for notice in self._watch.heard()]

    def _of_signals(self) -> list[_Told]:
        told = []
        while self._received:
            name, at = self._received.popleft()
            left_s = self._signals[name]
            if self._ends_at is not None and (until_s := self._ends_at - self._world.now()) > 0:
                left_s = min(left_s, until_s)
            notice = Notice(f"signal-{name}", at, left_s, f"{name} was sent to this machine")
            told.append(_Told(notice, is_signal=True, wants_answer=False))
        return told

    def _of_followers(self) -> list[_Told]:
        """Counted from their own words by their own clocks, from when we saw them."""
        told = []
        for node, one in enumerate([] if self._followers is None else self._followers(), start=1):
            if one is None or one.status.notice_until is None:
                continue
            until, status = one.status.notice_until, one.status
            notice = Notice(
                f"node-{node}-{until:.0f}", one.at, until - status.at,
                f"node {node}: {status.notice_from}",
            )  # fmt: skip
            told.append(_Told(notice, wants_answer=False))
        return told

    # -- what becomes of it ------------------------------------------------------------------------

    def _pass_on(self, notice: Notice, agent: Heeding) -> bool:
        says = f"{notice.says} ({SIMULATED})" if notice.simulated else notice.says
        if notice.is_hint:
            agent.note("hint", f"{says}; think of a move: cloudshift migrate RUN --to CLOUD")
            return True
        return agent.notice(notice.notice_id, notice.within_s(self._world.monotonic()), says)

    def _answer(self, told: _Told, agent: Heeding) -> None:
        if told.notice.is_hint:
            told.wants_answer = False
        elif self._watch is not None and agent.has_heeded(told.notice.notice_id):
            told.wants_answer = False
            self._watch.acknowledge(told.notice)


def notices_of(
    job: JobSpec,
    environ: Mapping[str, str],
    world: World,
    *,
    followers: Callable[[], list[Seen | None]] | None = None,
) -> MachineNotices:
    """How a job's machine hears of its end, as the settings of its cloud say: else not at all.

    Args:
        job: Whose cloud and machine.
        environ: What else says where to listen, and when the machine's time is over.
        world: Clock.
        followers: The other nodes as the leader sees them.

    Raises:
        UsageError: The settings make no sense.
    """
    settings = load_clouds(Path(job.home)).find(job.placement.cloud).notices or Notices()
    dialect = dialect_of(settings, environ, world, machine=machine_of(job))
    return MachineNotices(
        settings.signals,
        None if dialect is None else NoticeWatch(dialect),
        world,
        ends_at=_ends_at(environ),
        followers=followers,
    )


def machine_of(job: JobSpec) -> str:
    """The name of the machine that one node of an attempt is."""
    return f"{job.run_id}.{job.generation}.{job.node}"


def _ends_at(environ: Mapping[str, str]) -> float | None:
    told = environ.get(SLURM_END_ENV, "")
    return float(told) if told.isdecimal() else None
