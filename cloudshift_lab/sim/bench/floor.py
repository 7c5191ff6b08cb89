"""The fewest bytes that coding byte planes one by one can reach: their order-0 entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.share import ShareBox, Staged, cut_share

Bytes1d = npt.NDArray[np.uint8]
_WORDS = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


def floor_bytes(staged: Staged, base: Staged | None = None) -> float:
    """Sum over all chunks of the entropy of their planes, equal chunks once.

    Args:
        staged: What is saved.
        base: What was saved before it; a tensor then counts as it is or as its difference to the
            tensor of that name, whichever is less.
    """
    before = {} if base is None else {box.entry.name: box for box in cut_share(base)}
    seen: set[bytes] = set()
    return sum(_box_floor(box, before.get(box.entry.name), seen) for box in cut_share(staged))


def _box_floor(box: ShareBox, old: ShareBox | None, seen: set[bytes]) -> float:
    chunks = [box.chunk(number) for number in range(box.num_chunks)]
    fresh = [number for number, raw in enumerate(chunks) if _is_new(raw, seen)]
    width = box.kind.width if box.kind.is_float else 1
    alone = sum(chunk_floor(_rotated(chunks[n], width), width) for n in fresh)
    if old is None or len(old.flat) != len(box.flat):
        return alone
    return min(alone, sum(chunk_floor(chunks[n] ^ old.chunk(n), width) for n in fresh))


def _is_new(raw: Bytes1d, seen: set[bytes]) -> bool:
    content = raw.tobytes()
    if content in seen:
        return False
    seen.add(content)
    return True


def _rotated(raw: Bytes1d, width: int) -> Bytes1d:
    """Words rotated left by a bit, so that a float's exponent is a byte."""
    words = raw.view(_WORDS[width])
    if width == 1:
        return raw
    top = words.dtype.type(8 * width - 1)
    rotated: Bytes1d = (words << words.dtype.type(1) | words >> top).view(np.uint8)
    return rotated


def chunk_floor(raw: Bytes1d, width: int) -> float:
    """Bytes that an ideal order-0 coder needs for each byte plane of a chunk."""
    return sum(_plane_floor(plane) for plane in raw.reshape(-1, width).T)


def _plane_floor(plane: Bytes1d) -> float:
    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / len(plane)
    return float(-(shares @ np.log2(shares)) * len(plane) / 8)
