"""What the conductor knows of a run: a fold over its journal, and nothing else is kept."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudshift_lab.conductor.formerly import modernised
from cloudshift_lab.conductor.journal import EventLog
from cloudshift_lab.core.asks import NoticeView
from cloudshift_lab.core.costs import Alarm
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.placement import Offer
from cloudshift_lab.core.run import JobSpec, RunSpec
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.market.inputs import MoveInputs

Outcome = Literal["stopped", "finished", "failed", "lost"]


class AttemptStarted(msgspec.Struct, frozen=True, tag="attempt"):
    """An attempt is about to be submitted; it costs money from now on.

    ``price_micro_usd_per_h`` is for all its nodes. ``migration_id`` is the move that starts it.
    """

    job: JobSpec
    at: float
    price_micro_usd_per_h: int
    price_source: str
    simulated: bool
    migration_id: str | None = None


class BranchedFrom(msgspec.Struct, frozen=True):
    """The step of another run, in the same store, that a run begins with."""

    run_id: str
    name: str
    step: int

    @property
    def ref(self) -> str:
        """As people type it: ``gpt@400``."""
        return f"{self.name}@{self.step}"


class RunCreated(msgspec.Struct, frozen=True, tag="created"):
    """The first line of a run's journal, with its first attempt: a run is never without one.

    ``spec.script`` is the path of the frozen script. ``origin`` is what a branch begins with.
    """

    run_id: str
    spec: RunSpec
    at: float
    first: AttemptStarted
    origin: BranchedFrom | None = None


class AttemptEnded(msgspec.Struct, frozen=True, tag="attempt_ended"):
    """Nothing of an attempt runs any more."""

    generation: int
    at: float


class MoveOpened(msgspec.Struct, frozen=True, tag="move"):
    """A move was planned; ``target_job`` is what it will start when approved.

    ``inputs`` is what its bill was computed from, None in journals of older versions.
    ``elsewhere`` are the offers of its fallbacks. ``limit_given``: a person said what the move may
    cost, and no later bill changes that; so in journals of older versions, which do not tell.
    """

    migration_id: str
    target_job: JobSpec
    price_micro_usd_per_h: int
    price_source: str
    simulated: bool
    at: float
    inputs: MoveInputs | None = None
    elsewhere: tuple[Offer, ...] = ()
    limit_given: bool = True


class StopAsked(msgspec.Struct, frozen=True, tag="stop"):
    """Somebody wants the run to save and stop; ``why`` is shown with the run."""

    at: float
    why: str = ""


class NoticeGiven(msgspec.Struct, frozen=True, tag="notice"):
    """Somebody said that the machine of one attempt will be taken away."""

    generation: int
    view: NoticeView


class RunEnded(msgspec.Struct, frozen=True, tag="ended"):
    """The run is over, with its agent's last word.

    ``is_gone``: nobody wanted that, its agent or machine just is not there any more. ``heard_at``
    is when that agent spoke last, wall-clock seconds.
    """

    state: Outcome
    at: float
    error: str | None = None
    error_rank: int | None = None
    traceback: str | None = None
    step: int | None = None
    loss: float | None = None
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    is_gone: bool = False
    heard_at: float | None = None


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """Nothing is left to do for an ended run: its processes are gone, its telemetry is in."""

    at: float


class Restarted(msgspec.Struct, frozen=True):
    """Why a lost run went on by itself, and from which step; None: from its beginning.

    ``key`` is the finding's that it answers, ``machine`` the one that is not used any more.
    """

    at: float
    key: str
    because: str
    step: int | None
    machine: str = ""


class RunResumed(msgspec.Struct, frozen=True, tag="resumed"):
    """An ended run is to go on: ``attempt`` is about to be submitted and owns it from now on.

    ``restarted`` is None where a person wanted that.
    """

    attempt: AttemptStarted
    restarted: Restarted | None = None


class RestartHeld(msgspec.Struct, frozen=True, tag="restart_held"):
    """A lost run does not go on by itself, unless a person resumes it; ``because`` says why."""

    at: float
    because: str


class BudgetSet(msgspec.Struct, frozen=True, tag="budget"):
    """Somebody gave the run another budget than it was started with."""

    at: float
    micro_usd: int


class BudgetAlarm(msgspec.Struct, frozen=True, tag="budget_alarm"):
    """So much of the budget was spent; told once for each budget and level."""

    alarm: Alarm


RunEvent = (
    RunCreated
    | AttemptStarted
    | AttemptEnded
    | MoveOpened
    | StopAsked
    | NoticeGiven
    | RunEnded
    | Settled
    | RunResumed
    | RestartHeld
    | BudgetSet
    | BudgetAlarm
)
_DECODER: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)


class Attempt(msgspec.Struct, frozen=True):
    """One continuous stay in one placement; ``ended_at`` None while it may still cost money."""

    started: AttemptStarted
    ended_at: float | None = None

    @property
    def job(self) -> JobSpec:
        return self.started.job

    def cost_micro_usd(self, now: float) -> int:
        """What it has cost up to ``now``, micro-dollars."""
        until = now if self.ended_at is None else self.ended_at
        seconds = max(0.0, until - self.started.at)
        return round(self.started.price_micro_usd_per_h * seconds / HOUR_S)


class RunRecord:
    """One run's durable facts. Not for several threads at once.

    ``notices`` are the newest by generation of the attempt whose machine goes. ``restarts``, also
    by generation, are all that nobody asked for, ``in_a_row`` those since a person's last word.
    ``alarms`` are all that its budgets have raised, oldest first.

    Raises:
        Corrupt: The journal is empty or of another version.
    """

    def __init__(self, journal: EventLog) -> None:
        self._journal = journal
        events = [_parse(line) for line in journal.replay()]
        if not events or not isinstance(events[0], RunCreated):
            raise Corrupt("a run's journal does not begin with the run; restore it from a copy")
        self.created = events[0]
        first = self.created.first
        self.attempts: dict[int, Attempt] = {first.job.generation: Attempt(started=first)}
        self.moves: dict[str, MoveOpened] = {}
        self.stop_asked: StopAsked | None = None
        self.notices: dict[int, NoticeView] = {}
        self.ended: RunEnded | None = None
        self.is_settled = False
        self.resumed: set[int] = set()
        self.restarts: dict[int, Restarted] = {}
        self.in_a_row: list[Restarted] = []
        self.held: RestartHeld | None = None
        self.budget_micro_usd = self.created.spec.budget_micro_usd
        self.alarms: list[Alarm] = []
        for event in events[1:]:
            self._apply(event)

    @classmethod
    def create(cls, journal: EventLog, created: RunCreated) -> RunRecord:
        """Begin a run's journal."""
        assert not journal.replay(), "a run is created once"
        journal.append(to_json(created))
        return cls(journal)

    @property
    def run_id(self) -> str:
        return self.created.run_id

    @property
    def spec(self) -> RunSpec:
        return self.created.spec

    @property
    def next_generation(self) -> int:
        """One more than any attempt has used or may still use."""
        used = [*self.attempts, *(move.target_job.generation for move in self.moves.values())]
        return max(used, default=0) + 1

    @property
    def awaits_restart(self) -> bool:
        """Whether the run is lost and shall go on by itself; nothing is known against it yet."""
        is_lost = self.ended is not None and self.ended.is_gone
        return is_lost and self.held is None and self.spec.restart == "auto"

    def keep(self, event: RunEvent) -> None:
        """Append an event, then know it.

        Raises:
            Exhausted: The disk is full; nothing changed.
        """
        self._journal.append(to_json(event))
        self._apply(event)

    def alarms_told(self, budget_micro_usd: int) -> frozenset[int]:
        """The levels of a budget, in percent, that somebody was told of."""
        told = (alarm for alarm in self.alarms if alarm.budget_micro_usd == budget_micro_usd)
        return frozenset(alarm.percent for alarm in told)

    def cost_micro_usd(self, now: float) -> int:
        """Sum of what all attempts have cost; overlapping ones both count."""
        return sum(attempt.cost_micro_usd(now) for attempt in self.attempts.values())

    def price_micro_usd_per_h(self) -> int:
        """What the attempts that still run cost together per hour."""
        return sum(
            attempt.started.price_micro_usd_per_h
            for attempt in self.attempts.values()
            if attempt.ended_at is None
        )

    def _apply(self, event: RunEvent) -> None:
        if isinstance(event, AttemptStarted):
            self.attempts.setdefault(event.job.generation, Attempt(started=event))
        elif isinstance(event, AttemptEnded):
            self._end_attempt(event.generation, event.at)
        elif isinstance(event, MoveOpened):
            self.moves[event.migration_id] = event
        elif isinstance(event, StopAsked):
            self.stop_asked = self.stop_asked or event
        elif isinstance(event, NoticeGiven):
            self.notices[event.generation] = event.view
        elif isinstance(event, RunEnded):
            self._end(event)
        elif isinstance(event, RunResumed):
            self._resume(event.attempt, event.restarted)
        elif isinstance(event, RestartHeld):
            self.held = self.held or event
        else:
            self._count(event)

    def _count(self, event: RunEvent) -> None:
        if isinstance(event, BudgetSet):
            self.budget_micro_usd = event.micro_usd
        elif isinstance(event, BudgetAlarm):
            self.alarms.append(event.alarm)
        elif isinstance(event, Settled):
            self.is_settled = True

    def _end(self, event: RunEnded) -> None:
        self.ended = self.ended or event
        for generation in self.attempts:
            self._end_attempt(generation, event.at)

    def _resume(self, attempt: AttemptStarted, restarted: Restarted | None) -> None:
        self.attempts.setdefault(attempt.job.generation, Attempt(started=attempt))
        self.resumed.add(attempt.job.generation)
        if restarted is None:
            self.in_a_row.clear()
        else:
            self.restarts[attempt.job.generation] = restarted
            self.in_a_row.append(restarted)
        self.stop_asked = self.ended = self.held = None
        self.is_settled = False

    def _end_attempt(self, generation: int, at: float) -> None:
        attempt = self.attempts.get(generation)
        if attempt is not None and attempt.ended_at is None:
            self.attempts[generation] = msgspec.structs.replace(attempt, ended_at=at)


def _parse(line: bytes) -> RunEvent:
    try:
        return _DECODER.decode(modernised(line))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"a run's journal holds an event of another version ({error}); "
            "use the version of CloudShift Lab that wrote it"
        ) from error
