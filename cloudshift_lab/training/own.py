"""What only one rank has after a step: its randomness and its extras, as bytes, taken fast."""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch

from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.training.tree import pull_tensors

_NUM_WORDS = 625
_WORDS = struct.Struct(f"<{_NUM_WORDS}I")
_POS = struct.Struct("<i")
_HEAD = struct.Struct("<qqqqdqqqd")
_TWISTER = "MT19937"


class Owned(msgspec.Struct, frozen=True):
    """What only one rank has: leaves and tensors of its generators, and its extras' leaves."""

    rng: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    extras: bytes


class OwnState:
    """Takes what only this rank has, in microseconds: at two moments of every step.

    ``random.getstate`` makes 625 numbers of what is one piece of memory; where that piece is found
    to be what ``getstate`` says it is read itself.

    Args:
        extras: The extras' leaves as JSON.
    """

    def __init__(self, extras: Callable[[], bytes]) -> None:
        self._extras = extras
        self._python_at = _python_words_at()
        self._numpy = _Numpy()
        self._cuda = torch.cuda.is_available()

    def take(self) -> bytes:
        """Everything as it is now; extras come last.

        Raises:
            CloudshiftError: There is something that only a capture can take.
        """
        return self.generators() + self._extras()

    def generators(self) -> bytes:
        """The randomness as it is now.

        Raises:
            Unsupported: numpy's generator is none of the usual kind.
        """
        state = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state().numpy().tobytes() if self._cuda else b""
        gauss = random._inst.gauss_next  # type: ignore[attr-defined]
        numpy, numpy_words = self._numpy.now()
        head = _HEAD.pack(
            torch.initial_seed() - 2**63, state.numel(), len(cuda),
            gauss is not None, gauss or 0.0, *numpy,
        )  # fmt: skip
        words = ctypes.string_at(state.data_ptr(), state.numel())
        return b"".join((head, words, cuda, self._python(), numpy_words))

    def _python(self) -> bytes:
        if self._python_at is None:
            return _slow_python()
        return ctypes.string_at(self._python_at, _WORDS.size)


def read_own(data: bytes, rank: int) -> Owned:
    """Undo ``take``, in the form in which a checkpoint holds it.

    Args:
        data: What was taken.
        rank: Whose it is.
    """
    seed, torch_size, cuda_size, has_gauss, gauss, *numpy = _HEAD.unpack_from(data)
    at, place = _HEAD.size, f"rng/{rank}"
    tensors = {place: _tensor(data[at : at + torch_size])}
    at += torch_size
    if cuda_size:
        tensors[f"{place}/cuda"] = _tensor(data[at : at + cuda_size])
    at += cuda_size
    index, *words = _WORDS.unpack_from(data, at)
    at += _WORDS.size
    is_known, pos, has_numpy_gauss, numpy_gauss = numpy
    found = None
    if is_known:
        key = np.frombuffer(data, dtype=np.uint32, count=_NUM_WORDS - 1, offset=at).copy()
        at += key.nbytes
        found = {
            "bit_generator": _TWISTER,
            "state": {"key": key, "pos": int(pos)},
            "has_gauss": int(has_numpy_gauss),
            "gauss": float(numpy_gauss),
        }
    rng = {
        "python": (random.getstate()[0], (*words, index), gauss if has_gauss else None),
        "numpy": pull_tensors(found, place, {}),
        "seed": seed + 2**63,
    }
    return Owned(rng, tensors, data[at:])


class _Numpy:
    """numpy's global generator, which takes 40 microseconds to say how it is.

    So it is asked only when its memory has changed, or a number that it drew in advance is left:
    to draw that one changes nothing there.
    """

    def __init__(self) -> None:
        self._source: Any = None
        self._at = 0
        self._words = b""
        self._known: tuple[tuple[int, int, int, float], bytes] | None = None

    def now(self) -> tuple[tuple[int, int, int, float], bytes]:
        """Its state as it is now, then its words.

        Raises:
            Unsupported: It is none of the usual kind.
        """
        source = np.random.mtrand._rand._bit_generator
        if source is not self._source:
            self._source, self._at = source, source.ctypes.state_address
            self._known = None
        if self._known is not None:
            words = ctypes.string_at(self._at, _WORDS.size)
            if words == self._words:
                return self._known
        return self._ask()

    def _ask(self) -> tuple[tuple[int, int, int, float], bytes]:
        now = np.random.get_state(legacy=False)
        if now["bit_generator"] != _TWISTER:
            raise Unsupported(f"numpy's generator is {now['bit_generator']}; use {_TWISTER}")
        state = now["state"]
        found = (1, state["pos"], now["has_gauss"], now["gauss"]), state["key"].tobytes()
        self._words = ctypes.string_at(self._at, _WORDS.size)
        is_here = self._words == found[1] + _POS.pack(state["pos"])
        self._known = found if is_here and not now["has_gauss"] else None
        return found


def _python_words_at() -> int | None:
    """Where the interpreter keeps the generator's index and words; None when it is elsewhere."""
    at = id(random._inst) + object.__basicsize__
    if sys.implementation.name != "cpython":
        return None
    return at if ctypes.string_at(at, _WORDS.size) == _slow_python() else None


def _slow_python() -> bytes:
    *words, index = random.getstate()[1]
    return _WORDS.pack(index, *words)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
