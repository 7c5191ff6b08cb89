"""Which batches were taken in: a few ranges per sender instead of one entry per batch."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_NUMBERED = re.compile(r"(.+)-(0|[1-9][0-9]{0,17})", re.DOTALL)
UNNUMBERED = -1


class Span(NamedTuple):
    """Batches ``first`` to ``last``, both included, of one sender."""

    sender: str
    first: int
    last: int


def place_of(batch_id: str) -> tuple[str, int]:
    """The sender and the number in a batch's id; an id without a number is its own sender."""
    match = _NUMBERED.fullmatch(batch_id)
    return (match[1], int(match[2])) if match else (batch_id, UNNUMBERED)


class Seen:
    """The ids of all batches ever taken in. Not for several threads at once.

    A sender counts its batches, so what was taken in of it is nearly always one range.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._ranges: dict[str, list[tuple[int, int]]] = {}
        for span in spans:
            self._add(*span)

    def __contains__(self, batch_id: object) -> bool:
        if not isinstance(batch_id, str):
            return False
        sender, number = place_of(batch_id)
        ranges = self._ranges.get(sender, [])
        after = bisect.bisect_right(ranges, (number, 1 << 62))
        return after > 0 and ranges[after - 1][1] >= number

    def add(self, batch_id: str) -> None:
        """Know one more."""
        sender, number = place_of(batch_id)
        self._add(sender, number, number)

    def spans(self) -> Iterator[Span]:
        """All of them, in as few ranges as there can be."""
        for sender, ranges in self._ranges.items():
            for first, last in ranges:
                yield Span(sender, first, last)

    def _add(self, sender: str, first: int, last: int) -> None:
        ranges = self._ranges.setdefault(sender, [])
        start = bisect.bisect_left(ranges, first, key=lambda each: each[1] + 1)
        end = bisect.bisect_right(ranges, last, key=lambda each: each[0] - 1)
        if start < end:
            first, last = min(first, ranges[start][0]), max(last, ranges[end - 1][1])
        ranges[start:end] = [(first, last)]
