"""How long a rank spends in the named parts of a step."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_NAMES = 32
MAX_NAME_CHARS = 40
REST = "other"
"""Takes what is spent under names beyond the first ``MAX_NAMES``."""


class Section:
    """One named part, for ``with``; the same object may be entered again and within itself."""

    __slots__ = ("_name", "_sections")

    def __init__(self, sections: Sections, name: str) -> None:
        self._sections = sections
        self._name = name

    def __enter__(self) -> None:
        self._sections.enter(self._name)

    def __exit__(self, *_error: object) -> None:
        self._sections.leave()


class Sections:
    """Adds up seconds by name, each second once: an inner part's time is not its outer part's.

    A framework that calls back at the borders of its parts names them one after the other with
    ``phase``; parts opened with ``named`` lie within the phase. For the training thread alone: what
    others open is counted wrongly, but nothing is ever raised into training.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._spent: dict[str, float] = {}
        self._open: list[str | None] = [None]
        self._known: dict[str, Section] = {}
        self._since = clock()

    def named(self, name: str) -> Section:
        """The part of this name."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= MAX_NAMES:
                return self._known.setdefault(REST, Section(self, REST))
            found = self._known[name] = Section(self, name[:MAX_NAME_CHARS])
        return found

    def phase(self, name: str | None) -> None:
        """What was the phase ends, and this one begins; None: nobody's time."""
        self._count()
        self._open[0] = name

    def enter(self, name: str) -> None:
        """A part begins within the one that is open."""
        self._count()
        self._open.append(name)

    def leave(self) -> None:
        """The innermost part ends."""
        self._count()
        if len(self._open) > 1:
            self._open.pop()

    def take(self) -> dict[str, float] | None:
        """Seconds since the last call by name, None if nothing was named; parts stay open."""
        self._count()
        spent, self._spent = self._spent, {}
        return spent or None

    def skip(self) -> None:
        """What has passed since the last border is nobody's."""
        self._since = self._clock()

    def _count(self) -> None:
        now = self._clock()
        name = self._open[-1]
        if name is not None:
            self._spent[name] = self._spent.get(name, 0.0) + now - self._since
        self._since = now
