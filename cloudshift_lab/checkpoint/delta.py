"""Decoding chunks that refer to others: deltas, copies in another precision, replayed steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from blake3 import blake3

from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    DERIVED,
    LEVELS,
    WORDS,
    XOR_PLANES_ZSTD,
    Bytes1d,
    decode,
    decode_sparse,
)
from cloudshift_lab.checkpoint.derived import decode_derived
from cloudshift_lab.checkpoint.index import ChunkLocation, Operand, operand_lengths
from cloudshift_lab.checkpoint.replay import decode_v, decode_w
from cloudshift_lab.core.errors import Corrupt

Resolve = Callable[[bytes], Bytes1d]
"""Raw bytes of a chunk by its id, already compared with the id."""


def needed(locations: Iterable[ChunkLocation]) -> list[ChunkLocation]:
    """Every chunk that these are decoded with, each once, in an order in which they decode.

    Without the given ones, unless others of them need these.
    """
    found: dict[ChunkLocation, None] = {}
    todo = [chunk for location in locations for o in location.refs for chunk in o.chunks]
    while todo:
        location = todo.pop()
        if location not in found:
            found[location] = None
            todo += [chunk for operand in location.refs for chunk in operand.chunks]
    return sorted(found, key=_place)


def to_read(locations: Iterable[ChunkLocation]) -> list[ChunkLocation]:
    """One location per id that is decoded for these: of the same content the one of lowest level.

    Content may be here both alone and as a delta, even to itself. Still no chunk waits for itself:
    whatever a chosen chunk refers to lies on a lower level, and what is chosen for that content
    lies no higher, so that levels fall with every reference.
    """
    wanted = list(locations)
    lowest: dict[bytes, ChunkLocation] = {}
    for location in (*wanted, *needed(wanted)):
        held = lowest.setdefault(location.id, location)
        if _place(location) < _place(held):
            lowest[location.id] = location
    found: dict[bytes, ChunkLocation] = {}
    todo = [location.id for location in wanted]
    while todo:
        chunk_id = todo.pop()
        if chunk_id not in found:
            found[chunk_id] = lowest[chunk_id]
            todo += [c.id for operand in lowest[chunk_id].refs for c in operand.chunks]
    return list(found.values())


def _place(location: ChunkLocation) -> tuple[int, str, int]:
    return LEVELS.get(location.codec, 0), location.pack, location.offset


def root(location: ChunkLocation) -> ChunkLocation:
    """The plain chunk at the end of the first references: deltas with one root share operands."""
    while location.refs:
        location = location.refs[0].chunks[0]
    return location


def decode_chunk(
    location: ChunkLocation, stored: bytes | memoryview, resolve: Resolve
) -> Bytes1d:  # fmt: skip
    """Decode a blob of any codec; the caller compares the result with the chunk's id.

    Args:
        location: The chunk.
        stored: Its blob.
        resolve: Gives the chunks that ``location.refs`` names; asked for nothing else.

    Raises:
        Corrupt: The blob does not decode to as many bytes as it should, the codec is unknown, or
            an operand is missing or has another length than it should.
    """
    lengths = operand_lengths(location.codec, location.raw_len)
    if not lengths:
        return decode(stored, location.codec, location.width, location.raw_len)
    if tuple(operand.length for operand in location.refs) != lengths:
        raise Corrupt(
            f"chunk {location.id.hex()[:16]} is a delta of codec {location.codec} but its base is "
            "not named; use another step"
        )
    operands = [_gathered(operand, resolve) for operand in location.refs]
    return _decode_delta(location, stored, operands)


def _decode_delta(
    location: ChunkLocation, stored: bytes | memoryview, operands: list[Bytes1d]
) -> Bytes1d:
    codec, width, raw_len = location.codec, location.width, location.raw_len
    if codec == DERIVED:
        return decode_derived(stored, width, operands[0])
    if codec in (ADAMW_V, ADAMW_W):
        if width != 4 or raw_len % 4:
            raise Corrupt(f"a replayed chunk of width {width} is unknown; update cloudshift-lab")
        floats = [operand.view(np.float32) for operand in operands]
        return (decode_v if codec == ADAMW_V else decode_w)(stored, *floats)
    assert codec == XOR_PLANES_ZSTD, "only deltas have operands"
    words = decode_sparse(stored, width, raw_len)
    words ^= operands[0].view(WORDS[width])
    return words.view(np.uint8)


def _gathered(operand: Operand, resolve: Resolve) -> Bytes1d:
    parts: list[Bytes1d] = []
    at = -operand.skip
    for raw in (resolve(chunk.id) for chunk in operand.chunks):
        parts.append(raw[max(0, -at) : max(0, operand.length - at)])
        at += len(raw)
    taken = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(taken) != operand.length:
        raise Corrupt("the base of a delta has another length than it should; use another step")
    return taken


def decode_checked(
    location: ChunkLocation, stored: bytes | memoryview, resolve: Resolve | None = None
) -> Bytes1d:  # fmt: skip
    """Decode a blob and prove that it is the chunk with this id.

    Args:
        location: The chunk.
        stored: Its blob.
        resolve: Gives the chunks it refers to; only deltas need it.

    Raises:
        Corrupt: It is not.
    """
    raw = decode_chunk(location, stored, resolve or _nothing)
    if blake3(raw.data).digest() != location.id:
        raise Corrupt(
            f"chunk {location.id.hex()[:16]} in pack {location.pack[:16]} differs from its hash; "
            "restore the pack from another copy or use another step",
            chunk=location.id.hex(), pack=location.pack,
        )  # fmt: skip
    return raw


def _nothing(chunk_id: bytes) -> Bytes1d:
    raise Corrupt(f"chunk {chunk_id.hex()[:16]}, the base of a delta, is missing; use another step")
