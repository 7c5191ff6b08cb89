"""Processes that fight for one run's log, each with a clock of its own, and the judge of it.

::

    python -m cloudshift_lab.sim.racers     # RacerSpec as the first line of stdin; ends with stdin

A racer takes a run over as soon as its owner seems dead, then beats and commits without end. It
says on stdout, a JSON line each, what it was promised: only that can be held against a store.
"""

from __future__ import annotations

import random
import select
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Literal

import msgspec

from cloudshift_lab.core.errors import Fenced, Unavailable
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, RealWorld
from cloudshift_lab.storage.lease import Lease, LeaseObserver
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.split import SplitStore
from cloudshift_lab.storage.store import Blob, Request, Store, open_store

_STEPS_OF_A_GENERATION = 1_000_000
_MOST_LAG_S = 0.3


class Place(msgspec.Struct, frozen=True):
    """A store to race in. ``log_url``: of another one that keeps the logs."""

    url: str
    options: dict[str, msgspec.Raw] = {}
    log_url: str = ""

    def open(self) -> Store:
        """The store, or both."""
        options = {name: msgspec.json.decode(value) for name, value in self.options.items()}
        data = open_store(self.url, options)
        return SplitStore(open_store(self.log_url), data) if self.log_url else data


class RacerSpec(msgspec.Struct, frozen=True):
    """Who races where.

    ``clock_error_s``: how wrong its calendar is; ``clock_rate``: seconds of its clock per second.
    ``is_careless``: its store writes over what is there, as some gateways do.
    """

    place: Place
    run_id: str
    name: str
    ttl_s: float
    clock_error_s: float = 0.0
    clock_rate: float = 1.0
    is_careless: bool = False


class Promise(msgspec.Struct, frozen=True):
    """What a racer was told by the log, and when it asked and was answered (one clock for all)."""

    name: str
    kind: Literal["ready", "acquired", "committed", "fenced", "away"]
    generation: int = 0
    seq: int = -1
    nonce: str = ""
    asked_at: float = 0.0
    told_at: float = 0.0


class SkewedWorld(RealWorld):
    """A machine whose calendar is wrong and whose clock is fast or slow."""

    def __init__(self, error_s: float, rate: float) -> None:
        self._error_s = error_s
        self._rate = rate

    def now(self) -> float:
        return super().now() + self._error_s

    def monotonic(self) -> float:
        return super().monotonic() * self._rate

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / self._rate)


class LaggingStore:
    """Waits a while between the decision to create and the request, so that racers do meet."""

    def __init__(self, inner: Store, *, is_careless: bool) -> None:
        self._inner = inner
        self._is_careless = is_careless
        self.url = inner.url

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        return self._inner.get(key, start=start, end=end)

    def put(self, key: str, data: Blob) -> None:
        self._inner.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        REAL_WORLD.sleep(random.random() * _MOST_LAG_S)
        if not self._is_careless:
            return self._inner.create(key, data)
        self._inner.put(key, data)
        return True

    def size(self, key: str) -> int | None:
        return self._inner.size(key)

    def list(self, prefix: str) -> list[str]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def get_many(self, requests: Sequence[Request], concurrency: int = 8) -> Sequence[bytes]:
        return self._inner.get_many(requests, concurrency)

    def get_each(
        self, requests: Sequence[Request], concurrency: int = 8
    ) -> Generator[tuple[int, bytes], None, None]:
        return self._inner.get_each(requests, concurrency)

    def put_many(self, objects: Mapping[str, Blob], concurrency: int = 4) -> None:
        self._inner.put_many(objects, concurrency)


class Racer:
    """One contender; it trusts its own clock for nothing but patience."""

    def __init__(self, spec: RacerSpec, store: Store) -> None:
        self._spec = spec
        self._store = store
        self._world = SkewedWorld(spec.clock_error_s, spec.clock_rate)
        self._log = RunLog(store, spec.run_id, self._world)
        self._observed: tuple[int, LeaseObserver] | None = None
        self._lease: Lease | None = None
        self._generation = 0
        self._commits = 0

    def turn(self) -> Promise | None:
        """One try: to keep what it owns, or to get it. What came of it, if anything."""
        asked_at = REAL_WORLD.monotonic()
        try:
            record = self._take() if self._lease is None else self._publish(self._lease)
        except Fenced:
            self._lease = None
            return self._promise("fenced", None, asked_at)
        except Unavailable:
            return self._promise("away", None, asked_at)
        if record is None:
            return None
        kind: Literal["acquired", "committed"] = (
            "acquired" if record.kind == "acquire" else "committed"
        )
        return self._promise(kind, record, asked_at)

    def rest(self) -> None:
        """Until the next turn: several are within the time to live."""
        self._world.sleep(self._spec.ttl_s / 8 * (0.5 + self._world.random()))

    def _take(self) -> LogRecord | None:
        state = self._log.sync()
        if state.owner is not None and not self._seems_dead(state):
            return None
        generation = state.generation + 1
        record = self._log.acquire(
            generation=generation, owner=self._spec.name, nonce=self._world.new_id("acquire")
        )
        self._generation, self._commits = generation, 0
        self._lease = Lease(
            self._store, self._spec.run_id, generation, self._world, self._spec.ttl_s
        )
        self._lease.beat()
        return record

    def _seems_dead(self, state: LogState) -> bool:
        if self._observed is None or self._observed[0] != state.generation:
            observer = LeaseObserver(
                self._store, self._spec.run_id, state.generation, self._world, self._spec.ttl_s
            )
            self._observed = state.generation, observer
        return self._observed[1].expired()

    def _publish(self, lease: Lease) -> LogRecord:
        """Commit without asking ``may_publish``: a sleeper that does not know that it slept."""
        self._commits += 1
        record = self._log.commit(
            generation=self._generation,
            step=self._generation * _STEPS_OF_A_GENERATION + self._commits,
            manifest_key="m",
            manifest_digest="d",
            nonce=self._world.new_id("commit"),
        )
        lease.beat()
        return record

    def _promise(
        self, kind: Literal["acquired", "committed", "fenced", "away"], record: LogRecord | None,
        asked_at: float,
    ) -> Promise:  # fmt: skip
        return Promise(
            self._spec.name, kind, self._generation, -1 if record is None else record.seq,
            "" if record is None else record.nonce, asked_at, REAL_WORLD.monotonic(),
        )  # fmt: skip


def violations(records: Sequence[LogRecord], promises: Sequence[Promise]) -> list[str]:
    """What a store did that no store may do to a log; empty when it kept every promise. Pure.

    Args:
        records: The log as it is in the end.
        promises: What all racers were told.
    """
    found = _wrong_records(records)
    by_nonce = {record.nonce: record for record in records}
    for each in promises:
        record = by_nonce.get(each.nonce)
        if each.nonce and (record is None or record.seq != each.seq):
            found.append(f"{each.name} was promised record {each.seq}, which is gone")
    taken = [each for each in promises if each.kind == "acquired"]
    for late in promises:
        for newer in taken:
            is_after = late.asked_at > newer.told_at and late.generation < newer.generation
            if late.kind == "committed" and is_after:
                found.append(f"{late.name} committed after {newer.name} had taken the run over")
    return found


def _wrong_records(records: Sequence[LogRecord]) -> list[str]:
    found, generation, owner, step = [], 0, "", -1
    for record in records:
        if record.kind == "acquire":
            if record.generation <= generation:
                found.append(f"record {record.seq}: generation {record.generation} came again")
            generation, owner = record.generation, record.owner
        elif (record.generation, record.owner) != (generation, owner):
            found.append(f"record {record.seq}: {record.owner} wrote, {owner} owned")
        if record.step is not None:
            if record.step <= step:
                found.append(f"record {record.seq}: step {record.step} after {step}")
            step = record.step
    if len({record.nonce for record in records}) != len(records):
        found.append("a request left two records")
    return found


def main() -> int:
    """Race until stdin ends."""
    spec = from_json(sys.stdin.buffer.readline(), RacerSpec, what="the racer's specification")
    store = LaggingStore(spec.place.open(), is_careless=spec.is_careless)
    store.size("warm-up")
    _tell(Promise(spec.name, "ready"))
    sys.stdin.buffer.readline()
    racer = Racer(spec, store)
    while not select.select([sys.stdin], [], [], 0)[0]:
        promise = racer.turn()
        if promise is not None:
            _tell(promise)
        racer.rest()
    return 0


def _tell(promise: Promise) -> None:
    sys.stdout.buffer.write(to_json(promise) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
