"""A rank stores its staged share of a step: chunks, packs, index, record, in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from cloudshift_lab.checkpoint.choice import bases_of, choose
from cloudshift_lab.checkpoint.encoding import ShareEncoder, chunk_id, in_order
from cloudshift_lab.checkpoint.gains import PastGains
from cloudshift_lab.checkpoint.index import ChunkLocation, add_bases, pack_table, write_index
from cloudshift_lab.checkpoint.known import KnownChunks, packs_of
from cloudshift_lab.checkpoint.layout import (
    DELTA_VERSION,
    VERSION,
    BoxEntry,
    ObjectRef,
    RankRecord,
    StepDir,
    blake3_hex,
    step_dir,
)
from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.checkpoint.packer import Packer
from cloudshift_lab.checkpoint.recipe import BaseStep
from cloudshift_lab.checkpoint.share import (
    ShareBox,
    Staged,
    WrittenRank,
    cut_share,
    stage_arrays,
)
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.store import Store

if TYPE_CHECKING:
    from cloudshift_lab.checkpoint.step import Checkpoint

__all__ = ["Staged", "WrittenRank", "stage_arrays", "write_rank"]


def write_rank(
    store: Store, run_id: str, staged: Staged, *, generation: int,
    known: KnownChunks | None = None, concurrency: int = 4, threads: int = 1,
    base: Checkpoint | None = None, dead_packs: frozenset[str] = frozenset(),
    progress: Callable[[int], None] | None = None, gains: PastGains | None = None,
) -> WrittenRank:  # fmt: skip
    """Store one rank's share: new packs first, then the index, then the record.

    Safe to repeat after any failure: equal input writes equal bytes to equal keys. Makes no step
    exist; that takes ``seal`` and a commit in the run log.

    Args:
        store: Where to.
        run_id: Whose step it is.
        staged: The share.
        generation: The writer's fencing token.
        known: Chunks of committed checkpoints of this store, which are not written again.
        concurrency: Packs (of 16 MiB, held in memory) uploaded at a time.
        threads: Threads that hash and compress; the store is only called from this one.
        base: A committed step of the same store that deltas may refer to; None: no deltas to it.
        dead_packs: Hashes of packs that are about to be deleted: neither used nor written.
        progress: Told how many raw bytes of the share are done so far.
        gains: What earlier saves found out about deltas; takes in what this one does.

    Returns:
        What ``seal`` needs to know.

    Raises:
        UsageError: The share does not fit together, a leaf has a type that JSON cannot hold, or
            the base lies in another store.
        Unsupported: A dtype that is not in the format.
        Unavailable, Denied, Exhausted: As the store reported; call again to go on.
    """
    place = step_dir(run_id, staged.step, generation)
    if base is not None and base.store.url != store.url:
        raise UsageError(f"step {base.step} lies in {base.store.url}; pass a base from {store.url}")
    boxes = cut_share(staged)
    leaves = encode_leaves(staged.leaves)
    ids = _ids(boxes, threads) if known or base is not None else []
    known = _reusable(ids, known, dead_packs)
    recipes = choose(
        store, staged, boxes, None if base is None else BaseStep(base, dead_packs), ids=ids,
        known=known, concurrency=concurrency, gains=gains,
    )  # fmt: skip
    # What lies in a base's pack as it is: a delta to it, perhaps to itself, would only be larger.
    known = known.and_also(bases_of(recipes))
    packer = Packer(store, known, dead_packs, concurrency)
    encoder = ShareEncoder(store, packer, ids, recipes, threads=threads, concurrency=concurrency)
    done = 0
    for chunk in encoder.encoded(boxes):
        packer.add(chunk)
        done += chunk.raw_len
        if progress is not None:
            progress(done)
    rows = packer.finish()
    entries = [box.entry for box in boxes]
    return _write_record(store, place, staged, entries, rows=rows, leaves=leaves,
                         new_bytes=packer.new_bytes)  # fmt: skip


def _ids(boxes: Sequence[ShareBox], threads: int) -> list[bytes]:
    chunks = (box.chunk(number) for box in boxes for number in range(box.num_chunks))
    return list(in_order(chunk_id, chunks, threads))


def _reusable(
    ids: Sequence[bytes], known: KnownChunks | None, dead_packs: frozenset[str]
) -> KnownChunks:
    """The known chunks that are worth pointing at, and lie in no pack that is about to go."""
    if not known:
        return KnownChunks()
    found = known.worth_reusing(ids)
    usable = (found.find(each) for each in dict.fromkeys(ids))
    return KnownChunks(
        chunk for chunk in usable if chunk is not None and dead_packs.isdisjoint(packs_of(chunk))
    )


def _write_record(
    store: Store, place: StepDir, staged: Staged, entries: list[BoxEntry], *,
    rows: list[ChunkLocation], leaves: bytes, new_bytes: int,
) -> WrittenRank:  # fmt: skip
    with_bases = add_bases(rows) if any(row.refs for row in rows) else rows
    packs = pack_table(with_bases)
    index = write_index(rows, packs)
    index_ref = ObjectRef(blake3_hex(index), len(index))
    store.put(place.index_key(staged.rank, staged.world_size, index_ref.blake3), index)
    record = RankRecord(
        version=VERSION if with_bases is rows else DELTA_VERSION,
        run_id=place.run_id, step=place.step, generation=place.generation, rank=staged.rank,
        world_size=staged.world_size, boxes=tuple(entries), catalog=staged.catalog, packs=packs,
        index=index_ref, raw_bytes=sum(entry.num_bytes for entry in entries),
        stored_bytes=_stored_bytes(rows), leaves=msgspec.Raw(leaves),
    )  # fmt: skip
    data = to_json(record)
    digest = blake3_hex(data)
    key = place.record_key(staged.rank, staged.world_size, digest)
    store.put(key, data)
    return WrittenRank(
        staged.rank, key, digest, len(data), record.raw_bytes, record.stored_bytes, new_bytes
    )


def _stored_bytes(rows: Iterable[ChunkLocation]) -> int:
    return sum({row.id: row.stored_len for row in rows}.values())
