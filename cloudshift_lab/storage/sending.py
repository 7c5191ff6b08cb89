"""All decisions of one transfer: what to ask for next, what to repeat, when to stop."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cloudshift_lab.core.errors import CloudshiftError, Corrupt, Exhausted, NotFound, Unavailable
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.errands import Errand, Item, Kind, Outcome, Runner, expected_hash
from cloudshift_lab.storage.pace import RetryBudget, Speedometer, Throttle, Window
from cloudshift_lab.storage.store import DEADLINE_S

Keys: TypeAlias = Mapping[str, str | None]
_MOST_READINGS = 4
_MOST_HELD = 256


@dataclass(frozen=True)
class TransferOptions:
    """How to bring objects.

    Args:
        concurrency: Requests under way at a time, at each store, at most; fewer while a store is
            in trouble. 1: in the caller's thread, in a fixed order, without overlap.
        max_bytes: The most to ask the source for, repetitions included; None: no limit.
        bytes_per_s: The most to ask the source for in a second; None: no limit.
        deadline_s: Longest time for all of it; None: no limit.
        patience_s: Longest time in which no request at all is answered.
        memory_bytes: Objects on their way at a time; a larger one travels alone.
    """

    concurrency: int = 8
    max_bytes: int | None = None
    bytes_per_s: float | None = None
    deadline_s: float | None = None
    patience_s: float = DEADLINE_S
    memory_bytes: int = 192 * 2**20


@dataclass(frozen=True)
class TransferProgress:
    """Where a transfer is; objects that the target had already are left out.

    ``done_bytes`` have been read; ``done_objects`` are proved and written. ``bytes_per_s`` is over
    the last seconds, and with ``eta_s`` None as long as nothing can be said.
    """

    done_bytes: int
    total_bytes: int
    done_objects: int
    total_objects: int
    bytes_per_s: float | None
    eta_s: float | None
    retries: int
    concurrency: int


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did.

    ``num_bytes`` and ``num_objects`` were written, ``skipped`` objects were there. ``wire_bytes``
    were asked of the source. ``bytes_per_s`` is None when nothing had to be sent.
    """

    num_bytes: int
    num_objects: int
    skipped: int
    duration_s: float
    bytes_per_s: float | None
    retries: int
    wire_bytes: int


class Sending:
    """One transfer, decided in one thread; others only do errands.

    Args:
        groups: Keys with their hashes; none of a group is written before those before it.
        limits: Of requests, bytes and time.
        world: Clock, sleep and jitter.
        runner: Does what is decided.
        source_url: For messages.
    """

    def __init__(
        self, groups: Sequence[Keys], limits: TransferOptions, world: World, runner: Runner,
        source_url: str,
    ) -> None:  # fmt: skip
        self._limits = limits
        self._world = world
        self._runner = runner
        self._source_url = source_url
        now = self._began_at = self._moved_at = world.monotonic()
        self._sending_since = now
        at_source, at_target = Window(limits.concurrency), Window(limits.concurrency)
        self._windows: dict[Kind, Window] = {
            "look": at_target, "fetch": at_source, "deliver": at_target,
        }  # fmt: skip
        self._budget, self._throttle = RetryBudget(now), Throttle(limits.bytes_per_s)
        self._speed = Speedometer(now)
        found = {key: (given, n) for n, group in enumerate(groups) for key, given in group.items()}
        self._items = [
            Item(index, key, expected_hash(key, given), group)
            for index, (key, (given, group)) in enumerate(found.items())
        ]
        self._looks = [(-math.inf, item.index, 0) for item in self._items]
        self._to_look = len(self._items)
        self._to_send: list[Item] = []
        self._gaps: list[tuple[float, int, int, int, int]] = []
        self._whole: list[list[tuple[float, int, int]]] = [[] for _ in groups]
        self._left_in = [0 for _ in groups]
        self._num_sending = self._held_bytes = self._num_held = 0
        self._total_bytes = self._done_bytes = self._sent_bytes = self._wire_bytes = 0
        self._num_sent = self._skipped = 0
        self._over: Exhausted | None = None

    def run(self) -> Generator[TransferProgress, None, TransferReport]:
        """Look what is missing, then send it."""
        yield from self._drive(self._begin_looks, lambda: self._to_look == 0)
        self._plan()
        yield from self._drive(self._begin_sending, self._is_sent)
        if self._over is not None:
            raise self._over
        now = self._world.monotonic()
        took_s = now - self._sending_since
        return TransferReport(
            num_bytes=self._sent_bytes,
            num_objects=self._num_sent,
            skipped=self._skipped,
            duration_s=now - self._began_at,
            bytes_per_s=self._sent_bytes / took_s if self._sent_bytes and took_s > 0 else None,
            retries=self._budget.num_retries,
            wire_bytes=self._wire_bytes,
        )

    def _drive(
        self, begin: Callable[[float], float], is_done: Callable[[], bool]
    ) -> Generator[TransferProgress, None, None]:
        while not is_done():
            now = self._world.monotonic()
            self._check_deadline(now)
            outcome = self._runner.next(max(0.0, begin(now) - now))
            if outcome is not None:
                self._settle(outcome)
            yield self._progress()

    def _begin_looks(self, now: float) -> float:
        """Begin what can begin; when to try again, infinity when an outcome must come first."""
        window = self._windows["look"]
        while self._looks and window.has_room and self._looks[0][0] <= now:
            _, index, attempt = heapq.heappop(self._looks)
            self._give(Errand("look", self._items[index], attempt, now))
        return self._looks[0][0] if self._looks and window.has_room else math.inf

    def _plan(self) -> None:
        """Refuse what would cost too much, before the first byte."""
        most, total = self._limits.max_bytes, self._total_bytes
        if most is not None and total > most:
            raise Exhausted(
                f"{total} bytes are missing but only {most} may be sent; allow more or move less",
                needed=total, allowed=most,
            )  # fmt: skip
        self._to_send.sort(key=lambda item: item.index, reverse=True)
        self._num_sending = len(self._to_send)
        for item in self._to_send:
            self._left_in[item.group] += 1
        self._sending_since = self._world.monotonic()

    def _begin_sending(self, now: float) -> float:
        return min(self._begin_deliveries(now), self._begin_fetches(now))

    def _begin_deliveries(self, now: float) -> float:
        window, whole = self._windows["deliver"], self._whole[self._group()]
        while whole and window.has_room and whole[0][0] <= now:
            _, index, attempt = heapq.heappop(whole)
            self._give(Errand("deliver", self._items[index], attempt, now))
        return whole[0][0] if whole and window.has_room else math.inf

    def _group(self) -> int:
        """The first group that is not written yet."""
        groups = range(len(self._left_in))
        return next((n for n in groups if self._left_in[n]), len(self._left_in) - 1)

    def _begin_fetches(self, now: float) -> float:
        window = self._windows["fetch"]
        while window.has_room and self._over is None:
            if self._throttle.free_at() > now:
                return self._throttle.free_at()
            self._admit(now)
            if not self._gaps or self._gaps[0][0] > now:
                return self._gaps[0][0] if self._gaps else math.inf
            self._begin_fetch(window, now)
        return math.inf

    def _admit(self, now: float) -> None:
        """Take more objects on, as many as are needed to have a part to ask for, if they fit."""
        while self._to_send and (not self._gaps or self._gaps[0][0] > now):
            item = self._to_send[-1]
            fits = self._held_bytes + item.num_bytes <= self._limits.memory_bytes
            if self._num_held and not (fits and self._num_held < _MOST_HELD):
                return
            self._to_send.pop()
            self._held_bytes += item.num_bytes
            self._num_held += 1
            item.buffer = bytearray(item.num_bytes)
            self._read_whole(item, -math.inf)

    def _read_whole(self, item: Item, not_before: float) -> None:
        item.missing = item.num_bytes
        if item.num_bytes:
            heapq.heappush(self._gaps, (not_before, item.index, 0, item.num_bytes, 0))
        else:
            heapq.heappush(self._whole[item.group], (not_before, item.index, 0))

    def _begin_fetch(self, window: Window, now: float) -> None:
        not_before, index, start, end, attempt = heapq.heappop(self._gaps)
        stop = min(end, start + min(window.part_bytes, self._throttle.part_bytes))
        if stop < end:
            heapq.heappush(self._gaps, (not_before, index, stop, end, attempt))
        num_bytes, most = stop - start, self._limits.max_bytes
        if most is not None and self._wire_bytes + num_bytes > most:
            self._over = Exhausted(
                f"{self._wire_bytes} of {most} bytes were sent, some of them again after errors, "
                "and more are missing; what arrived stays: allow more, then try again",
                sent=self._wire_bytes, allowed=most,
            )  # fmt: skip
            return
        self._wire_bytes += num_bytes
        self._throttle.take(num_bytes, now)
        self._give(Errand("fetch", self._items[index], attempt, now, start, stop))

    def _give(self, errand: Errand) -> None:
        self._windows[errand.kind].begin()
        self._runner.give(errand)

    def _is_sent(self) -> bool:
        if self._over is None:
            return self._num_sent == self._num_sending
        under_way = sum(self._windows[kind].under_way for kind in ("fetch", "deliver"))
        return not under_way and not self._whole[self._group()]

    def _settle(self, outcome: Outcome) -> None:
        errand, error, now = outcome.errand, outcome.error, self._world.monotonic()
        window = self._windows[errand.kind]
        if error is not None:
            if not isinstance(error, Unavailable):
                raise error
            window.end_badly(errand.began_at, now)
            if errand.kind == "fetch" and error.facts.get("busy"):
                self._wire_bytes -= errand.end - errand.start
            self._repeat(errand, error, now)
            return
        window.end_well(now - errand.began_at)
        self._budget.earn()
        self._moved_at = now
        getattr(self, f"_end_{errand.kind}")(outcome, now)

    def _end_look(self, outcome: Outcome, now: float) -> None:
        del now
        item, here, there = outcome.errand.item, outcome.here, outcome.there
        if here is None and there is None:
            raise NotFound(
                f"{self._source_url}/{item.key} does not exist; check the source's checkpoint",
                key=item.key,
            )
        self._to_look -= 1
        if here is None or here == there:
            self._skipped += 1
            return
        item.num_bytes = here
        self._total_bytes += here
        self._to_send.append(item)

    def _end_fetch(self, outcome: Outcome, now: float) -> None:
        errand, item = outcome.errand, outcome.errand.item
        if outcome.num_bytes != errand.end - errand.start:
            item.num_short += 1
            if item.num_short >= _MOST_READINGS:
                raise self._damaged(item, f"only {errand.start + outcome.num_bytes} bytes came")
            self._repeat(errand, None, now)
            return
        item.missing -= outcome.num_bytes
        self._done_bytes += outcome.num_bytes
        self._speed.add(self._done_bytes, now)
        if item.missing == 0:
            heapq.heappush(self._whole[item.group], (-math.inf, item.index, 0))

    def _end_deliver(self, outcome: Outcome, now: float) -> None:
        item, found = outcome.errand.item, outcome.found
        if found is None:
            self._num_sent += 1
            self._left_in[item.group] -= 1
            self._sent_bytes += item.num_bytes
            self._held_bytes -= item.num_bytes
            self._num_held -= 1
            item.buffer = bytearray()
            return
        if found in item.found or len(item.found) + 1 >= _MOST_READINGS:
            raise self._damaged(item, f"its bytes hash to {found[:12]}", found)
        item.found.add(found)
        self._done_bytes -= item.num_bytes
        self._read_whole(item, now + self._pause_s(len(item.found), now))

    def _repeat(self, errand: Errand, error: CloudshiftError | None, now: float) -> None:
        """Put an errand back, to be tried again after a pause."""
        if now - self._moved_at > self._limits.patience_s:
            detail = f" ({error.message})" if error is not None else ""
            raise Unavailable(
                f"nothing came from or went to {self._source_url} for "
                f"{self._limits.patience_s:g} s{detail}; what arrived stays: try again"
            ) from error
        attempt = errand.attempt + 1
        at, index = now + self._pause_s(attempt, now), errand.item.index
        if errand.kind == "fetch":
            heapq.heappush(self._gaps, (at, index, errand.start, errand.end, attempt))
        else:
            waiting = self._looks if errand.kind == "look" else self._whole[errand.item.group]
            heapq.heappush(waiting, (at, index, attempt))

    def _pause_s(self, attempt: int, now: float) -> float:
        return self._budget.pause_s(attempt, now, self._world.random())

    def _damaged(self, item: Item, what: str, found: str | None = None) -> Corrupt:
        return Corrupt(
            f"{self._source_url}/{item.key} is damaged ({what}, expected "
            f"{(item.expected or '?')[:12]}, {item.num_bytes} bytes); use an older step",
            key=item.key, expected=item.expected, found=found,
        )  # fmt: skip

    def _check_deadline(self, now: float) -> None:
        limit_s = self._limits.deadline_s
        if limit_s is not None and now - self._began_at > limit_s:
            raise Exhausted(
                f"{self._done_bytes} of {self._total_bytes} bytes came within {limit_s:g} s; what "
                "arrived stays: allow more time, then try again",
                sent=self._done_bytes, needed=self._total_bytes,
            )  # fmt: skip

    def _progress(self) -> TransferProgress:
        speed = self._speed.bytes_per_s(self._world.monotonic())
        return TransferProgress(
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            done_objects=self._num_sent,
            total_objects=self._num_sending,
            bytes_per_s=speed,
            eta_s=(self._total_bytes - self._done_bytes) / speed if speed else None,
            retries=self._budget.num_retries,
            concurrency=self._windows["fetch"].limit,
        )
