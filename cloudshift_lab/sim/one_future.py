"""One future of a move: the production saga, answered by drawn durations and drawn trouble."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from cloudshift_lab.conductor.driver import SPENT_SHARE
from cloudshift_lab.core.asks import FuturesAsk
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.plan import Bill, Decision
from cloudshift_lab.market.lines import for_duration
from cloudshift_lab.migration import (
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Noticed,
    Overspent,
    Saga,
    fold,
    pending,
    start,
    step,
)
from cloudshift_lab.sim.odds import (
    ANSWER_S,
    CONDUCTOR_BACK_S,
    NOTICE_S,
    OUTAGE_S,
    Odds,
)
from cloudshift_lab.sim.scheduler import derived_random

_LINKED: frozenset[EffectName] = frozenset({"precopy", "copy"})
_AT_TARGET: frozenset[EffectName] = frozenset(
    {"provision", "precopy", "rehearse", "copy", "verify", "catch_up", "go"}
)
_DETECTED_S = 5.0
_LONGEST_OUTAGE_S = 300.0
_SEALED = 1_000  # any number: the futures have one sealed step each
_MOST_EVENTS = 1_000


@dataclass(frozen=True)
class Ending:
    """How one future ended; ``pause_s`` None: nobody ever stopped training.

    ``asked_again``: the rehearsal made the bill so much worse that it needed another approval.
    """

    moved: bool
    pause_s: float | None
    cost_micro_usd: int
    finish_s: float
    lost_steps: bool
    asked_again: bool


class Moment(NamedTuple):
    """When trouble comes, and when the effect would have been done without it."""

    at: float
    end: float


@dataclass
class Future:
    """One future, from the approval to the end.

    Args:
        ask: The plan, and prices.
        odds: What durations and trouble are drawn from.
        number: Which of the futures; with the ask's seed it decides everything.
        spread: Factor on every sigma; 0 makes each duration what is expected.
    """

    ask: FuturesAsk
    odds: Odds
    number: int
    spread: float = 1.0
    carried: float = 0.0
    answers: int = 0
    stopped_at: float | None = None
    arrived_at: float = math.inf
    source_goes_at: float = math.inf
    source_down_at: float | None = None
    is_target_down: bool = False
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.begun = self.ask.plan.created_at
        self.takes = derived_random(self.ask.seed, "takes", self.number)
        self.trouble = derived_random(self.ask.seed, "trouble", self.number)
        self.due = {kind: self._after(kind, self.begun) for kind in _REACTIONS}

    def live(self, proposed: Saga) -> Ending:
        """Approve, and run the saga to its end."""
        self.saga = proposed
        for _ in range(_MOST_EVENTS):
            if self.saga.is_final:
                return self._ending()
            self._take(self._next())
        raise AssertionError("a future did not end")

    def _next(self) -> Event:
        if self.saga.awaits_decision:
            return self._answer()
        (effect,) = pending(self.saga)
        return self._overspent() or self._outcome(effect.name)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self.saga, _ = step(self.saga, event)

    def _answer(self) -> Event:
        """Whoever is asked approves: the plan at once, a worse bill after a while."""
        if self.saga.phase == "asking":
            self.now += ANSWER_S
        self.answers += 1
        decision = Decision(
            decision_id=f"decision-{self.answers}",
            plan_digest=self.saga.plan.digest,
            verdict="approve",
            by=f"person {self.answers}",
            at=self.now,
        )
        return Decided(decision=decision, at=self.now)

    def _overspent(self) -> Event | None:
        """Say that the limit is passed, where the saga can still go back."""
        limit, spent = self.saga.limit_micro_usd, self.cost_micro_usd()
        if not limit or spent < limit * SPENT_SHARE or not self._can_go_back():
            return None
        return Overspent(at=self.now, micro_usd=spent)

    def _can_go_back(self) -> bool:
        return not self.saga.is_committed and self.saga.phase != "rolling_back"

    # -- effects ---------------------------------------------------------------------------

    def _outcome(self, effect: EffectName) -> Event:
        """Let an effect take its time; trouble may come before it is done."""
        if self.is_target_down and effect in _AT_TARGET:
            return self._target_lost(effect, self.now)
        began = self.now
        end = began + self._duration(effect)
        while (kind := min(self.due, key=self.due.__getitem__)) and self.due[kind] < end:
            at = max(began, self.due[kind])
            self.due[kind] = self._after(kind, at)
            met = _REACTIONS[kind](self, effect, Moment(at, end))
            if not isinstance(met, float):
                self.carried += self._share(effect) * (at - began) / (end - began)
                return met
            end = met
        self.now = end
        self.carried += self._share(effect)
        return self._done(effect)

    def _duration(self, effect: EffectName) -> float:
        seconds = self._drawn(*self.odds.takes[effect])
        if effect == "drain":  # from anywhere in a step to its end
            wait_s = self.takes.random() * self.odds.step_s * min(1.0, self.spread)
            self.stopped_at = self.now + wait_s
            return wait_s + seconds
        if effect == "provision" and self.saga.failures:  # a node that never came is waited for
            return self._exponential(self.takes, ANSWER_S)
        restarts = effect == "resume" and self.source_down_at is not None
        if restarts or (effect == "go" and self.saga.failures):  # other machines start first
            seconds += self._drawn(*self.odds.takes["provision"]) + self.odds.restore_s
        return seconds

    def _share(self, effect: EffectName) -> float:
        """The part of the planned bytes that an effect carries."""
        if effect not in _LINKED:
            return 0.0
        is_copied = self.saga.closing == "copy"
        whole: tuple[EffectName, ...] = ("precopy", "copy") if is_copied else ("precopy",)
        seconds = {name: self.odds.takes[name].seconds for name in whole}
        total = sum(seconds.values())
        return seconds.get(effect, 0.0) / total if total else 0.0

    def _done(self, effect: EffectName) -> Event:
        done = EffectDone(effect=effect, at=self.now)
        match effect:
            case "drain":
                return self._drained(done)
            case "rehearse":
                factor = math.exp(self.spread * self.odds.slower * self.takes.gauss(0.0, 1.0))
                return msgspec.structs.replace(done, bill=self._repriced(factor))
            case "go":
                self.arrived_at = self.now
                return msgspec.structs.replace(done, step_at=self.now)
            case "catch_up":
                return msgspec.structs.replace(done, step_at=self.now)
            case "resume" if self.saga.is_sealed:
                return msgspec.structs.replace(done, step_at=self.now)
        return done

    def _drained(self, done: EffectDone) -> Event:
        """The seal; where the machine went before it, that is the newest commit."""
        gone_at = min(self.source_goes_at, self.source_down_at or math.inf)
        is_late = gone_at < self.now
        if is_late:
            self.source_down_at = gone_at
            self.stopped_at = min(gone_at, self.stopped_at or gone_at)
        return msgspec.structs.replace(
            done,
            step=_SEALED,
            manifest_digest="simulated",
            step_at=self.stopped_at,
            lost_steps=int(is_late),
        )

    def _repriced(self, factor: float) -> Bill | None:
        """The plan's bill, were the target's steps ``factor`` times as long as thought."""
        bill = self.saga.plan.bill
        compute = sum(item.amount_micro_usd for item in bill.items if item.kind == "compute")
        if not bill.saving_micro_usd_per_h or not compute:
            return None
        hours = -compute / bill.saving_micro_usd_per_h
        source = self.ask.price_micro_usd_per_h[0]
        saving = round(source - (source - bill.saving_micro_usd_per_h) * factor)
        return msgspec.structs.replace(
            bill,
            total_micro_usd=bill.total_micro_usd - compute - round(saving * hours),
            saving_micro_usd_per_h=saving,
            break_even_s=bill.one_off_micro_usd * HOUR_S / saving if saving > 0 else None,
        )

    # -- trouble ---------------------------------------------------------------------------

    def lose_source(self, effect: EffectName, moment: Moment) -> Event | float:
        """The source's machine dies; what it had not saved is lost."""
        if self.saga.is_sealed or not self._can_go_back() or self.source_down_at is not None:
            return moment.end
        self.source_down_at = moment.at
        return max(moment.end, moment.at + _DETECTED_S) if effect == "drain" else moment.end

    def lose_target(self, effect: EffectName, moment: Moment) -> Event | float:
        """A machine of the target dies; seen where the target has something to do."""
        if effect not in _AT_TARGET:
            self.is_target_down = effect in ("drain", "commit")
            return moment.end
        return self._target_lost(effect, moment.at)

    def _target_lost(self, effect: EffectName, at: float) -> EffectFailed:
        self.is_target_down = False
        self.now = at + _DETECTED_S
        return EffectFailed(
            effect=effect,
            at=self.now,
            error_kind="NodesMissing",
            message="a machine of the target was lost; propose the move again",
            nodes_up=self.saga.target.nodes - 1,
        )

    def notice_source(self, effect: EffectName, moment: Moment) -> Event | float:
        """The source is spot and is taken away soon."""
        if self.saga.is_sealed or not self._can_go_back():
            return moment.end
        self.source_goes_at = min(self.source_goes_at, moment.at + NOTICE_S)
        if effect == "drain":
            return moment.end
        self.now = moment.at
        return Noticed(side="source", at=self.now, deadline=self.source_goes_at)

    def notice_target(self, _effect: EffectName, moment: Moment) -> Event | float:
        """The target is spot and is taken away soon: it is not moved to."""
        if not self._can_go_back():
            return moment.end
        self.now = moment.at
        return Noticed(side="target", at=self.now, deadline=self.now + NOTICE_S)

    def cut_link(self, effect: EffectName, moment: Moment) -> Event | float:
        """Nothing crosses for a while: copies wait and go on, unless it takes too long."""
        outage_s = self._exponential(self.trouble, OUTAGE_S)
        self.due["link"] += outage_s
        if effect not in _LINKED:
            return moment.end
        if outage_s < _LONGEST_OUTAGE_S:
            return moment.end + outage_s
        self.now = moment.at + _LONGEST_OUTAGE_S
        message = "the stores do not reach each other; propose the move again"
        return EffectFailed(effect=effect, at=self.now, error_kind="Unavailable", message=message)

    def kill_conductor(self, _effect: EffectName, moment: Moment) -> Event | float:
        """The effect goes on without it; a new conductor folds the journal and sees its end."""
        self.saga = fold(self.ask.plan, self.events)
        self.due["conductor"] += CONDUCTOR_BACK_S
        return max(moment.end, moment.at + CONDUCTOR_BACK_S)

    # -- drawing and counting --------------------------------------------------------------

    def _drawn(self, seconds: float, sigma: float) -> float:
        factor = self.takes.gauss(0.0, 1.0)
        return seconds * math.exp(self.spread * sigma * factor)

    def _exponential(self, draw: random.Random, mean_s: float) -> float:
        return -math.log(1.0 - draw.random()) * mean_s

    def _after(self, kind: str, at: float) -> float:
        """When trouble of a kind comes next; drawn also where it never does."""
        rate = getattr(self.odds.hazards, kind)
        wait_s = self._exponential(self.trouble, HOUR_S)
        return at + wait_s / rate if rate else math.inf

    def cost_micro_usd(self) -> int:
        """What the move has cost by now: bytes, the target until it trains, the source waiting."""
        bill = self.ask.plan.bill
        once = sum(
            item.amount_micro_usd for item in bill.items if item.kind in ("egress", "requests")
        )
        source, target = self.ask.price_micro_usd_per_h
        until = min(self.now, self.arrived_at)
        waited_s = self.saga.pause_s
        if waited_s is None:
            waited_s = until - self.saga.drained_at if self.saga.drained_at else 0.0
        spent = for_duration(target, until - self.begun) + for_duration(source, waited_s)
        return round(once * self.carried) + spent

    def _ending(self) -> Ending:
        return Ending(
            moved=self.saga.phase == "source_retired",
            pause_s=self.saga.pause_s,
            cost_micro_usd=self.cost_micro_usd(),
            finish_s=self.now - self.begun,
            lost_steps=self.source_down_at is not None,
            asked_again=bool(self.saga.earlier),
        )


Reaction = Callable[[Future, EffectName, Moment], Event | float]
_REACTIONS: dict[str, Reaction] = {
    "source": Future.lose_source,
    "target": Future.lose_target,
    "source_notice": Future.notice_source,
    "target_notice": Future.notice_target,
    "link": Future.cut_link,
    "conductor": Future.kill_conductor,
}


def proposed(ask: FuturesAsk) -> Saga:
    """The move as it waits for its decision: where every future begins.

    Raises:
        UsageError: The plan does not carry its own digest.
    """
    return start(ask.plan)
