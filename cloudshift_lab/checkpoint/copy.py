"""What a copy of a step to another store has to bring, and in which order."""

from __future__ import annotations

import msgspec

from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.store import Store


class CopyPlan(msgspec.Struct, frozen=True):
    """Keys (with their blake3) that the target lacks, in write order.

    ``records`` are chunk tables, rank records and, last, the manifest; copy them after all packs.
    ``num_bytes`` is what the packs to copy weigh, ``present_bytes`` what those already there do.
    """

    step: int
    packs: dict[str, str]
    records: dict[str, str]
    num_bytes: int
    present_bytes: int


def copy_plan(
    source: Store, target: Store, run_id: str, manifest_key: str, digest: str, *,
    concurrency: int = 1,
) -> CopyPlan:  # fmt: skip
    """Which objects of a step the target lacks, judged by size; content is proved by ``verify``.

    Args:
        source: Where the step is.
        target: Where it shall be too.
        run_id: Whose step it is.
        manifest_key: From the log's commit record.
        digest: The manifest's blake3, from there too.
        concurrency: Size questions to the target at a time.

    Raises:
        Corrupt, NotFound: The source's manifest, records or chunk tables are damaged.
        Unavailable, Denied: As a store reported.
    """
    checkpoint = open_checkpoint(source, run_id, manifest_key, digest=digest)
    return plan_of(checkpoint, target, concurrency=concurrency)


def plan_of(checkpoint: Checkpoint, target: Store, *, concurrency: int = 1) -> CopyPlan:
    """``copy_plan`` of a step that is open already.

    Raises:
        Unavailable, Denied: As the target reported.
    """
    packs = checkpoint.packs()
    sizes = checkpoint.object_sizes()
    found = fan_out(target.size, sizes, concurrency)
    lacking = {k for k, f in zip(sizes, found, strict=True) if f != sizes[k]}
    missing = {key: digest for key, digest in checkpoint.object_keys().items() if key in lacking}
    num_bytes = sum(size for key, (_, size) in packs.items() if key in lacking)
    return CopyPlan(
        step=checkpoint.step,
        packs={key: digest for key, digest in missing.items() if key in packs},
        records={key: digest for key, digest in missing.items() if key not in packs},
        num_bytes=num_bytes,
        present_bytes=sum(size for _, size in packs.values()) - num_bytes,
    )


def static_packs(older: Checkpoint, newer: Checkpoint) -> dict[str, tuple[str, int]]:
    """Packs that two commits share: what is worth copying before training pauses.

    Returns:
        Per pack key its blake3 and size in bytes; empty when every byte changes between saves.
    """
    before = older.packs()
    return {key: value for key, value in newer.packs().items() if key in before}


def static_chunks(older: Checkpoint, newer: Checkpoint) -> frozenset[bytes]:
    """Ids of the chunks that two commits share."""
    return older.chunk_ids() & newer.chunk_ids()
