"""How much the elements of a tensor changed: counted on bits, measured as numbers; pure numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Change:
    """What happened to one tensor, gathered part by part.

    An element has changed when its bits have (so that a NaN equals itself). Differences that are
    no finite number are counted in ``non_finite`` and left out of norms and maximum.

    Args:
        dtype: Of the format: ``bfloat16`` comes as uint16, float8 as uint8.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._delta = _Norm()
        self._before = _Norm()
        self.num_compared = 0
        self.changed = 0
        self.non_finite = 0
        self.max_abs = 0.0

    @property
    def norm(self) -> float:
        """L2 norm of the difference."""
        return self._delta.value

    @property
    def norm_before(self) -> float:
        """L2 norm of what was compared, before the change."""
        return self._before.value

    def add(self, before: Array, after: Array) -> None:
        """Take in one part of the tensor: two arrays of the same shape and element type."""
        old, new = np.ascontiguousarray(before).ravel(), np.ascontiguousarray(after).ravel()
        self.num_compared += old.size
        self._before.add(_magnitudes(as_numbers(old, self._dtype)))
        is_other = _differs(old, new)
        count = int(np.count_nonzero(is_other))
        if not count:
            return
        self.changed += count
        distance = _distance(old[is_other], new[is_other], self._dtype)
        finite = distance[np.isfinite(distance)]
        self.non_finite += distance.size - finite.size
        self._delta.add(finite)
        if finite.size:
            self.max_abs = max(self.max_abs, float(finite.max()))


class _Norm:
    """A square root of squares that neither overflows nor underflows."""

    def __init__(self) -> None:
        self._scale = 0.0
        self._squares = 0.0

    @property
    def value(self) -> float:
        return self._scale * math.sqrt(self._squares)

    def add(self, magnitudes: Floats) -> None:
        finite = magnitudes[np.isfinite(magnitudes)]
        top = float(finite.max(initial=0.0))
        if top == 0.0:
            return
        if top > self._scale:
            self._squares *= (self._scale / top) ** 2
            self._scale = top
        scaled = finite / self._scale
        self._squares += float(np.square(scaled, out=scaled).sum())  # not dot: BLAS threads spin


def _differs(old: Array, new: Array) -> npt.NDArray[np.bool_]:
    """Which elements have other bits."""
    size = old.dtype.itemsize
    word = np.dtype(f"<u{min(size, 8)}")
    unequal = old.view(word) != new.view(word)
    found: npt.NDArray[np.bool_] = unequal.reshape(-1, max(1, size // 8)).any(axis=1)
    return found


def _distance(old: Array, new: Array, dtype: str) -> Floats:
    """``|new - old|`` per element; exact for integers before it is rounded to a float."""
    if dtype not in _AS_NUMBERS and old.dtype.kind in "iu":
        wide = np.dtype("u8")
        bigger = new > old
        a, b = old.astype(wide), new.astype(wide)  # two's complement: differences wrap rightly
        return np.where(bigger, b - a, a - b).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return _magnitudes(as_numbers(new, dtype) - as_numbers(old, dtype))


def _magnitudes(numbers: Array) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(numbers).astype(np.float64, copy=False)


def as_numbers(raw: Array, dtype: str) -> Array:
    """The stored elements as float64 (complex128 for complex ones)."""
    convert = _AS_NUMBERS.get(dtype)
    if convert is not None:
        return convert(raw)
    return raw.astype(np.complex128 if raw.dtype.kind == "c" else np.float64)


def _bfloat16(raw: Array) -> Array:
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _float8_e5m2(raw: Array) -> Array:
    return (raw.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float64)


def _float8_e4m3fn(raw: Array) -> Array:
    return _E4M3FN[raw.astype(np.intp)]


def _e4m3fn_table() -> Floats:
    """All 256 values: 4 exponent bits of bias 7, 3 mantissa bits, no infinity, one NaN per sign."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    value = np.where(exponent == 0, mantissa * np.exp2(-9.0), normal)
    value[(codes & 127) == 127] = np.nan
    signed: Floats = np.where(codes < 128, value, -value)
    return signed


_E4M3FN = _e4m3fn_table()
_AS_NUMBERS: dict[str, Callable[[Array], Array]] = {
    "bfloat16": _bfloat16,
    "float8_e5m2": _float8_e5m2,
    "float8_e4m3fn": _float8_e4m3fn,
}
