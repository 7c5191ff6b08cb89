"""Planning a move of one run: what is known of it, what it would start, and for how much."""

from __future__ import annotations

from cloudshift_lab.conductor.claim import Claim, claim_run
from cloudshift_lab.conductor.forecast import Carried, Forecaster
from cloudshift_lab.conductor.moves import Move, Surroundings, target_job
from cloudshift_lab.conductor.places import placement_at
from cloudshift_lab.conductor.pricing import Measured, Place, handover_s, plan_move
from cloudshift_lab.conductor.records import AttemptStarted, MoveOpened
from cloudshift_lab.conductor.registry import Registry
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.placement import Cloud, Offer
from cloudshift_lab.core.plan import PhaseTime, Plan
from cloudshift_lab.core.views import Series
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry.store import TelemetryStore

_MONTH_S = 30 * 86_400.0


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
        self, tender: RunTender, cloud: Cloud, offer: Offer, *, expires_s: float, carried: Carried
    ) -> Move:
        """Keep a new, priced plan; ``carried`` is what :meth:`look_ahead` said.

        Raises:
            Conflict, UsageError: The run cannot move now.
        """
        owner = tender.owner
        migration_id = f"mig-{self._next_move_number()}"
        target = Place(
            cloud=cloud,
            offer=offer,
            placement=placement_at(
                offer,
                ranks_per_node=owner.job.placement.ranks_per_node,
                nodes=owner.job.placement.nodes,
            ),
            url=cloud.store_url,
        )
        plan = plan_move(
            (migration_id, tender.run_id),
            self._place_of(owner),
            target,
            self._measure(tender, carried),
            generation=owner.job.generation,
            now=self._around.world.now(),
            expires_s=expires_s,
        )
        return tender.open(self._opened(tender, plan, target), plan)

    def _opened(self, tender: RunTender, plan: Plan, target: Place) -> MoveOpened:
        generation = tender.record.next_generation
        folder = self._around.run_folder(tender.run_id) / "attempts" / str(generation)
        return MoveOpened(
            migration_id=plan.migration_id,
            target_job=target_job(
                tender.owner.job,
                plan,
                generation=generation,
                workdir=folder,
                owner_id=self._around.world.new_id("owner"),
            ),
            price_micro_usd_per_h=target.offer.price_micro_usd_per_h * plan.target.nodes,
            price_source=price_source(target.offer),
            simulated=target.cloud.simulated or target.offer.simulated,
            at=plan.created_at,
        )

    def _place_of(self, attempt: AttemptStarted) -> Place:
        placement = attempt.job.placement
        return Place(
            cloud=self._around.places.clouds().find(placement.cloud),
            offer=self._around.places.offer_of(placement),
            placement=placement,
            url=attempt.job.store_url,
        )

    def _measure(self, tender: RunTender, carried: Carried) -> Measured:
        status = tender.status
        tokens_per_s = self._telemetry.throughput_tokens_per_s(tender.run_id)
        source = tender.owner.job.placement.cloud
        sagas = [move.saga for t in self._registry.all() for move in t.moves.values()]
        provisions = [_provision_s(saga.timeline) for saga in sagas]
        month_ago = self._around.world.now() - _MONTH_S
        known = [seconds for seconds in provisions if seconds is not None]
        handovers = [handover_s(saga) for saga in sagas if saga.pause_s is not None]
        return Measured(
            state_bytes=0 if status is None else status.state_bytes,
            stored_bytes=0 if status is None else status.stored_bytes,
            tokens_per_s=tokens_per_s,
            step_s=_step_s(self._telemetry.step_curve(tender.run_id, 20)),
            egress_used_bytes=sum(
                saga.bytes_moved
                for saga in sagas
                if saga.plan.source.cloud == source and saga.plan.created_at > month_ago
            ),
            provision_s=known[-1] if known else None,
            handover_s=handovers[-1] if handovers else None,
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


def price_source(offer: Offer) -> str:
    """Where a price comes from, its date and that it is simulated, each said once."""
    words = [offer.as_of, "simulated" if offer.simulated else ""]
    return ", ".join([offer.source, *(word for word in words if word not in offer.source)])


def _provision_s(timeline: tuple[PhaseTime, ...]) -> float | None:
    times = {entry.phase: entry.at for entry in timeline}
    if "provisioning" not in times or "precopying" not in times:
        return None
    return times["precopying"] - times["provisioning"]


def _step_s(curve: Series) -> float:
    """Seconds per step over a curve; 0 when there is none."""
    if len(curve.step) < 2 or curve.step[-1] <= curve.step[0]:
        return 0.0
    return max(0.0, (curve.at[-1] - curve.at[0]) / (curve.step[-1] - curve.step[0]))
