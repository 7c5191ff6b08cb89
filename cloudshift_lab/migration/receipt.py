"""What happened, in a chain: every receipt names the digest of the one before it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from blake3 import blake3

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.plan import Decision, Phase, PhaseTime, Plan
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.migration.saga import Saga

GENESIS = "0" * 64


class Receipt(msgspec.Struct, frozen=True):
    """The record of one finished move.

    ``previous`` is the digest of the run's receipt before this one, ``GENESIS`` for the first.
    ``digest`` is blake3 over all other fields. ``actual_micro_usd`` stands beside the plan's
    forecast; None when it was not measured.
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
    )
    return msgspec.structs.replace(bare, digest=receipt_digest(bare))


def receipt_digest(receipt: Receipt) -> str:
    """blake3 hex over all fields but ``digest``; see ``plan_digest`` for the detour."""
    bare = msgspec.structs.replace(receipt, digest="")
    return blake3(to_json(from_json(to_json(bare), Receipt, what="receipt"))).hexdigest()


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
