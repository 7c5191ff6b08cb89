"""The saga against a model of the world in which anything can fail, crash or be late."""

from __future__ import annotations

from typing import get_args

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

from cloudshift_lab.core.plan import MissingNodesPolicy, Plan
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration import (
    Aborted,
    Decided,
    EffectDone,
    EffectFailed,
    EffectName,
    Event,
    Expired,
    Noticed,
    Overspent,
    fold,
    pending,
    start,
    step,
)
from cloudshift_lab.sim.plans import (
    EXPIRES_AT,
    Wanted,
    sample_bill,
    sample_decision,
    sample_fallback,
    sample_plan,
)

KINDS = st.sampled_from(
    ["Unavailable", "Denied", "Corrupt", "Exhausted", "NotFound", "Mismatch", "NodesMissing"]
)
NAMES = st.sampled_from(get_args(EffectName))
PEOPLE = st.sampled_from(["ada", "bob", "eve"])
UNDOING = ("cancel", "resume", "release")
AT_TARGET = ("provision", "precopy", "rehearse", "copy", "verify", "catch_up")
NODES = 4


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    steps = draw(st.sampled_from([0, 0, 3]))
    return Wanted(
        closing=draw(st.sampled_from(["copy", "replay"])) if steps else "copy",
        rehearsal_steps=steps,
        missing_nodes=draw(st.sampled_from(get_args(MissingNodesPolicy))),
        nodes=NODES,
        min_nodes=draw(st.integers(1, NODES)),
        fallbacks=(sample_fallback("azure-sim"), sample_fallback("ovh-sim"))[
            : draw(st.integers(0, 2))
        ],
        limit_micro_usd=1_000,
        approvals_needed=draw(st.sampled_from([1, 1, 2])),
    )


class AnyWorld(RuleBasedStateMachine):
    """Source, targets and log as they really are, beside what the saga believes."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: Plan = sample_plan()
        self.saga = start(self.plan)
        self.journal: list[Event] = []
        self.clock = self.plan.created_at
        self.source_runs = True
        self.target_runs = False
        self.sealed = False
        self.proven_by: int | None = None  # the try whose target holds the sealed state, proved
        self.provisioned: set[int] = set()  # tries whose target is up
        self.rehearsed: set[int] = set()
        self.handed_over = False
        self.cancelled = False
        self.was_committed = False
        self.was_overspent = False

    def tell(self, event: Event) -> None:
        self.journal.append(from_json(to_json(event), Event))  # type: ignore[arg-type]
        before = self.saga
        self.saga, effects = step(self.saga, event)
        assert effects in ((), pending(self.saga))
        if before.is_final:
            assert self.saga == before
        if before.phase == "asking" and self.saga.phase not in ("asking", "rolling_back"):
            assert isinstance(event, Decided) and event.decision.verdict == "approve"

    def later(self) -> float:
        self.clock += 1.0
        return self.clock

    def act(self, name: EffectName) -> bool:
        """Let an effect happen in the world; False when the log refuses it."""
        if name in AT_TARGET:
            self.act_at_target(name)
        elif name == "drain":
            self.source_runs, self.sealed = False, True
        elif name == "resume":
            assert self.cancelled and not self.handed_over
            self.source_runs = True
        elif name == "go":
            self.target_runs = True
        elif name == "retire":
            self.source_runs = False
        return self.ask_log(name)

    def act_at_target(self, name: EffectName) -> None:
        tries = self.saga.tries
        assert name == "provision" or tries in self.provisioned
        if name == "provision":
            self.provisioned.add(tries)
        elif name == "rehearse":
            self.rehearsed.add(tries)
        elif name in ("verify", "catch_up"):
            assert self.sealed
            assert name == "verify" or tries in self.rehearsed
            self.proven_by = tries

    def ask_log(self, name: EffectName) -> bool:
        if name == "commit":
            assert self.sealed and self.proven_by == self.saga.tries
            if self.cancelled:
                return False
            self.handed_over = True
        elif name == "cancel":
            if self.handed_over:
                return False
            self.cancelled = True
        return True

    def done(self, name: EffectName) -> EffectDone:
        return EffectDone(name, self.later(), step=7 if name == "drain" else None)

    @initialize(num_done=st.integers(-1, 9), wants=wanted())
    def somewhere_on_the_way(self, num_done: int, wants: Wanted) -> None:
        self.plan = sample_plan(wanted=wants)
        self.saga = start(self.plan)
        if num_done >= 0:
            for index, by in enumerate(["ada", "bob"][: wants.approvals_needed]):
                decision = sample_decision(self.plan, by=by, decision_id=f"dec-{index}")
                self.tell(Decided(decision, self.later()))
        for _ in range(num_done):
            if self.saga.effect is not None:
                self.effect_succeeds()

    def teardown(self) -> None:
        """From wherever we are, a world that answers truthfully brings the move to its end."""
        if self.saga.awaits_decision:
            self.tell(Expired(self.saga.plan.expires_at))
        for _ in range(20):
            if self.saga.effect is not None:
                self.effect_succeeds()
        assert self.saga.is_final
        self.the_end_fits_the_log()

    @rule(verdict=st.sampled_from(["approve", "approve", "approve", "reject"]), by=PEOPLE)
    def decide(self, verdict: str, by: str) -> None:
        name = f"{by}-{verdict}-{len(self.journal)}"
        decision = sample_decision(self.saga.plan, verdict, by=by, decision_id=name)  # type: ignore[arg-type]
        self.tell(Decided(decision, self.later()))

    @rule(late=st.booleans())
    def decide_on_another_plan_or_too_late(self, late: bool) -> None:
        decision = sample_decision(self.saga.plan, decision_id="dec-9", by="zoe")
        if not late:
            decision = msgspec.structs.replace(decision, plan_digest="0" * 64)
        at = self.saga.plan.expires_at + 5.0 if late else self.later()
        before = self.saga
        self.tell(Decided(decision, at))
        assert self.saga == before

    @rule(really=st.integers(0, 9))
    def expire(self, really: int) -> None:
        at = max(EXPIRES_AT, self.saga.plan.expires_at)
        self.tell(Expired(at if really == 0 else self.later()))

    @rule(often=st.integers(0, 5))
    def abort(self, often: int) -> None:
        if often == 0:
            self.tell(Aborted(self.later()))

    @rule(side=st.sampled_from(["source", "source", "target"]), often=st.integers(0, 3))
    def a_machine_will_go(self, side: str, often: int) -> None:
        if often == 0:
            before = self.saga
            self.tell(Noticed(side, self.later(), self.clock + 30.0))  # type: ignore[arg-type]
            if side == "source" and before.effect in ("provision", "precopy", "rehearse"):
                assert self.saga.effect == (before.effect if before.is_sealed else "drain")

    @rule(often=st.integers(0, 5))
    def too_much_was_spent(self, often: int) -> None:
        if often == 0 and not self.saga.is_final:
            before = self.saga
            self.tell(Overspent(self.later(), 1_001))
            spends = before.effect is not None and before.effect not in UNDOING
            if (spends and not before.is_committed) or before.phase == "asking":
                self.was_overspent = True

    @precondition(lambda self: self.saga.effect is not None)
    @rule()
    def effect_succeeds(self) -> None:
        name = self.saga.effect
        assert name is not None
        if self.act(name):
            self.tell(self.done(name))
        else:
            self.tell(EffectFailed(name, self.later(), "Fenced", "the log moved on"))

    @precondition(lambda self: self.saga.effect in ("precopy", "rehearse"))
    @rule(total=st.sampled_from([-5_000_000, 0, 90, 900_000, 2_000_000, 40_000_000]))
    def what_was_measured_changes_the_bill(self, total: int) -> None:
        name = self.saga.effect
        assert name is not None
        approved = self.saga.plan.bill.total_micro_usd
        self.act(name)
        self.tell(msgspec.structs.replace(self.done(name), bill=sample_bill(total)))
        worse_by = total - approved
        is_worse = worse_by > abs(approved) / 10 or approved < 0 <= total
        assert (self.saga.phase == "asking") == (worse_by > 1_000_000 and is_worse)

    @precondition(lambda self: self.saga.effect is not None)
    @rule(kind=KINDS, happened=st.booleans(), nodes_up=st.integers(0, NODES))
    def effect_fails_or_seems_to(self, kind: str, happened: bool, nodes_up: int) -> None:
        name = self.saga.effect
        assert name is not None
        if happened:
            self.act(name)
        self.tell(EffectFailed(name, self.later(), kind, "no answer", nodes_up))

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
        is_outcome = isinstance(event, EffectDone | EffectFailed)
        if isinstance(event, Decided) or (is_outcome and event.effect != self.saga.effect):
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
    def never_a_commit_without_seal_and_proof(self) -> None:
        if self.saga.effect == "commit":
            assert self.sealed and self.proven_by == self.saga.tries

    @invariant()
    def nothing_is_done_that_was_not_approved(self) -> None:
        effect = self.saga.effect
        if effect is None or effect in UNDOING:
            return
        assert self.saga.decision is not None
        assert self.saga.decision.plan_digest == self.saga.plan.digest
        counted = [a for a in self.saga.approvals if a.plan_digest == self.saga.plan.digest]
        assert len({a.by for a in counted}) >= self.saga.plan.approvals_needed

    @invariant()
    def nothing_is_spent_after_too_much_was(self) -> None:
        if self.was_overspent and not self.handed_over and self.saga.effect is not None:
            assert self.saga.effect in UNDOING

    @invariant()
    def targets_are_not_tried_for_ever(self) -> None:
        assert self.saga.tries <= 4 + NODES + len(self.plan.fallbacks)

    @invariant()
    def never_back_after_the_commit(self) -> None:
        if self.saga.is_committed:
            assert self.handed_over
            self.was_committed = True
        if self.was_committed:
            assert self.saga.is_committed

    @invariant()
    def never_stuck(self) -> None:
        assert self.saga.awaits_decision or self.saga.is_final or pending(self.saga)

    @invariant()
    def the_end_fits_the_log(self) -> None:
        if self.saga.phase == "source_retired":
            assert self.handed_over and self.target_runs
        if self.saga.phase == "rolled_back":
            assert self.cancelled and not self.handed_over and not self.target_runs
        if self.saga.partial is not None and self.saga.is_committed:
            assert self.saga.target.nodes < NODES


AnyWorld.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyWorld.TestCase
