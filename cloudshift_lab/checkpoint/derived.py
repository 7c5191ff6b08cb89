"""A half-precision copy of an fp32 tensor, stored as nothing but a reference to that tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.codecs import DERIVED, Bytes1d, Encoded
from cloudshift_lab.core.errors import Corrupt

ROUNDINGS = {"bfloat16": 1, "float16": 2}
"""How a copy was rounded: to nearest, ties to even; the one byte that such a blob has."""


def encode_derived(raw: Bytes1d, source: Bytes1d, dtype: str) -> Encoded | None:
    """A blob of one byte if ``raw`` is exactly the rounded ``source``; else None.

    Args:
        raw: Bytes of the half-precision chunk.
        source: Bytes of the same elements in float32.
        dtype: ``bfloat16`` or ``float16``.
    """
    rounding = ROUNDINGS[dtype]
    floats = source.view("<f4")
    if np.isnan(floats).any() or not np.array_equal(_rounded(floats, rounding), raw.view("<u2")):
        return None
    return Encoded(DERIVED, 2, bytes([rounding]))


def decode_derived(stored: bytes | memoryview, width: int, source: Bytes1d) -> Bytes1d:
    """Undo ``encode_derived``.

    Raises:
        Corrupt: The blob is no known rounding.
    """
    rounding = stored[0] if len(stored) == 1 else 0
    if rounding not in ROUNDINGS.values() or width != 2:
        raise Corrupt("a derived chunk has an unknown rounding; update cloudshift-lab")
    return _rounded(source.view("<f4"), rounding).view(np.uint8)


def round_half(floats: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint16]:
    """The bits of float32 values rounded to ``dtype``; NaN comes out as anything."""
    return _rounded(floats, ROUNDINGS[dtype])


def _rounded(floats: npt.NDArray[np.float32], rounding: int) -> npt.NDArray[np.uint16]:
    if rounding == ROUNDINGS["float16"]:
        with np.errstate(all="ignore"):
            return floats.astype("<f2").view("<u2")
    bits = floats.view("<u4")
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype("<u2")
