"""How fast to ask a store: requests at a time, retries, a limit of bytes per second, and speed."""

from __future__ import annotations

import math
from collections import deque

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_LARGEST_PART_BYTES = 8 * 2**20
_SMALLEST_PART_BYTES = 2**20
_QUICK_S, _SLOW_S = 1.0, 3.0


class Window:
    """Requests under way at a time: one more after a round without trouble, half after trouble.

    A part is as large as comes in about a second, so that each ends in time on a slow link too.

    Args:
        most: Never more than these.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._good = 0
        self._halved_at = -math.inf
        self.limit = self._most
        self.under_way = 0
        self.part_bytes = max(_SMALLEST_PART_BYTES, _LARGEST_PART_BYTES // self._most)

    @property
    def has_room(self) -> bool:
        return self.under_way < self.limit

    def begin(self) -> None:
        """One more request is under way."""
        self.under_way += 1

    def end_well(self, took_s: float) -> None:
        """A request was answered."""
        self.under_way -= 1
        self._good += 1
        if took_s > _SLOW_S:
            self._halve_parts()
        if self._good >= self.limit:
            self._good = 0
            self.limit = min(self._most, self.limit + 1)
            if took_s < _QUICK_S:
                self.part_bytes = min(_LARGEST_PART_BYTES, 2 * self.part_bytes)

    def end_badly(self, began_at: float, now: float) -> None:
        """A request was refused or not answered; many of one moment count as one."""
        self.under_way -= 1
        self._good = 0
        if began_at >= self._halved_at:
            self._halved_at = now
            self.limit = max(1, self.limit // 2)
            self._halve_parts()

    def _halve_parts(self) -> None:
        self._good = 0
        self.part_bytes = max(_SMALLEST_PART_BYTES, self.part_bytes // 2)


class RetryBudget:
    """Retries that requests have earned: one per ten answers, and one per two seconds.

    A store in trouble must not get more requests for that; who waits long enough is never refused.
    """

    _MOST = 10.0
    _PER_ANSWER = 0.1
    _PER_S = 0.5

    def __init__(self, now: float) -> None:
        self._left = self._MOST
        self._counted_at = now
        self.num_retries = 0

    def earn(self) -> None:
        """A request was answered."""
        self._left = min(self._MOST, self._left + self._PER_ANSWER)

    def pause_s(self, attempt: int, now: float, random: float) -> float:
        """Take one retry.

        Args:
            attempt: How often this request has failed, from 1.
            now: Monotonic seconds.
            random: Uniform in [0, 1): the pause is drawn between nothing and its longest.

        Returns:
            Seconds to wait before it.
        """
        self._left = min(self._MOST, self._left + (now - self._counted_at) * self._PER_S) - 1
        self._counted_at = now
        self.num_retries += 1
        longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * float(2 ** min(attempt, 10)))
        return max(random * longest_s, -self._left / self._PER_S)


class Throttle:
    """A limit of bytes per second; None: no limit."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = -math.inf

    @property
    def part_bytes(self) -> int:
        """The most to ask for at once: a quarter of a second's bytes."""
        if self._bytes_per_s is None:
            return _LARGEST_PART_BYTES
        return max(2**16, int(self._bytes_per_s / 4))

    def free_at(self) -> float:
        """When the next part may be asked for, monotonic seconds."""
        return self._free_at

    def take(self, num_bytes: int, now: float) -> None:
        """A part was asked for."""
        if self._bytes_per_s is not None:
            self._free_at = max(now, self._free_at) + num_bytes / self._bytes_per_s


class Speedometer:
    """Bytes per second over the last seconds."""

    def __init__(self, now: float, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def add(self, total_bytes: int, now: float) -> None:
        """``total_bytes`` had arrived at ``now``."""
        self._samples.append((now, total_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()

    def bytes_per_s(self, now: float) -> float | None:
        """None before anything can be said."""
        (began_at, before), (_, after) = self._samples[0], self._samples[-1]
        return (after - before) / (now - began_at) if now > began_at and after > before else None
