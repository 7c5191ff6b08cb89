"""Drives one saga: runs the pending effect, keeps its outcome durably, only then acts on it.

No threads, no processes, no clock of its own: the deterministic simulation runs this very code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import msgspec

from cloudshift_lab.conductor.journal import EventLog
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.plan import Decision, Plan
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import (
    Aborted,
    Decided,
    Effect,
    EffectDone,
    EffectFailed,
    Event,
    Expired,
    Noticed,
    Overspent,
    Saga,
    SideName,
    check_decision,
    fold,
    pending,
    start,
    step,
)

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
SPENT_SHARE = 0.95

Meter = Callable[[Saga], int]
Carried = Callable[[Saga], int]


class Proposed(msgspec.Struct, frozen=True, tag="proposed"):
    """The first line of a migration's journal: the plan as it was shown."""

    plan: Plan
    at: float


Line = Proposed | Decided | Expired | Aborted | Noticed | Overspent | EffectDone | EffectFailed
_DECODER: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class EffectRunner(Protocol):
    """Does what a saga asks for. Must be idempotent: a restarted driver asks again."""

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        """Push an effect on without waiting long; None means: not there yet, ask again."""


class MigrationDriver:
    """One migration from its journal. Not for two ticks at once; decisions may come meanwhile.

    Args:
        journal: The migration's own journal; its first line is the plan.
        effects: Runs effects.
        world: Clock.
        lock: Held while an event is judged and kept, so that a decision and a tick do not race.
        meter: Tells what the move has cost so far, micro-dollars; None: nothing is priced.
        carried: Tells how many bytes the pending effect has carried so far; None: nobody knows.

    Raises:
        Corrupt: The journal is empty or does not begin with a plan.
    """

    def __init__(
        self,
        journal: EventLog,
        effects: EffectRunner,
        world: World,
        *,
        lock: contextlib.AbstractContextManager[object] | None = None,
        meter: Meter | None = None,
        carried: Carried | None = None,
    ) -> None:
        self._journal = journal
        self._effects = effects
        self._world = world
        self._lock = lock or contextlib.nullcontext()
        self._meter = meter
        self._carried = carried
        self._not_before = float("-inf")
        self.saga = _load(journal)

    @classmethod
    def propose(
        cls,
        plan: Plan,
        journal: EventLog,
        effects: EffectRunner,
        world: World,
        *,
        lock: contextlib.AbstractContextManager[object] | None = None,
        meter: Meter | None = None,
        carried: Carried | None = None,
    ) -> MigrationDriver:
        """Keep a new plan, once, and drive it."""
        start(plan)
        if not journal.replay():
            journal.append(to_json(Proposed(plan=plan, at=world.now())))
        return cls(journal, effects, world, lock=lock, meter=meter, carried=carried)

    @staticmethod
    def plan_in(journal: EventLog) -> Plan:
        """The plan that a journal begins with. Raises Corrupt when there is none."""
        return _load(journal).plan

    def decide(self, decision: Decision) -> Saga:
        """Take a decision, durably; the same one again changes nothing.

        Raises:
            StaleDecision: Expired, decided otherwise, or another plan was shown.
            Exhausted: The journal's disk is full; nothing was decided.
        """
        with self._lock:
            now = self._world.now()
            if check_decision(self.saga, decision, now):
                self._keep(Decided(decision=decision, at=now))
            return self.saga

    def abort(self, message: str) -> Saga:
        """Call the move off where that is still possible (it is not once commit began)."""
        told = Aborted(at=self._world.now(), message=message, num_bytes=self._num_bytes())
        return self._keep_if_news(told)

    def notice(self, side: SideName, deadline: float) -> Saga:
        """Say that one side's machine will be taken away at ``deadline``, wall-clock seconds."""
        now, num_bytes = self._world.now(), self._num_bytes()
        told = Noticed(side=side, at=now, deadline=deadline, num_bytes=num_bytes)
        before = self.saga.effect
        saga = self._keep_if_news(told)
        if saga.effect != before:
            self._not_before = float("-inf")
        return saga

    def tick(self) -> bool:
        """Push the move on a little.

        Returns:
            True when an event happened, so that there may be more to do at once.
        """
        if self._expire() or self._stop_spending():
            return True
        if self._world.monotonic() < self._not_before:
            return False
        for effect in pending(self.saga):
            outcome = self._effects.run(effect, self.saga)
            if isinstance(outcome, EffectFailed):
                num_bytes = max(outcome.num_bytes, self._num_bytes())
                outcome = msgspec.structs.replace(outcome, num_bytes=num_bytes)
            if outcome is not None:
                self._settle(outcome)
                return True
        return False

    def _expire(self) -> bool:
        with self._lock:
            now = self._world.now()
            if not self.saga.awaits_decision or now < self.saga.plan.expires_at:
                return False
            self._keep(Expired(at=now))
            return True

    def _stop_spending(self) -> bool:
        """Undo a move before it costs more than was approved; what undoing costs is kept back."""
        limit = self.saga.limit_micro_usd
        if self._meter is None or not limit or self.saga.overspent_micro_usd is not None:
            return False
        spent = self._meter(self.saga)
        if spent < limit * SPENT_SHARE:
            return False
        before, now = self.saga, self._world.now()
        told = Overspent(at=now, micro_usd=spent, num_bytes=self._num_bytes())
        return self._keep_if_news(told) != before

    def _num_bytes(self) -> int:
        """What the pending effect has carried: paid for, also when it comes to nothing."""
        return 0 if self._carried is None else self._carried(self.saga)

    def _settle(self, outcome: EffectDone | EffectFailed) -> None:
        """Keep an outcome; an effect that has just failed is left alone for a while."""
        with self._lock:
            self._keep(outcome)
            pause_s = 0.0
            if isinstance(outcome, EffectFailed) and self.saga.failures:
                pause_s = min(
                    _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self.saga.failures - 1, 10)
                )
            self._not_before = self._world.monotonic() + pause_s

    def _keep_if_news(self, event: Event) -> Saga:
        with self._lock:
            if step(self.saga, event)[0] != self.saga:
                self._keep(event)
            return self.saga

    def _keep(self, event: Event) -> None:
        """Invariant: the journal has the event before the saga does."""
        self._journal.append(to_json(event))
        self.saga, _ = step(self.saga, event)


def _load(journal: EventLog) -> Saga:
    lines = [_parse(line) for line in journal.replay()]
    if not lines or not isinstance(lines[0], Proposed):
        raise Corrupt("a migration journal does not begin with its plan; restore it from a copy")
    events = [line for line in lines[1:] if not isinstance(line, Proposed)]
    return fold(lines[0].plan, events, at=lines[0].at)


def _parse(line: bytes) -> Line:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"a migration journal holds an event of another version ({error}); "
            "use the version of CloudShift Lab that wrote it"
        ) from error
