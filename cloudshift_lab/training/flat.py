"""A state dictionary as the ranks' records keep it: flat names, their paths, plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudshift_lab.checkpoint.step import Checkpoint
from cloudshift_lab.core.errors import Corrupt

KeyPath = tuple[str | int, ...]
KIND = "state_dict"
_MAX_DEPTH = 64
_MISSING = 1024


@dataclass(frozen=True)
class FlatState:
    """What of a nested state dictionary is not in its tensors.

    ``paths`` says per flat name where it stands; ``values`` holds what is no tensor, and
    ``nested`` names the tensors that stand inside of such values.
    """

    values: dict[str, object] = field(default_factory=dict)
    paths: dict[str, KeyPath] = field(default_factory=dict)
    nested: frozenset[str] = frozenset()

    def leaves(self) -> object:
        """As a rank record keeps it."""
        return {
            KIND: {
                "values": self.values,
                "paths": {name: tuple(path) for name, path in self.paths.items()},
                "nested": sorted(self.nested),
            }
        }


def read_flat(checkpoint: Checkpoint) -> FlatState | None:
    """What all ranks' records say together; None for a step that was saved another way.

    Raises:
        Corrupt: The records are malformed.
    """
    parts = [_of_rank(checkpoint, rank) for rank in checkpoint.ranks]
    if not any(parts):
        return None
    state = FlatState()
    nested: set[str] = set()
    for part in parts:
        if part is not None:
            state.values.update(part.values)
            state.paths.update(part.paths)
            nested |= part.nested
    try:
        check_lists(state.paths)
    except TypeError as error:
        raise _malformed(f"step {checkpoint.step}", error) from error
    return FlatState(state.values, state.paths, frozenset(nested))


def _of_rank(checkpoint: Checkpoint, rank: int) -> FlatState | None:
    leaves = checkpoint.leaves(rank)
    found = leaves.get(KIND) if isinstance(leaves, dict) else None
    if found is None:
        return None
    try:
        values, paths, nested = found["values"], found["paths"], found["nested"]
        if not isinstance(values, dict):
            raise TypeError("values must be a dictionary")
        return FlatState(dict(values), checked_paths(paths), frozenset(map(str, nested)))
    except (KeyError, TypeError) as error:
        raise _malformed(f"rank {rank}'s record of step {checkpoint.step}", error) from error


def _malformed(what: str, error: Exception) -> Corrupt:
    return Corrupt(f"{what} is malformed ({error}); use another step")


def checked_paths(paths: object) -> dict[str, KeyPath]:
    """Paths of names and places; see ``check_lists`` for how far the places may go.

    Raises:
        TypeError: One is something else.
    """
    checked: dict[str, KeyPath] = {}
    if not isinstance(paths, dict):
        raise TypeError("paths must be a dictionary")
    for name, path in paths.items():
        if not isinstance(name, str) or not isinstance(path, tuple) or not path:
            raise TypeError("a path must be a tuple of keys")
        if len(path) > _MAX_DEPTH:
            raise TypeError(f"a path is longer than {_MAX_DEPTH} keys")
        for key in path:
            is_place = type(key) is int and key >= 0
            if not is_place and not isinstance(key, str):
                raise TypeError(f"'{key}' cannot be part of a path")
        checked[name] = path
    return checked


def check_lists(paths: Mapping[str, KeyPath]) -> None:
    """Make sure that the lists of all paths together are no longer than the paths account for.

    Each place of a list that was saved has a path of its own; a few may be missing with a rank.

    Raises:
        TypeError: They are longer: a hostile place makes a list that no memory holds.
    """
    lengths: dict[KeyPath, int] = {}
    for path in paths.values():
        for depth, key in enumerate(path):
            if isinstance(key, int):
                lengths[path[:depth]] = max(lengths.get(path[:depth], 0), key + 1)
    if sum(lengths.values()) > sum(map(len, paths.values())) + _MISSING:
        raise TypeError("its lists are longer than what stands in them")
