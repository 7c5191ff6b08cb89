"""Planning a move of one run: what is known of it, what it would start, and for how much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from cloudshift_lab.conductor.claim import Claim, claim_run
from cloudshift_lab.conductor.forecast import Carried, Forecaster
from cloudshift_lab.conductor.moves import Move, Surroundings, target_job
from cloudshift_lab.conductor.places import placement_at
from cloudshift_lab.conductor.pricing import (
    Draft,
    Measured,
    Place,
    Terms,
    are_equal,
    handover_s,
    plan_move,
    price_source,
)
from cloudshift_lab.conductor.records import AttemptStarted, MoveOpened
from cloudshift_lab.conductor.registry import Registry
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.approval import ApprovalRule, second_of_day
from cloudshift_lab.core.asks import ClosingWish, FuturesAsk, MoveAsk
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.plan import PhaseTime, Plan
from cloudshift_lab.core.views import Series
from cloudshift_lab.migration import LOSS_TOLERANCE, Saga, with_digest
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry.store import TelemetryStore

LIVE_BY_DEFAULT = True
"""Whether a move that was not told otherwise rehearses, and weighs both closings."""
REHEARSAL_STEPS = 3
EXPIRES_S = 600.0
_MAX_EXPIRY_S = 7 * 86_400.0
_MONTH_S = 30 * 86_400.0
_MOST_REHEARSED = 1000
_MOST_APPROVALS = 9


@dataclass(frozen=True)
class Ends:
    """Where a move may end: its target, and other places in case that one does not come up."""

    target: tuple[Cloud, Offer]
    elsewhere: tuple[tuple[Cloud, Offer], ...] = ()


class MovePlanner:
    """Makes plans. Its caller lets one plan be made at a time.

    Args:
        around: What all runs share.
        registry: All runs: what earlier moves took is measured on them.
        telemetry: Speeds.
    """

    def __init__(self, around: Surroundings, registry: Registry, telemetry: TelemetryStore) -> None:
        self._around = around
        self._registry = registry
        self._telemetry = telemetry
        self._forecaster = Forecaster()

    def close(self) -> None:
        """Make no more plans."""
        self._forecaster.close()

    def look_ahead(self, tender: RunTender, target: Store) -> Carried:
        """What a move to ``target`` would carry; waits for the stores a few seconds at most."""
        source = tender.side(tender.owner).store
        return self._forecaster.ask(source, target, tender.run_id)

    def open(
        self,
        tender: RunTender,
        ask: MoveAsk,
        ends: Ends,
        *,
        rule: ApprovalRule,
        carried: Carried,
    ) -> Move:
        """Keep a new, priced plan; ``carried`` is what :meth:`look_ahead` said.

        Raises:
            Conflict, UsageError: The run cannot move now, or not in this way.
        """
        owner = tender.owner
        migration_id = f"mig-{self._next_move_number()}"
        target = self._place_at(owner, *ends.target)
        draft = plan_move(
            (migration_id, tender.run_id),
            self._place_of(owner),
            target,
            self._measure(tender, carried, target.cloud.name),
            generation=owner.job.generation,
            now=self._around.world.now(),
            terms=self._terms(owner, ask, ends, rule),
        )
        draft = _tolerant(draft, ask, is_alike=are_equal(self._place_of(owner), target))
        elsewhere = tuple(offer for _, offer in ends.elsewhere)
        return tender.open(self._opened(tender, draft, target, elsewhere), draft.plan)

    def _terms(self, owner: AttemptStarted, ask: MoveAsk, ends: Ends, rule: ApprovalRule) -> Terms:
        return Terms(
            expires_s=self._quiet_s(rule) + (ask.expires_s or rule.expires_s or EXPIRES_S),
            closing=_closing_of(ask),
            rehearsal_steps=_rehearsal_of(ask),
            missing_nodes=ask.missing_nodes,
            min_nodes=ask.min_nodes,
            elsewhere=tuple(self._place_at(owner, *each) for each in ends.elsewhere),
            limit_micro_usd=ask.limit_micro_usd,
            approvals_needed=ask.approvals or rule.approvers,
            carrier=ask.carrier,
        )

    def _quiet_s(self, rule: ApprovalRule) -> float:
        """How long nobody may be asked yet: a question must outlive that."""
        return rule.quiet_left_s(second_of_day(self._around.world.now()))

    def _place_at(self, owner: AttemptStarted, cloud: Cloud, offer: Offer) -> Place:
        """A place taken with as many nodes and ranks as the run has now."""
        now = owner.job.placement
        placement = placement_at(offer, ranks_per_node=now.ranks_per_node, nodes=now.nodes)
        return Place(cloud=cloud, offer=offer, placement=placement, url=cloud.store_url)

    def _opened(
        self, tender: RunTender, draft: Draft, target: Place, elsewhere: tuple[Offer, ...]
    ) -> MoveOpened:
        plan, generation = draft.plan, tender.record.next_generation
        folder = self._around.run_folder(tender.run_id) / "attempts" / str(generation)
        return MoveOpened(
            migration_id=plan.migration_id,
            target_job=target_job(
                tender.owner.job,
                plan,
                generation=generation,
                workdir=folder,
                owner_id=self._around.world.new_id("owner"),
                exclude=self._around.cordoned(),
            ),
            price_micro_usd_per_h=target.offer.price_micro_usd_per_h * plan.target.nodes,
            price_source=price_source(target.offer),
            simulated=target.cloud.simulated or target.offer.simulated,
            at=plan.created_at,
            inputs=draft.inputs,
            elsewhere=elsewhere,
            limit_given=draft.limit_given,
        )

    def _place_of(self, attempt: AttemptStarted) -> Place:
        """Where an attempt is; at the price it began at, when that is not sold any more."""
        placement = attempt.job.placement
        offer = self._around.places.offer_of(placement)
        return Place(
            cloud=self._around.places.clouds().find(placement.cloud),
            offer=offer or _offer_when_begun(attempt),
            placement=placement,
            url=attempt.job.store_url,
        )

    def futures_ask(self, tender: RunTender, plan: Plan) -> FuturesAsk:
        """What simulated futures of a plan are drawn from: what is known of this very run."""
        measured = self._measure(tender, Carried(None), plan.target.cloud)
        source = self._place_of(tender.owner)
        return FuturesAsk(
            plan=plan,
            step_s=measured.step_s or None,
            state_bytes=measured.state_bytes,
            bytes_per_s=measured.link_bytes_per_s,
            save_s=measured.save_s,
            provision_s=measured.provision_s,
            price_micro_usd_per_h=(
                source.offer.price_micro_usd_per_h * plan.source.nodes,
                tender.moves[plan.migration_id].opened.price_micro_usd_per_h,
            ),
        )

    def _measure(self, tender: RunTender, carried: Carried, target_cloud: str) -> Measured:
        status = tender.status
        source = tender.owner.job.placement.cloud
        all_moves = [move.saga for t in self._registry.all() for move in t.moves.values()]
        sagas = sorted(all_moves, key=lambda saga: saga.timeline[-1].at)  # runs go on side by side
        month_ago = self._around.world.now() - _MONTH_S
        curve = self._telemetry.step_curve(tender.run_id, 20)
        between = [s for s in sagas if _clouds_of(s) == (source, target_cloud)]
        arrived = [s for s in sagas if s.is_committed]
        return Measured(
            state_bytes=0 if status is None else status.state_bytes,
            stored_bytes=0 if status is None else status.stored_bytes,
            tokens_per_s=self._telemetry.throughput_tokens_per_s(tender.run_id),
            step_s=(None if status is None else status.step_s) or _step_s(curve),
            egress_used_bytes=sum(
                saga.bytes_moved
                for saga in sagas
                if saga.plan.source.cloud == source and saga.plan.created_at > month_ago
            ),
            provision_s=_newest(
                _provision_s(s.timeline)
                for s in arrived
                if s.target.cloud == target_cloud and not s.tries
            ),
            handover_s=_newest(handover_s(s) for s in arrived if s.closing == "copy"),
            still_s=_newest(s.still_s for s in arrived if s.caught_up_at is not None),
            link_bytes_per_s=_newest(saga.bytes_per_s or None for saga in between),
            save_s=None if status is None else status.saves.save_s,
            carried=carried.forecast,
            not_measured=carried.why_not,
        )

    def refuse_foreign(self, tender: RunTender, store: Store) -> None:
        """A bucket that another state directory uses may hold another run of the same id.

        If it does not, the id is ours there from now on.

        Raises:
            UsageError: It does.
        """
        attempts = tender.record.attempts.values()
        urls = {tender.side(attempt.started).store.url for attempt in attempts}
        claim = Claim(run_id=tender.run_id, owner=tender.record.created.first.job.owner)
        if store.url not in urls and not claim_run(store, claim):
            raise UsageError(
                f"{store.url} holds another {tender.run_id} already; "
                "move to another store, or give that cloud another store_url in clouds.json"
            )

    def _next_move_number(self) -> int:
        names = [name for tender in self._registry.all() for name in tender.record.moves]
        return max((int(name.removeprefix("mig-")) for name in names), default=0) + 1


def check_ask(ask: MoveAsk, *, nodes: int) -> None:
    """See that what is asked of a move can be.

    Args:
        ask: As it came in.
        nodes: That the run has.

    Raises:
        UsageError: It cannot; says what to mend.
    """
    refusals = (
        (
            ask.expires_s is not None and not 0 < ask.expires_s <= _MAX_EXPIRY_S,
            "expires_s must be above 0 and at most a week",
        ),
        (
            not 0 <= (ask.rehearse or 0) <= _MOST_REHEARSED,
            f"a move rehearses 0 to {_MOST_REHEARSED} steps, not {ask.rehearse}",
        ),
        (
            ask.closing == "replay" and ask.rehearse == 0,
            "steps are repeated by ranks that rehearsed: rehearse at least 1",
        ),
        (not 1 <= ask.min_nodes <= nodes, f"min_nodes must be 1 to {nodes}, the nodes of the run"),
        (
            ask.approvals is not None and not 1 <= ask.approvals <= _MOST_APPROVALS,
            f"1 to {_MOST_APPROVALS} can be asked to approve, not {ask.approvals}",
        ),
        (
            ask.tolerance is not None and not 0 <= ask.tolerance < 1,
            f"losses may be 0 to 1 apart, relative, not {ask.tolerance}",
        ),
        (
            ask.limit_micro_usd is not None and ask.limit_micro_usd <= 0,
            "the limit of a move must be above 0",
        ),
    )
    for is_wrong, told in refusals:
        if is_wrong:
            raise UsageError(f"{told}; mend the call")


def _offer_when_begun(attempt: AttemptStarted) -> Offer:
    placement = attempt.job.placement
    return Offer(
        cloud=placement.cloud,
        region=placement.region,
        instance_type=placement.instance_type,
        market=placement.market,
        price_micro_usd_per_h=attempt.price_micro_usd_per_h // placement.nodes,
        source=attempt.price_source,
        simulated=attempt.simulated,
    )


def _closing_of(ask: MoveAsk) -> ClosingWish:
    return "copy" if ask.closing == "auto" and not LIVE_BY_DEFAULT else ask.closing


def _rehearsal_of(ask: MoveAsk) -> int:
    if ask.rehearse is not None:
        return ask.rehearse
    return REHEARSAL_STEPS if LIVE_BY_DEFAULT or ask.closing == "replay" else 0


def _tolerant(draft: Draft, ask: MoveAsk, *, is_alike: bool) -> Draft:
    """Equal bits are held to where they are asked for, and where machines can give them."""
    asked = LOSS_TOLERANCE if ask.tolerance is None else ask.tolerance
    tolerance = asked if is_alike else max(asked, LOSS_TOLERANCE)
    plan = msgspec.structs.replace(draft.plan, tolerance=tolerance)
    return draft._replace(plan=with_digest(plan))


def _clouds_of(saga: Saga) -> tuple[str, str]:
    return saga.plan.source.cloud, saga.target.cloud


def _newest(found: Iterable[float | None]) -> float | None:
    """The last that was measured at all."""
    known = [value for value in found if value is not None]
    return known[-1] if known else None


def _provision_s(timeline: tuple[PhaseTime, ...]) -> float | None:
    """How long the first try took from being asked for to being there, seconds."""
    asked_at = next((entry.at for entry in timeline if entry.phase == "provisioning"), None)
    there_at = next((entry.at for entry in timeline if entry.phase == "precopying"), None)
    if asked_at is None or there_at is None or there_at < asked_at:
        return None
    return there_at - asked_at


def _step_s(curve: Series) -> float:
    """Seconds per step over a curve; 0 when there is none."""
    if len(curve.step) < 2 or curve.step[-1] <= curve.step[0]:
        return 0.0
    return max(0.0, (curve.at[-1] - curve.at[0]) / (curve.step[-1] - curve.step[0]))
