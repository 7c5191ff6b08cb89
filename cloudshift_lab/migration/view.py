"""A saga as every surface shows it."""

from __future__ import annotations

from cloudshift_lab.core.plan import Futures, Going, MigrationView
from cloudshift_lab.migration.state import Saga


def view(
    saga: Saga,
    *,
    run_name: str,
    as_of: float,
    bytes_state: int = 0,
    receipt: str | None = None,
    futures: Futures | None = None,
    going: Going | None = None,
    waiting: str = "",
) -> MigrationView:
    """The shown form of a saga.

    Args:
        saga: The move.
        run_name: What the researcher called the run.
        as_of: Wall-clock seconds of this view.
        bytes_state: Size of the run's raw state, bytes; 0 when unknown.
        receipt: Where the receipt lies, once there is one.
        futures: What was simulated of the plan before its decision.
        going: How far the pending effect is.
        waiting: Why the run's own rule has not decided yet.
    """
    return MigrationView(
        migration_id=saga.plan.migration_id,
        run_id=saga.plan.run_id,
        run_name=run_name,
        phase=saga.phase,
        plan=saga.plan,
        timeline=saga.timeline,
        decision=saga.decision,
        error=saga.error,
        sealed_step=saga.sealed_step,
        bytes_moved=saga.bytes_moved,
        bytes_state=bytes_state,
        pause_s=saga.pause_s,
        receipt=receipt,
        as_of=as_of,
        approvals=saga.approvals,
        futures=futures,
        going=going,
        partial=saga.partial,
        notice_s=_notice_s(saga, as_of),
        still_s=saga.still_s,
        waiting=waiting,
        closing=saga.closing,
        apart=saga.apart,
        apart_step=saga.apart_step,
    )


def _notice_s(saga: Saga, as_of: float) -> float | None:
    if saga.notice is None or saga.is_final:
        return None
    return max(0.0, saga.notice - as_of)
