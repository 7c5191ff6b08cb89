"""Whether a staged state is the sealed one: by the ids of its chunks, without reading a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cloudshift_lab.checkpoint.boxes import Region, TensorSpec
from cloudshift_lab.checkpoint.encoding import chunk_id, in_order
from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.checkpoint.share import ShareBox, Staged, cut_share
from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.errors import NotFound

_Regions = dict[Region, bytes]


class _Chunk(NamedTuple):
    box: ShareBox
    number: int
    region: Region


def differing(
    staged: Sequence[Staged], sealed: Checkpoint, *, threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """What of a staged state is not bit by bit what was sealed.

    Chunks are compared by their ids on the grid that both share, so the ranks must have split the
    state as the sealing ranks did: a tensor that was cut elsewhere counts as different.

    Args:
        staged: Shares of one step, one per rank; what the sealed step has of a rank and its share
            does not, or the other way round, counts as different too.
        sealed: The step to compare with; only its tables are read, not its packs.
        threads: Threads that hash.
        progress: Told how many bytes have been compared so far.

    Returns:
        Names of tensors, and ``leaves of rank <n>``, sorted; of a share that was staged by another
        number of ranks only that. Empty when everything is equal.

    Raises:
        UsageError: A share does not fit together.
        Corrupt: The sealed step's values are malformed.
    """
    found: set[str] = set()
    known = {name: _ids_of(sealed, name) for name in sealed.names()}
    done = 0
    for share in staged:
        if share.world_size != sealed.world_size:
            found.add(f"the split: {share.world_size} ranks instead of {sealed.world_size}")
            continue
        found |= _split_otherwise(share, sealed)
        if not _has_equal_leaves(share, sealed):
            found.add(f"leaves of rank {share.rank}")
        chunks = list(_chunks(share, known, sealed, found))
        names = in_order(lambda c: chunk_id(c.box.chunk(c.number)), chunks, threads)
        for chunk, name in zip(chunks, names, strict=True):
            tensor = chunk.box.entry.name
            if known[tensor].get(chunk.region) != name:
                found.add(tensor)
            done += chunk.box.chunk(chunk.number).nbytes
            if progress is not None:
                progress(done)
    return tuple(sorted(found))


def _ids_of(sealed: Checkpoint, name: str) -> _Regions:
    return {region: location.id for region, location in sealed.chunks_of(name)}


def _chunks(
    share: Staged, known: dict[str, _Regions], sealed: Checkpoint, found: set[str]
) -> Iterator[_Chunk]:
    """Every chunk of a share that can be compared; a tensor that cannot goes to ``found``."""
    for box in cut_share(share):
        entry = box.entry
        spec = TensorSpec(entry.name, entry.dtype, entry.global_shape)
        if entry.name not in known or sealed.spec(entry.name) != spec:
            found.add(entry.name)
            continue
        for number, region in enumerate(box.regions()):
            yield _Chunk(box, number, region)


def _split_otherwise(share: Staged, sealed: Checkpoint) -> set[str]:
    """Tensors of which this rank has staged other boxes than it has sealed, or none."""
    ours = {(box.name, box.offset, box.shape) for box in share.boxes}
    theirs = {(box.name, box.offset, box.shape) for box in sealed.boxes_of(share.rank)}
    return {name for name, _, _ in ours ^ theirs}


def _has_equal_leaves(share: Staged, sealed: Checkpoint) -> bool:
    """Everything of a rank that is no tensor: compared as it would be stored."""
    try:
        return encode_leaves(share.leaves) == encode_leaves(sealed.leaves(share.rank))
    except NotFound:
        return False
