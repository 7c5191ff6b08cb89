"""One move of one run: its saga driven, its attempts billed, its receipt written."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import msgspec

from cloudshift_lab.conductor.asking import (
    Held,
    in_quiet_hours,
    outlives_quiet_hours,
    question_s,
)
from cloudshift_lab.conductor.driver import MigrationDriver
from cloudshift_lab.conductor.effects import MoveEffects
from cloudshift_lab.conductor.fares import Fares, ends_of
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.maintenance import Maintenance
from cloudshift_lab.conductor.places import Places
from cloudshift_lab.conductor.pricebook import PriceBook
from cloudshift_lab.conductor.pricing import limit_of, move_lines, price_source, reprice
from cloudshift_lab.conductor.receipts import Receipts
from cloudshift_lab.conductor.records import (
    AttemptEnded,
    AttemptStarted,
    MoveOpened,
    RunRecord,
)
from cloudshift_lab.conductor.side import job_of_try
from cloudshift_lab.core.approval import (
    ApprovalRule,
    Judgement,
    judge,
    parse,
    second_of_day,
    zone_of,
)
from cloudshift_lab.core.errors import StaleDecision, UsageError
from cloudshift_lab.core.plan import Bill, Decision, Fallback, Futures, Going, Phase, Plan
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.market.bill import MoveInputs, price_move
from cloudshift_lab.market.lines import for_duration
from cloudshift_lab.migration import Effect, EffectDone, EffectFailed, Saga, pending
from cloudshift_lab.storage.store import Store

_EVENTS_PER_TICK = 20
_FINISH_AGAIN_S = 20.0
_NEVER_BEGAN: frozenset[Phase] = frozenset({"rejected", "expired"})


class Surroundings:
    """What every run of one conductor shares.

    Args:
        root: State directory.
        places: Clouds and their stores.
        engine: Where agents run.
        world: Clock.
    """

    def __init__(self, root: Path, places: Places, engine: Engine, world: World) -> None:
        self.root = root
        self.places = places
        self.engine = engine
        self.world = world
        self.maintenance = Maintenance(root, world)
        self.prices = PriceBook(root, places, world)

    def cordoned(self) -> tuple[str, ...]:
        """Machines on which nothing new is started."""
        return tuple(sorted(self.maintenance.cordoned()))

    def run_folder(self, run_id: str) -> Path:
        """Where everything about a run is kept."""
        return self.root / "runs" / run_id


class Move:
    """One migration of one run. ``tick`` is for one thread at a time.

    Args:
        opened: The run journal's line about it.
        record: The run.
        around: What the conductor shares.
        lock: Guards the run's record and this saga.
        plan: Given when the move is new; it is then kept before anything else.
    """

    def __init__(
        self,
        opened: MoveOpened,
        record: RunRecord,
        around: Surroundings,
        *,
        lock: threading.RLock,
        plan: Plan | None = None,
    ) -> None:
        self.opened = opened
        self._record = record
        self._around = around
        self._lock = lock
        self._finish_at = float("-inf")
        folder = around.run_folder(record.run_id)
        self._receipts = Receipts(folder / "receipts", record.run_id)
        journal = Journal(journal_path(folder, opened.migration_id))
        if plan is None:
            plan = MigrationDriver.plan_in(journal)
        source = record.attempts[plan.generation].job
        self._effects = MoveEffects(
            source, opened.target_job, around.engine, around.places.store, around.world,
            reprice=None if opened.inputs is None else self._reprice,
        )  # fmt: skip
        self._going_of: str | None = None
        self._is_written = self.receipt_key() is not None
        self._rule = parse(record.spec.approve)
        self._fares = Fares(opened, around.places)
        self.judgement: Judgement | None = None
        self.futures: Futures | None = None
        self.driver = MigrationDriver.propose(
            plan, journal, self, around.world, lock=lock,
            meter=self.spent_micro_usd, carried=self.carried_bytes,
        )  # fmt: skip

    @property
    def saga(self) -> Saga:
        return self.driver.saga

    @property
    def plan(self) -> Plan:
        return self.driver.saga.plan

    @property
    def going(self) -> Going | None:
        """How far the pending effect is, as far as that is known."""
        return None if self.saga.effect is None else self._effects.going

    @property
    def generations(self) -> range:
        """Of every target this move has tried, the present one last."""
        first = self.opened.target_job.generation
        return range(first, first + self.saga.tries + 1)

    @property
    def waiting(self) -> str:
        """Why a plan is not decided yet, by the run's own rule."""
        if self.judgement is None or not self.saga.awaits_decision:
            return ""
        return self.judgement.because

    @property
    def is_open(self) -> bool:
        """A decision or an effect is still to come."""
        return not self.saga.is_final

    @property
    def is_under_way(self) -> bool:
        """Between its decision and its end: the saga alone judges both attempts now."""
        return self.is_open and self.saga.phase != "proposed"

    @property
    def is_done(self) -> bool:
        """Nothing is left to do, not even sending the receipt."""
        return self.saga.is_final and (
            self.saga.phase in _NEVER_BEGAN or self.receipt_key() is not None
        )

    @property
    def has_receipt(self) -> bool:
        """Whether this conductor wrote one, or found it sent."""
        return self._is_written

    def receipt_key(self) -> str | None:
        """Where the receipt lies in the bucket, once it does."""
        return self._receipts.sent_key(self.opened.migration_id)

    @property
    def inputs(self) -> MoveInputs | None:
        """What its bill is computed from where it goes now; None when that is not known."""
        place = ends_of(self.plan, self.saga.fallbacks_used, self.saga.moved_to)[0]
        return self._fares.inputs_at(self.plan, place)

    def tick(self) -> bool:
        """Push the move on; True when something changed.

        Raises:
            Exhausted: A journal's disk is full; nothing is lost, tick again.
        """
        changed = self.judge()
        for _ in range(_EVENTS_PER_TICK):
            self._bill_target()
            if not self.driver.tick():
                break
            changed = True
        now = self._around.world.monotonic()
        if self.saga.is_final and not self.is_done and now >= self._finish_at:
            self._finish_at = now + _FINISH_AGAIN_S
            self._finish()
            changed = True
        return changed

    def judge(self) -> bool:
        """Let the run's own rule decide, if it has something to say; True when it did."""
        if not self.saga.awaits_decision or self._has_judged(self.plan):
            return False
        now = self._around.world.now()
        found = self._within_limit(self._judged(now), now)
        is_news = self.judgement is None or found.because != self.judgement.because
        self.judgement = found
        if found.verdict not in ("approve", "refuse"):
            return is_news
        try:
            self.driver.decide(
                Decision(
                    decision_id=f"policy-{self.plan.digest[:16]}",
                    plan_digest=self.plan.digest,
                    verdict="approve" if found.verdict == "approve" else "reject",
                    by=_by_rule(self._rule, found, is_refused=found.verdict == "refuse"),
                    at=now,
                )
            )
        except StaleDecision:
            return False  # somebody was faster, or it has just expired: the next tick sees it
        return True

    def _within_limit(self, found: Judgement, now: float) -> Judgement:
        """Let a target wait through quiet hours only where that is paid for."""
        saga = self.saga
        is_held = found.verdict == "later" and saga.phase == "asking"
        if not is_held or not outlives_quiet_hours(self._rule, saga, now):
            return found
        started = self._record.attempts[self.generations[-1]].started
        held = Held(started.price_micro_usd_per_h, self.spent_micro_usd(saga))
        return in_quiet_hours(found, saga, held, now)

    def _judged(self, now: float) -> Judgement:
        """What the rule says to the place it likes least, of all where the move may end."""
        ends = ends_of(self.plan, self.saga.fallbacks_used, self.saga.moved_to)
        found = [self._judged_at(place, now) for place in ends]
        for place, judgement in zip(ends[1:], found[1:], strict=True):
            if found[0].verdict == "approve" != judgement.verdict:
                words = f"{judgement.because} (should it go to {place.placement.target})"
                return replace(judgement, because=words)
        return found[0]

    def _judged_at(self, place: Fallback, now: float) -> Judgement:
        plan = self.plan
        if place.placement != self.saga.target:
            inputs = self._fares.inputs_at(plan, place)
            bill = plan.bill if inputs is None else price_move(inputs)
            plan = msgspec.structs.replace(plan, bill=bill)
        price = self._fares.price(place)
        return judge(
            self._rule,
            plan,
            second_of_day(now),
            price_micro_usd_per_h=price,
            zone=zone_of(now),
            is_sold=price is not None,
            is_worse=self.saga.phase == "asking",
        )

    def _has_judged(self, plan: Plan) -> bool:
        """A rule approves a plan once; where several must approve, people do the rest."""
        return any(one.decision_id == f"policy-{plan.digest[:16]}" for one in self.saga.approvals)

    def spent_micro_usd(self, saga: Saga) -> int:
        """What the move has cost so far, counted as its bill counts.

        Its targets' time until one trains, the source's while nobody did, bytes and requests.
        """
        now = saga.timeline[-1].at if saga.is_final else self._around.world.now()
        clouds = {cloud.name: cloud for cloud in self._around.places.clouds().clouds}
        carried = saga.bytes_moved + self.carried_bytes(saga)
        lines = move_lines(
            msgspec.structs.replace(saga, bytes_moved=carried),
            clouds,
            egress_used_bytes=0
            if (known := self.opened.inputs) is None
            else known.egress_used_bytes,
        )
        carrying = sum(line.amount_micro_usd for line in lines)
        return carrying + self._targets_micro_usd(saga, now) + self._pause_micro_usd(saga, now)

    def carried_bytes(self, saga: Saga) -> int:
        """What the pending effect has carried so far, as was last heard of it."""
        going = self._effects.going
        keys = [effect.key for effect in pending(saga)]
        return going.done_bytes if going is not None and keys == [self._going_of] else 0

    def _pause_micro_usd(self, saga: Saga, now: float) -> int:
        """The source's time while nobody trains."""
        if saga.drained_at is None:
            return 0
        pause_s = now - saga.drained_at if saga.pause_s is None else saga.pause_s
        inputs = self.opened.inputs
        if inputs is None:
            price = self._record.attempts[saga.plan.generation].started.price_micro_usd_per_h
        else:
            price = inputs.source_micro_usd_per_h
        return for_duration(price, max(0.0, pause_s))

    def _targets_micro_usd(self, saga: Saga, until: float) -> int:
        if saga.is_committed and saga.drained_at is not None and saga.pause_s is not None:
            until = min(until, saga.drained_at + saga.pause_s)
        attempts = self._record.attempts
        return sum(
            attempts[generation].cost_micro_usd(until)
            for generation in self.generations
            if generation in attempts
        )

    def _reprice(self, saga: Saga, source_step_s: float, target_step_s: float) -> Bill:
        return reprice(
            self._inputs_of(saga),
            source_step_s=source_step_s,
            target_step_s=target_step_s,
            num=saga.plan.rehearsal_steps,
        )

    def _inputs_of(self, saga: Saga) -> MoveInputs:
        """What the bill of the present try is computed from.

        Raises:
            UsageError: Its place is not sold any more.
        """
        place = ends_of(saga.plan, saga.fallbacks_used, saga.moved_to)[0]
        inputs = self._fares.inputs_at(saga.plan, place)
        if inputs is None:
            raise UsageError(
                f"{place.placement.target} is not sold any more, so the move has no price there; "
                "put its offer back into clouds.json, or propose the move elsewhere"
            )
        return inputs

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        """Push an effect on; a target that came up elsewhere brings the bill of its own place."""
        outcome = self._effects.run(effect, saga)
        self._going_of = effect.key
        if not isinstance(outcome, EffectDone) or self.opened.inputs is None:
            return outcome
        try:
            if effect.name == "provision" and saga.moved_to is not None:
                outcome = msgspec.structs.replace(outcome, bill=price_move(self._inputs_of(saga)))
            return outcome if outcome.bill is None else self._to_be_asked(outcome, outcome.bill)
        except UsageError as error:
            return EffectFailed(effect.name, outcome.at, "UsageError", error.message)

    def _to_be_asked(self, outcome: EffectDone, bill: Bill) -> EffectDone:
        """Say what approving a new bill would allow, and how long it may be approved.

        A limit that a person gave stays; one that came from a bill comes from the new one, and
        never takes back what was approved.
        """
        saga, limit = self.saga, None
        if not self.opened.limit_given:
            limit = max(saga.limit_micro_usd, limit_of(bill, self._inputs_of(saga)))
        ask_s = question_s(self._rule, outcome.at)
        return msgspec.structs.replace(outcome, limit_micro_usd=limit, ask_s=ask_s)

    def _bill_target(self) -> None:
        """The target costs money from before it is asked for: the journal knows it first.

        One that was given up costs nothing any more once the next one begins.
        """
        if self.saga.effect != "provision":
            return
        with self._lock:
            now = self._around.world.now()
            for generation in self.generations[:-1]:
                self._end_attempt(generation, now)
            if self.generations[-1] not in self._record.attempts:
                self._record.keep(self._attempt(now))

    def _attempt(self, now: float) -> AttemptStarted:
        """The present try's attempt, at its own place's price."""
        opened, saga = self.opened, self.saga
        if saga.moved_to is None:
            price, source = opened.price_micro_usd_per_h, opened.price_source
        else:
            offer, found = self._fares.offer(saga.moved_to), self._fares.price(saga.moved_to)
            price = opened.price_micro_usd_per_h if found is None else found
            source = "not sold any more" if offer is None else price_source(offer)
        return AttemptStarted(
            job=job_of_try(opened.target_job, saga),
            at=now,
            price_micro_usd_per_h=price,
            price_source=source,
            simulated=opened.simulated,
            migration_id=opened.migration_id,
        )

    def _finish(self) -> None:
        """End the attempts that lost their place; write the receipt and send it."""
        saga = self.saga
        with self._lock:
            for generation in self._losers(saga.phase):
                self._end_attempt(generation, saga.timeline[-1].at)
        if saga.phase in _NEVER_BEGAN:
            return
        actual = self.spent_micro_usd(saga)
        self._receipts.write(saga, at=self._around.world.now(), actual_micro_usd=actual)
        self._is_written = True
        self._receipts.send(self.opened.migration_id, self._home_store())

    def _home_store(self) -> Store:
        plan, saga = self.plan, self.saga
        if saga.is_committed:
            return self._around.places.store(saga.target.cloud, saga.target_url)
        return self._around.places.store(plan.source.cloud, plan.source_url)

    def _losers(self, phase: Phase) -> tuple[int, ...]:
        if phase == "source_retired":
            return (self.plan.generation, *self.generations[:-1])
        return tuple(self.generations) if phase == "rolled_back" else ()

    def _end_attempt(self, generation: int, at: float) -> None:
        attempt = self._record.attempts.get(generation)
        if attempt is not None and attempt.ended_at is None:
            self._record.keep(AttemptEnded(generation=generation, at=at))


def _by_rule(rule: ApprovalRule, found: Judgement, *, is_refused: bool) -> str:
    """Who decided: the rule as it is written, with the figures that it was about."""
    if is_refused:
        return f"{rule.by} ({found.because})"
    figures = found.because.partition(": ")[2]
    return f"{rule.by} ({figures})" if rule.has_conditions else rule.by


def journal_path(folder: Path, migration_id: str) -> Path:
    """A migration's journal below its run's folder."""
    return folder / "migrations" / f"{migration_id}.jsonl"


def target_job(
    source: JobSpec, plan: Plan, *, generation: int, workdir: Path, owner_id: str,
    exclude: tuple[str, ...] = (),
) -> JobSpec:  # fmt: skip
    """The standby job that a move starts at its target; ``owner_id`` is used once in the world."""
    return JobSpec(
        run_id=source.run_id,
        generation=generation,
        owner=f"{source.run_id}:{plan.migration_id}:{owner_id}",
        placement=plan.target,
        store_url=plan.target_url,
        script=source.script,
        home=source.home,
        workdir=str(workdir),
        seed=source.seed,
        save_policy=source.save_policy,
        keep=source.keep,
        args=source.args,
        env=source.env,
        python=source.python,
        standby=True,
        source_cloud=plan.source.cloud,
        source_url=plan.source_url,
        conductor_home=source.conductor_home,
        restarts=source.restarts,
        spare=source.spare,
        exclude=exclude,
    )
