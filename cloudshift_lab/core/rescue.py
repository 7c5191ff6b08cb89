"""What a rank leaves in shared memory in case it dies, and the word that saves it all the same.

::

    <node dir>/rank-<r>.own       where the rank is, and what only it has: randomness and extras
    <node dir>/rank-<r>.call      a pipe: the agent says which shares this rank is to stage
    <node dir>/rank-<r>.slot-2    a share that was staged after a death, by its rank or by another
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

RESCUE_SLOT = 2
MAX_OWN_BYTES = 1 << 16
_HEADER = struct.Struct("<6q")
_PLACE = struct.Struct("<2q")
_FLAG = struct.Struct("<q")
_FIRST_PLACE = 64
_PLACE_BYTES = _PLACE.size + MAX_OWN_BYTES
_NUM_EXACT = 2
_GUESS = 2
_SIZE = _FIRST_PLACE + (_NUM_EXACT + 1) * _PLACE_BYTES
_NEVER = -1
_ABLE_AT, _COMPLETED_AT, _STEPPING_AT, _HABIT_AT, _COVERS_AT = 8, 16, 24, 32, 40
MAX_COVERED = 63


class RescueWord(msgspec.Struct, frozen=True):
    """The agent's call: stage the shares of these ranks as they are after ``step``, at once."""

    step: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Standing:
    """Where a rank is, as its page says.

    ``completed``: the newest step that is behind its boundary, None before the first.
    ``is_stepping``: an optimizer has begun to change the state, and the boundary is not reached.
    ``is_able``: what only this rank has fits its page. ``own``: steps of which it is there;
    ``guessed``: the step of which it is there as it was when the optimizer began, if that has
    always been what it was at the boundary too. ``covers``: ranks all of whose share of the model
    this one holds as well.
    """

    pid: int
    is_able: bool
    completed: int | None
    is_stepping: bool
    own: tuple[int, ...] = ()
    guessed: int | None = None
    covers: frozenset[int] = frozenset()

    def has_own(self, step: int) -> bool:
        """Whether what only this rank has is known as it is after ``step``."""
        return step in self.own or step == self.guessed


class OwnPage:
    """A rank's page of shared memory: a few words, and what only the rank has after its last steps.

    Written by one rank, read by its agent and, once the rank is dead, by those that survive it.

    Args:
        memory: The page.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def create(cls, node_dir: Path, rank: int) -> OwnPage:
        """A new page of this process; what an earlier process of this rank wrote is gone."""
        path = own_file(node_dir, rank)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w+b") as file:
            file.truncate(_SIZE)
            page = cls(mmap.mmap(file.fileno(), _SIZE))
        _HEADER.pack_into(page._memory, 0, os.getpid(), 1, _NEVER, 0, 0, 0)
        for place in range(_NUM_EXACT + 1):
            _PLACE.pack_into(page._memory, _offset(place), _NEVER, 0)
        temporary.replace(path)
        return page

    @classmethod
    def open(cls, node_dir: Path, rank: int) -> OwnPage | None:
        """A rank's page to read; None while it has none."""
        try:
            with own_file(node_dir, rank).open("rb") as file:
                return cls(mmap.mmap(file.fileno(), _SIZE, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None

    def standing(self) -> Standing:
        """What the page says now."""
        pid, is_able, completed, is_stepping, habit, covers = _HEADER.unpack_from(self._memory, 0)
        steps = [_PLACE.unpack_from(self._memory, _offset(p))[0] for p in range(_NUM_EXACT + 1)]
        guess = steps[_GUESS]
        return Standing(
            pid=pid,
            is_able=bool(is_able),
            completed=None if completed == _NEVER else completed,
            is_stepping=bool(is_stepping),
            own=tuple(step for step in steps[:_NUM_EXACT] if step != _NEVER),
            guessed=guess if habit > 0 and guess != _NEVER else None,
            covers=frozenset(rank for rank in range(MAX_COVERED) if covers >> rank & 1),
        )

    def step_begins(self, step: int, own: bytes) -> None:
        """An optimizer begins to change the state towards ``step``.

        ``own``: the first part of what only this rank has (its randomness), if that lasts.
        """
        _FLAG.pack_into(self._memory, _STEPPING_AT, 1)
        self._put(_GUESS, step, own)

    def step_ends(self, step: int, own: bytes) -> None:
        """The state after ``step`` is whole, and ``own`` is what only this rank has of it."""
        guess = self._get(_GUESS, step)
        habit = 1 if guess is not None and own.startswith(guess) else 0
        self._put(step % _NUM_EXACT, step, own)
        _FLAG.pack_into(self._memory, _HABIT_AT, habit)
        _FLAG.pack_into(self._memory, _COMPLETED_AT, step)
        _FLAG.pack_into(self._memory, _STEPPING_AT, 0)

    def give_up(self) -> None:
        """Say that nobody can stand for this rank."""
        _FLAG.pack_into(self._memory, _ABLE_AT, 0)

    def cover(self, ranks: Collection[int]) -> None:
        """Say for which ranks this one could stage their share of the model."""
        mask = sum(1 << rank for rank in ranks if rank < MAX_COVERED)
        _FLAG.pack_into(self._memory, _COVERS_AT, mask)

    def own(self, step: int) -> bytes | None:
        """What only this rank has after ``step``; None when that is not known."""
        exact = self._get(step % _NUM_EXACT, step)
        return self._get(_GUESS, step) if exact is None else exact

    def _put(self, place: int, step: int, own: bytes) -> None:
        """Torn by a death it is nobody's: the step is written last."""
        at = _offset(place)
        _PLACE.pack_into(self._memory, at, _NEVER, 0)
        start = at + _PLACE.size
        self._memory[start : start + len(own)] = own
        _PLACE.pack_into(self._memory, at, step, len(own))

    def _get(self, place: int, step: int) -> bytes | None:
        at = _offset(place)
        found, size = _PLACE.unpack_from(self._memory, at)
        start = at + _PLACE.size
        return self._memory[start : start + size] if found == step else None


def _offset(place: int) -> int:
    return _FIRST_PLACE + place * _PLACE_BYTES


def own_file(node_dir: Path, rank: int) -> Path:
    """Where a rank's page is."""
    return node_dir / f"rank-{rank}.own"


def call_file(node_dir: Path, rank: int) -> Path:
    """The pipe by which the agent calls a rank."""
    return node_dir / f"rank-{rank}.call"
