"""The requests of a transfer, each tried once: by whoever asks, or by threads for it."""

from __future__ import annotations

import queue
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol

from blake3 import blake3

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.store import Store, without_retries

Kind = Literal["look", "fetch", "deliver"]
TICK_S = 0.5
_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{64})\.pack")


def expected_hash(key: str, given: str | None) -> str | None:
    """The blake3 an object must have: the given one, or the one in a pack's name."""
    match = _PACK.fullmatch(key)
    return given or (match.group(1) if match else None)


@dataclass(eq=False)
class Item:
    """One object on its way: ``buffer`` fills as parts come, ``missing`` bytes have not come."""

    index: int
    key: str
    expected: str | None
    group: int
    num_bytes: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    missing: int = 0
    num_short: int = 0
    found: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Errand:
    """One request: look at both stores, fetch bytes ``start..end``, or prove and deliver."""

    kind: Kind
    item: Item
    attempt: int
    began_at: float
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of an errand.

    ``here`` and ``there``: sizes at the source and at the target, of a look. ``num_bytes``: of a
    fetch. ``found``: the hash of bytes that were not delivered, since it is not the right one.
    """

    errand: Errand
    error: CloudshiftError | None = None
    here: int | None = None
    there: int | None = None
    num_bytes: int = 0
    found: str | None = None


class Errands:
    """Does errands between two stores, without any retry.

    Args:
        source: Where to read.
        target: Where to write.
        sizes: Bytes of the source's objects, where they are known.
    """

    def __init__(self, source: Store, target: Store, sizes: dict[str, int]) -> None:
        self._source = without_retries(source)
        self._target = without_retries(target)
        self._sizes = sizes

    def do(self, errand: Errand) -> Outcome:
        """Try it once; an error of a store is an outcome."""
        try:
            return getattr(self, f"_{errand.kind}")(errand)  # type: ignore[no-any-return]
        except CloudshiftError as error:
            return Outcome(errand, error)

    def _look(self, errand: Errand) -> Outcome:
        key = errand.item.key
        there = self._target.size(key)
        here = self._sizes[key] if key in self._sizes else self._source.size(key)
        return Outcome(errand, here=here, there=there)

    def _fetch(self, errand: Errand) -> Outcome:
        start, end, buffer = errand.start, errand.end, errand.item.buffer
        data = self._source.get(errand.item.key, start=start, end=end)
        if len(data) == end - start:
            buffer[start:end] = data
        return Outcome(errand, num_bytes=len(data))

    def _deliver(self, errand: Errand) -> Outcome:
        item = errand.item
        if item.expected is not None:
            found = blake3(item.buffer).hexdigest()
            if found != item.expected:
                return Outcome(errand, found=found)
        self._target.put(item.key, memoryview(item.buffer))
        return Outcome(errand)


class Runner(Protocol):
    """Whoever does errands; given and asked by one thread only."""

    def give(self, errand: Errand) -> None:
        """Have it done."""

    def next(self, wait_s: float) -> Outcome | None:
        """An outcome; None when there was none within ``wait_s`` or half a second."""

    def close(self) -> None:
        """Drop what has not begun, and wait for deliveries that have."""


class DoneHere:
    """At once, in the caller's thread: one at a time, in a fixed order."""

    def __init__(self, errands: Errands, world: World) -> None:
        self._errands = errands
        self._world = world
        self._done: deque[Outcome] = deque()

    def give(self, errand: Errand) -> None:
        self._done.append(self._errands.do(errand))

    def next(self, wait_s: float) -> Outcome | None:
        if self._done:
            return self._done.popleft()
        self._world.sleep(min(wait_s, TICK_S))
        return None

    def close(self) -> None:
        self._done.clear()


class DoneByThreads:
    """By threads, so that reading and writing overlap."""

    def __init__(self, errands: Errands, world: World, concurrency: int) -> None:
        self._errands = errands
        self._world = world
        self._readers = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
        self._writers = ThreadPoolExecutor(concurrency, thread_name_prefix="deliver")
        self._done: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
        self._under_way = 0

    def give(self, errand: Errand) -> None:
        pool = self._writers if errand.kind == "deliver" else self._readers
        self._under_way += 1
        pool.submit(self._errands.do, errand).add_done_callback(self._done.put)

    def next(self, wait_s: float) -> Outcome | None:
        if self._under_way == 0:
            self._world.sleep(min(wait_s, TICK_S))
            return None
        try:
            ended = self._done.get(timeout=min(wait_s, TICK_S))
        except queue.Empty:
            return None
        self._under_way -= 1
        return ended.result()

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=True, cancel_futures=True)
