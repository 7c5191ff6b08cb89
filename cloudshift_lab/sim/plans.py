"""A complete plan and decisions on it, for simulations and tests."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import (
    Bill,
    BillItem,
    ClosingKind,
    Decision,
    Fallback,
    MissingNodesPolicy,
    Plan,
    Verdict,
)
from cloudshift_lab.migration import with_digest

CREATED_AT = 1_000.0
EXPIRES_AT = 1_600.0

_ITEM = BillItem(
    label="egress", amount_micro_usd=90, basis="1 MB", source="simulation", kind="egress"
)
_BILL = Bill(
    items=(_ITEM,),
    total_micro_usd=90,
    one_off_micro_usd=90,
    saving_micro_usd_per_h=10,
    break_even_s=9.0,
    pause_s=1.0,
    transfer_bytes=1_000_000,
    simulated=True,
)


@dataclass(frozen=True)
class Wanted:
    """What a plan asks for beyond a plain copy; the fields are the plan's."""

    closing: ClosingKind = "copy"
    rehearsal_steps: int = 0
    tolerance: float = 0.0
    missing_nodes: MissingNodesPolicy = "roll-back"
    nodes: int = 1
    min_nodes: int = 1
    fallbacks: tuple[Fallback, ...] = ()
    limit_micro_usd: int = 0
    approvals_needed: int = 1


def sample_plan(
    migration_id: str = "mig-1",
    *,
    run_id: str = "run-1",
    source_url: str = "memory://aws-sim",
    target_url: str = "memory://gcp-sim",
    generation: int = 1,
    created_at: float = CREATED_AT,
    expires_at: float = EXPIRES_AT,
    wanted: Wanted | None = None,
) -> Plan:
    """A move from ``aws-sim`` to ``gcp-sim`` with its digest; without ``wanted`` a plain copy."""
    wanted = wanted or Wanted()
    target = Placement(cloud="gcp-sim", region="us-central1", instance_type="m", nodes=wanted.nodes)
    return with_digest(
        Plan(
            migration_id=migration_id,
            run_id=run_id,
            source=Placement(cloud="aws-sim", region="us-east-1", instance_type="m"),
            target=target,
            source_url=source_url,
            target_url=target_url,
            generation=generation,
            bill=sample_bill(),
            verdict="move",
            created_at=created_at,
            expires_at=expires_at,
            closing=wanted.closing,
            rehearsal_steps=wanted.rehearsal_steps,
            tolerance=wanted.tolerance,
            missing_nodes=wanted.missing_nodes,
            min_nodes=wanted.min_nodes,
            fallbacks=wanted.fallbacks,
            limit_micro_usd=wanted.limit_micro_usd,
            approvals_needed=wanted.approvals_needed,
        )
    )


def sample_bill(total_micro_usd: int = 90) -> Bill:
    """A bill of one item."""
    item = msgspec.structs.replace(_ITEM, amount_micro_usd=total_micro_usd)
    return msgspec.structs.replace(_BILL, items=(item,), total_micro_usd=total_micro_usd)


def sample_fallback(cloud: str = "azure-sim", nodes: int = 1) -> Fallback:
    """Another place to go to."""
    placement = Placement(cloud=cloud, region="westeurope", instance_type="m", nodes=nodes)
    return Fallback(placement=placement, url=f"memory://{cloud}")


def sample_decision(
    plan: Plan, verdict: Verdict = "approve", *, decision_id: str = "dec-1", by: str = "ada"
) -> Decision:
    """An answer to exactly this plan, one second after it was made."""
    return Decision(
        decision_id=decision_id,
        plan_digest=plan.digest,
        verdict=verdict,
        by=by,
        at=plan.created_at + 1.0,
    )
