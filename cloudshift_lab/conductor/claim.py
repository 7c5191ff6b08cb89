"""Claiming a run id in a bucket, so that two state directories never call two runs the same."""

from __future__ import annotations

import msgspec

from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.log import log_key
from cloudshift_lab.storage.store import Store


class Claim(msgspec.Struct, frozen=True):
    """Content of ``runs/<run>/claim.json``; ``owner`` is the run's first one, unique for ever."""

    run_id: str
    owner: str


def claim_key(run_id: str) -> str:
    """Where the claim of a run id lies in every bucket that the run visits."""
    return f"runs/{run_id}/claim.json"


def claim_run(store: Store, claim: Claim) -> bool:
    """Take a run id in a bucket; the same claim again is true again.

    Returns:
        False when another run has it.

    Raises:
        Unavailable, Denied, Exhausted: As the store reported; nothing is lost by asking again.
    """
    if store.size(log_key(claim.run_id, 0)) is not None:
        return False
    return store.create(claim_key(claim.run_id), to_json(claim))
