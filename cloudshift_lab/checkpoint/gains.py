"""Which kinds of tensors deltas did not pay for lately: no base is read to learn it again."""

from __future__ import annotations

import re
from typing import NamedTuple

Role = tuple[str, str]
RETRIED_AFTER_SAVES = 10
_NUMBER = re.compile(r"\d+")


class _Rest(NamedTuple):
    """Since which save a role is left alone, and how many steps its base was away then."""

    save: int
    distance: int


class PastGains:
    """What the saves of one process found out about deltas; the saves of all ranks share it.

    Tensors whose names differ in numbers alone (the layers of a model) have one role. A role that
    gained nothing is sampled again in the tenth save after, or as soon as the base is half as
    many steps away: the nearer, the more alike.
    """

    def __init__(self) -> None:
        self._save = 0
        self._distance = 0
        self._rests: dict[Role, _Rest] = {}

    def begin(self, distance: int) -> None:
        """A share is saved against a base that is ``distance`` steps away."""
        self._save += 1
        self._distance = distance

    def is_worth_sampling(self, role: Role) -> bool:
        """Whether a delta may pay for tensors of this role, as far as known."""
        rest = self._rests.get(role)
        return (
            rest is None
            or self._save >= rest.save + RETRIED_AFTER_SAVES
            or 2 * self._distance <= rest.distance
        )

    def found(self, role: Role, *, pays: bool) -> None:
        """Samples have shown whether a delta may pay for this role."""
        if pays:
            self._rests.pop(role, None)
        else:
            self._rests[role] = _Rest(self._save, self._distance)


def role_of(name: str, dtype: str) -> Role:
    """What a tensor has in common with its like in the other layers."""
    return _NUMBER.sub("#", name), dtype
