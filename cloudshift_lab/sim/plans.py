"""A complete plan and decisions on it, for simulations and tests."""

from __future__ import annotations

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Bill, BillItem, Decision, Plan, Verdict
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


def sample_plan(
    migration_id: str = "mig-1",
    *,
    run_id: str = "run-1",
    source_url: str = "memory://aws-sim",
    target_url: str = "memory://gcp-sim",
    generation: int = 1,
    created_at: float = CREATED_AT,
    expires_at: float = EXPIRES_AT,
) -> Plan:
    """A move from ``aws-sim`` to ``gcp-sim`` with its digest."""
    return with_digest(
        Plan(
            migration_id=migration_id,
            run_id=run_id,
            source=Placement(cloud="aws-sim", region="us-east-1", instance_type="m"),
            target=Placement(cloud="gcp-sim", region="us-central1", instance_type="m"),
            source_url=source_url,
            target_url=target_url,
            generation=generation,
            bill=_BILL,
            verdict="move",
            created_at=created_at,
            expires_at=expires_at,
        )
    )


def sample_decision(
    plan: Plan, verdict: Verdict = "approve", *, decision_id: str = "dec-1"
) -> Decision:
    """Ada's answer to exactly this plan, one second after it was made."""
    return Decision(
        decision_id=decision_id,
        plan_digest=plan.digest,
        verdict=verdict,
        by="ada",
        at=plan.created_at + 1.0,
    )
