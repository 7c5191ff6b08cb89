"""Those who decide on one move, and those who take machines away, as its conductor hears them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.core.errors import StaleDecision
from cloudshift_lab.core.plan import Plan, Verdict
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Saga, SideName
from cloudshift_lab.sim.plans import sample_decision
from cloudshift_lab.sim.watch import Report

_NAMES = ("ada", "bob")


@dataclass(frozen=True)
class Notice:
    """A machine of one side goes at ``deadline_s``, virtual seconds."""

    side: SideName
    deadline_s: float


@dataclass(frozen=True)
class Click:
    """One person's answer to a plan, at ``at_s`` virtual seconds at the earliest."""

    at_s: float
    by: str
    verdict: Verdict


@dataclass
class People:
    """What is clicked and said, drawn beforehand; who heard it before a crash hears it again.

    Args:
        plan: The move's first plan.
        random: Draws the answers to a new bill.
        clicks: Answers to the first plan.
        abort_at_s: When the run is stopped; None: never.
    """

    plan: Plan
    random: random.Random
    clicks: list[Click] = field(default_factory=list)
    abort_at_s: float | None = None
    notices: list[Notice] = field(default_factory=list)
    approvers: dict[str, set[str]] = field(default_factory=dict)
    _heard: int = 0

    def __post_init__(self) -> None:
        self._shown = self.plan.digest

    def approved(self, plan: Plan) -> bool:
        """Whether as many people as the plan needs have approved exactly this plan."""
        return len(self.approvers.get(plan.digest, ())) >= plan.approvals_needed

    def act(self, driver: MigrationDriver, world: World, report: Report) -> None:
        """Everything that is due now; nothing counts as said before the driver has kept it."""
        now = world.monotonic()
        if self.abort_at_s is not None and now > self.abort_at_s:
            driver.abort("the run is being stopped")
            self.abort_at_s = None
        while self._heard < len(self.notices):
            notice = self.notices[self._heard]
            driver.notice(notice.side, world.now() + notice.deadline_s - now)
            self._heard += 1
        self._look_at_new_plan(driver.saga, now)
        while self.clicks and now >= self.clicks[0].at_s:
            self._click(driver, self.clicks[0], report)
            self.clicks.pop(0)

    def _look_at_new_plan(self, saga: Saga, now: float) -> None:
        """Somebody sees the new bill after a while, or never does."""
        if saga.phase != "asking" or saga.plan.digest == self._shown:
            return
        self._shown, self.clicks = saga.plan.digest, []
        draw = self.random.random()
        if draw < 0.8:
            verdict: Verdict = "approve" if draw < 0.65 else "reject"
            at_s = now + self.random.random() * 20.0
            self.clicks = clicks_of(saga.plan, verdict, at_s, self.random)

    def _click(self, driver: MigrationDriver, click: Click, report: Report) -> None:
        """A double click; then one on a stale tab, and one by somebody who changed his mind."""
        plan = driver.saga.plan
        mine = sample_decision(plan, click.verdict, decision_id=_id(plan, click.by), by=click.by)
        try:
            driver.decide(mine)
        except StaleDecision:
            return
        if click.verdict == "approve":
            self.approvers.setdefault(plan.digest, set()).add(click.by)
        self._again(driver, plan, click, report)

    def _again(self, driver: MigrationDriver, plan: Plan, click: Click, report: Report) -> None:
        before = driver.saga
        mine = sample_decision(plan, click.verdict, decision_id=_id(plan, click.by), by=click.by)
        stale = sample_decision(self.plan, decision_id=f"stale-{click.by}", by="zoe")
        other = sample_decision(plan, "reject", decision_id=f"other-{click.by}", by=click.by)
        tries = [mine]
        if self.plan.digest != plan.digest:
            tries.append(stale)
        if before.decision is not None:
            tries.append(other)
        for decision in tries:
            try:
                driver.decide(decision)
            except StaleDecision:
                continue
            if decision is not mine:
                report("a decision is taken once", f"{decision.decision_id} was accepted")
        if driver.saga != before:
            report("a decision is taken once", f"{mine.decision_id} counted twice")


def clicks_of(plan: Plan, verdict: Verdict, at_s: float, random: random.Random) -> list[Click]:
    """One click, or as many as a plan needs to be approved, each a little later."""
    num = plan.approvals_needed if verdict == "approve" else 1
    clicks = []
    for by in _NAMES[:num]:
        clicks.append(Click(at_s, by, verdict))
        at_s += random.random() * 10.0
    return clicks


def _id(plan: Plan, by: str) -> str:
    return f"{by}-{plan.digest[:8]}"
