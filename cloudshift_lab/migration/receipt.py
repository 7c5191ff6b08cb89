"""What happened, in a chain: every receipt names the digest of the one before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import ClosingKind, Decision, Phase, PhaseTime, Plan
from cloudshift_lab.migration.digest import struct_digest
from cloudshift_lab.migration.state import Saga

GENESIS = "0" * 64


class Receipt(msgspec.Struct, frozen=True):
    """The record of one finished move.

    ``previous`` is the digest of the run's receipt before this one, ``GENESIS`` for the first.
    ``digest`` is blake3 over all other fields. ``actual_micro_usd`` stands beside the plan's
    one-off costs and counts the same: the target until its first new step, the source's pause,
    bytes and requests; None when it was not measured. ``compare`` puts the two side by side.

    ``decision`` settled the plan, ``approvals`` are all that counted for it, ``earlier`` those on
    plans before it. ``closing`` is how the gap was closed in the end, ``target`` where the run
    went, None for where the plan says; ``tries``: targets that were given up. ``lost_steps`` were
    executed and lost by a forced stop; ``partial`` says what did not move. ``tolerance`` is
    what the rehearsal was held to, None without one; ``apart`` the largest relative difference of
    its losses, at ``apart_step``, None when it was repeated bit by bit. The plan's own ``closing``
    is the forecast beside the actual one.
    """

    migration_id: str
    run_id: str
    previous: str
    outcome: Phase
    plan: Plan
    decision: Decision | None
    timeline: tuple[PhaseTime, ...]
    sealed_step: int | None
    manifest_digest: str | None
    commit_seq: int | None
    bytes_moved: int
    pause_s: float | None
    error: str | None
    at: float
    actual_micro_usd: int | None = None
    digest: str = ""
    approvals: tuple[Decision, ...] = ()
    earlier: tuple[Decision, ...] = ()
    closing: ClosingKind = "copy"
    still_s: float | None = None
    bytes_per_s: float | None = None
    step_s: float | None = None
    target: Placement | None = None
    tries: int = 0
    lost_steps: int = 0
    notice: float | None = None
    partial: str | None = None
    overspent_micro_usd: int | None = None
    tolerance: float | None = None
    apart: float | None = None
    apart_step: int | None = None


class Compared(msgspec.Struct, frozen=True):
    """One figure of a move: what the plan forecast and what it was; None where nobody knows."""

    what: Literal["pause", "still", "bytes", "cost"]
    unit: Literal["s", "bytes", "micro-usd"]
    forecast: float | None
    actual: float | None


def compare(receipt: Receipt) -> tuple[Compared, ...]:
    """Forecast beside actual: pause, time without any step, bytes on the wire, cost."""
    bill = receipt.plan.bill
    chosen = next((c for c in receipt.plan.closings if c.kind == receipt.plan.closing), None)
    pause_s = bill.pause_s if chosen is None else chosen.pause_s
    num_bytes = bill.transfer_bytes if chosen is None else chosen.num_bytes
    return (
        Compared("pause", "s", pause_s, receipt.pause_s),
        Compared("still", "s", None if chosen is None else chosen.still_s, receipt.still_s),
        Compared("bytes", "bytes", num_bytes, receipt.bytes_moved),
        Compared("cost", "micro-usd", bill.one_off_micro_usd, receipt.actual_micro_usd),
    )


def make_receipt(
    saga: Saga, previous: str = GENESIS, *, at: float, actual_micro_usd: int | None = None
) -> Receipt:
    """The receipt of a finished move.

    Args:
        saga: A final saga.
        previous: Digest of the run's newest receipt so far.
        at: Wall-clock seconds.
        actual_micro_usd: What the move has cost, micro-dollars.

    Raises:
        UsageError: The move is not finished.
    """
    if not saga.is_final:
        raise UsageError(
            f"'{saga.plan.migration_id}' is still {saga.phase}; ask for its receipt when it is over"
        )
    bare = Receipt(
        migration_id=saga.plan.migration_id,
        run_id=saga.plan.run_id,
        previous=previous,
        outcome=saga.phase,
        plan=saga.plan,
        decision=saga.decision,
        timeline=saga.timeline,
        sealed_step=saga.sealed_step,
        manifest_digest=saga.manifest_digest,
        commit_seq=saga.commit_seq,
        bytes_moved=saga.bytes_moved,
        pause_s=saga.pause_s,
        error=saga.error,
        at=at,
        actual_micro_usd=actual_micro_usd,
        approvals=saga.approvals if len(saga.approvals) > 1 else (),
        earlier=saga.earlier,
        closing=saga.closing,
        still_s=saga.still_s,
        bytes_per_s=saga.bytes_per_s,
        step_s=saga.step_s,
        target=None if saga.moved_to is None else saga.target,
        tries=saga.tries,
        lost_steps=saga.lost_steps,
        notice=saga.notice,
        partial=saga.partial if saga.is_committed else None,
        overspent_micro_usd=saga.overspent_micro_usd,
        tolerance=saga.tolerance if "rehearse" in saga.done else None,
        apart=saga.apart,
        apart_step=saga.apart_step,
    )
    return msgspec.structs.replace(bare, digest=receipt_digest(bare))


def receipt_digest(receipt: Receipt) -> str:
    """blake3 hex over all fields but ``digest``; see ``struct_digest``."""
    return struct_digest(receipt, "receipt")


def check_chain(receipts: Iterable[Receipt]) -> str:
    """Check a run's receipts, oldest first.

    Returns:
        The digest the next receipt must name.

    Raises:
        Corrupt: A receipt was altered, left out or put in another place.
    """
    previous = GENESIS
    for receipt in receipts:
        if receipt.digest != receipt_digest(receipt):
            raise Corrupt(
                f"the receipt of '{receipt.migration_id}' was altered; restore it from a copy"
            )
        if receipt.previous != previous:
            raise Corrupt(
                f"before the receipt of '{receipt.migration_id}' one is missing; "
                "restore the chain from a copy"
            )
        previous = receipt.digest
    return previous
