"""The saga against a model of the world in which anything can fail, crash or be late."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import (
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    fold,
    pending,
    start,
    step,
)
from cloudshift_lab.sim.plans import EXPIRES_AT, sample_decision, sample_plan

KINDS = st.sampled_from(["Unavailable", "Denied", "Corrupt", "Exhausted", "NotFound"])
NAMES = st.sampled_from(EffectName.__args__)  # type: ignore[attr-defined]


class AnyWorld(RuleBasedStateMachine):
    """Source, target and log as they really are, beside what the saga believes."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = sample_plan()
        self.saga = start(self.plan)
        self.journal: list[Event] = []
        self.clock = self.plan.created_at
        self.source_runs = True
        self.target_runs = False
        self.handed_over = False
        self.cancelled = False
        self.was_committed = False

    def tell(self, event: Event) -> None:
        self.journal.append(from_json(to_json(event), Event))  # type: ignore[arg-type]
        before = self.saga
        self.saga, effects = step(self.saga, event)
        assert effects in ((), pending(self.saga))
        if before.is_final:
            assert self.saga == before

    def later(self) -> float:
        self.clock += 1.0
        return self.clock

    def act(self, name: EffectName) -> bool:
        """Let an effect happen in the world; False when the log refuses it."""
        if name == "drain":
            self.source_runs = False
        elif name == "commit":
            if self.cancelled:
                return False
            self.handed_over = True
        elif name == "cancel":
            if self.handed_over:
                return False
            self.cancelled = True
        elif name == "resume":
            self.source_runs = True
        elif name == "go":
            self.target_runs = True
        elif name == "retire":
            self.source_runs = False
        return True

    def done(self, name: EffectName) -> EffectDone:
        return EffectDone(name, self.later(), step=7 if name == "drain" else None)

    @initialize(num_done=st.integers(-1, 8))
    def somewhere_on_the_way(self, num_done: int) -> None:
        if num_done >= 0:
            self.decide("approve")
        for _ in range(num_done):
            self.effect_succeeds()

    def teardown(self) -> None:
        """From wherever we are, a world that answers truthfully brings the move to its end."""
        if self.saga.phase == "proposed":
            return
        for _ in range(20):
            if self.saga.effect is not None:
                self.effect_succeeds()
        assert self.saga.is_final
        self.the_end_fits_the_log()

    @rule(verdict=st.sampled_from(["approve", "approve", "approve", "reject"]))
    def decide(self, verdict: str) -> None:
        decision = sample_decision(self.plan, verdict)  # type: ignore[arg-type]
        self.tell(Decided(decision, self.later()))

    @rule(late=st.booleans())
    def decide_on_another_plan_or_too_late(self, late: bool) -> None:
        decision = sample_decision(self.plan, decision_id="dec-9")
        if not late:
            decision = msgspec.structs.replace(decision, plan_digest="0" * 64)
        at = EXPIRES_AT + 5.0 if late else self.later()
        before = self.saga
        self.tell(Decided(decision, at))
        assert self.saga == before

    @rule(really=st.integers(0, 9))
    def expire(self, really: int) -> None:
        self.tell(Expired(EXPIRES_AT if really == 0 else self.later()))

    @rule(often=st.integers(0, 5))
    def abort(self, often: int) -> None:
        if often == 0:
            self.tell(Aborted(self.later()))

    @precondition(lambda self: self.saga.effect is not None)
    @rule()
    def effect_succeeds(self) -> None:
        name = self.saga.effect
        assert name is not None
        if self.act(name):
            self.tell(self.done(name))
        else:
            self.tell(EffectFailed(name, self.later(), "Fenced", "the log moved on"))

    @precondition(lambda self: self.saga.effect is not None)
    @rule(kind=KINDS, happened=st.booleans())
    def effect_fails_or_seems_to(self, kind: str, happened: bool) -> None:
        name = self.saga.effect
        assert name is not None
        if happened:
            self.act(name)
        self.tell(EffectFailed(name, self.later(), kind, "no answer"))

    @precondition(lambda self: self.saga.effect is not None)
    @rule()
    def effect_happens_and_the_conductor_dies_before_it_knows(self) -> None:
        assert self.saga.effect is not None
        self.act(self.saga.effect)
        self.restart()

    @rule()
    def restart(self) -> None:
        restarted = fold(self.plan, self.journal)
        assert restarted == self.saga
        assert pending(restarted) == pending(self.saga)

    @precondition(lambda self: len(self.journal) > 0)
    @rule(index=st.integers(0, 1_000))
    def an_old_event_is_journalled_again(self, index: int) -> None:
        event = self.journal[index % len(self.journal)]
        if not isinstance(event, EffectDone | EffectFailed) or event.effect != self.saga.effect:
            before = self.saga
            self.tell(event)
            late_commit = isinstance(event, EffectDone) and event.effect == "commit"
            assert self.saga == before or late_commit

    @precondition(lambda self: self.saga.is_final is False)
    @rule(name=NAMES)
    def an_outcome_of_another_effect_arrives(self, name: EffectName) -> None:
        if name != self.saga.effect and name != "commit":
            before = self.saga
            self.tell(self.done(name))
            self.tell(EffectFailed(name, self.later(), "Fenced", "late"))
            assert self.saga == before

    @invariant()
    def never_both_run(self) -> None:
        assert not (self.source_runs and self.target_runs)

    @invariant()
    def target_runs_only_as_owner(self) -> None:
        assert self.handed_over or not self.target_runs

    @invariant()
    def never_back_after_the_commit(self) -> None:
        if self.saga.is_committed:
            assert self.handed_over
            self.was_committed = True
        if self.was_committed:
            assert self.saga.is_committed

    @invariant()
    def never_stuck(self) -> None:
        assert (self.saga.phase == "proposed") or self.saga.is_final or pending(self.saga)

    @invariant()
    def the_end_fits_the_log(self) -> None:
        if self.saga.phase == "source_retired":
            assert self.handed_over and self.target_runs
        if self.saga.phase == "rolled_back":
            assert self.cancelled and not self.handed_over and not self.target_runs


AnyWorld.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyWorld.TestCase
