"""A store that is slow, fails before or after the effect, or lets the effect land much later."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from cloudshift_lab.core.errors import Denied, Exhausted, Unavailable
from cloudshift_lab.sim.scheduler import Scheduler, derived_random
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Blob, Request

T = TypeVar("T")


@dataclass(frozen=True)
class Mutation:
    """One effect on a store, at the moment it happens. ``data`` is None for a delete."""

    url: str
    key: str
    data: bytes | None
    before: bytes | None
    actor: str


@dataclass(frozen=True)
class FaultRates:
    """How bad a store is, probabilities per operation; nothing fails after ``calm_at_s``.

    ``outage_s``: longest time for which the whole store is sometimes unreachable.
    ``late_s``: longest time after which a write without an answer may still land.
    ``denied``: credentials are refused for a moment; ``damaged``: a bit of a checkpoint's object
    flips on its way to the reader.
    ``create``: how many times likelier a ``create`` fails: few operations, and all that decide.
    """

    before: float = 0.02
    after: float = 0.02
    late: float = 0.01
    full: float = 0.001
    outage: float = 0.001
    outage_s: float = 40.0
    late_s: float = 30.0
    latency_s: float = 0.05
    timeout_s: float = 10.0
    create: float = 1.0
    denied: float = 0.0003
    damaged: float = 0.002
    calm_at_s: float = 300.0


CALM = FaultRates(before=0, after=0, late=0, full=0, outage=0, denied=0, damaged=0)


@dataclass
class FaultyStore:
    """``MemoryStore`` behind a bad network; every operation is two yield points.

    Args:
        inner: Holds the objects; an invariant reads it without a fault and without a yield.
        scheduler: Clock and baton.
        rates: How often what goes wrong.
        watch: Called at every mutation, in the very moment of its effect.
        yielded: Called at every yield point, before it: a chance to crash or freeze the actor.
        is_cut: Whether the current actor cannot reach this store, though others may.
    """

    inner: MemoryStore
    scheduler: Scheduler
    rates: FaultRates
    watch: Callable[[Mutation], None]
    yielded: Callable[[str], None]
    is_cut: Callable[[], bool] = lambda: False
    faults: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.url = self.inner.url
        self._random: random.Random = derived_random(self.scheduler.seed, "store", self.url)
        self._outage_until_s = 0.0

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        data = self._read("get", key, lambda: self.inner.get(key, start=start, end=end))
        is_hashed = key.startswith("packs/") or "/steps/" in key
        if data and is_hashed and self._happens(self.rates.damaged):
            self._count("damaged", "get", key)
            place = self._random.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return data

    def size(self, key: str) -> int | None:
        return self._read("size", key, lambda: self.inner.size(key))

    def list(self, prefix: str) -> list[str]:
        return self._read("list", prefix, lambda: self.inner.list(prefix))

    def put(self, key: str, data: Blob) -> None:
        data = bytes(data)
        self._write("put", key, data, lambda: self.inner.put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        data = bytes(data)
        return self._write("create", key, data, lambda: self.inner.create(key, data))

    def delete(self, key: str) -> None:
        self._write("delete", key, None, lambda: self.inner.delete(key))

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        del concurrency
        return [self.get(key, start=start, end=end) for key, start, end in requests]

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        del concurrency
        for number, (key, start, end) in enumerate(requests):
            yield number, self.get(key, start=start, end=end)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        del concurrency
        for key, data in objects.items():
            self.put(key, data)

    def _read(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        self._travel(operation, key)
        if self._happens(self.rates.before + self.rates.after):
            self._fail("before", operation, key)
        value = effect()
        self._travel("answer", key)
        return value

    def _write(self, operation: str, key: str, data: bytes | None, effect: Callable[[], T]) -> T:
        factor = self.rates.create if operation == "create" else 1.0
        self._travel(operation, key)
        if self._happens(self.rates.before * factor):
            self._fail("before", operation, key)
        if self._happens(self.rates.full):
            self._count("full", operation, key)
            raise Exhausted(f"{self.url} is full; free some space and try again")
        if self._happens(self.rates.late * factor):
            wait_s = self._random.random() * self.rates.late_s
            actor = self.scheduler.current
            self.scheduler.call_later(wait_s, partial(self._land, key, data, actor, effect))
            self.scheduler.pause(self._random.random() * self.rates.timeout_s)
            self._fail("late", operation, key)
        value = self._land(key, data, self.scheduler.current, effect)
        self._travel("answer", key)
        if self._happens(self.rates.after * factor):
            self._fail("after", operation, key)
        return value

    def _land(self, key: str, data: bytes | None, actor: str, effect: Callable[[], T]) -> T:
        before = self._peek(key)
        value = effect()
        after = self._peek(key)
        self.scheduler.trace(f"landed {self.url}/{key} {before != after} by {actor}")
        if before != after or data is None:
            self.watch(Mutation(self.url, key, after, before, actor))
        return value

    def _peek(self, key: str) -> bytes | None:
        return self.inner.get(key) if self.inner.size(key) is not None else None

    def _travel(self, operation: str, key: str) -> None:
        """Half a round trip, a yield point; a store in an outage answers nobody."""
        self.yielded(operation)
        self.scheduler.trace(f"{operation} {self.url}/{key}")
        self.scheduler.pause(self._random.random() * self.rates.latency_s)
        if operation == "answer":
            return
        if self._happens(self.rates.outage):
            outage_s = self._random.random() * self.rates.outage_s
            self._outage_until_s = self.scheduler.clock_s + outage_s
            self._count("outage", operation, key)
        if self._happens(self.rates.denied):
            self._count("denied", operation, key)
            raise Denied(f"{self.url} refused the credentials; renew them and try again")
        is_cut = self.is_cut()
        if is_cut:
            self._count("cut", operation, key)
        if is_cut or self.scheduler.clock_s < self._outage_until_s:
            self.scheduler.pause(self._random.random() * self.rates.timeout_s)
            raise Unavailable(f"{self.url} does not answer; try again")

    def _happens(self, probability: float) -> bool:
        if self.scheduler.clock_s >= self.rates.calm_at_s:
            return False
        return self._random.random() < probability

    def _fail(self, kind: str, operation: str, key: str) -> None:
        self._count(kind, operation, key)
        raise Unavailable(f"{self.url} did not answer ({operation} {key}); try again")

    def _count(self, kind: str, operation: str, key: str) -> None:
        self.faults[kind] += 1
        self.scheduler.trace(f"fault {kind} {operation} {key}")
