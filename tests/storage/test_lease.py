"""A lease detects death on the observer's own clock and stops a sleeper from publishing."""

import pytest

from cloudshift_lab.core.errors import Unavailable
from cloudshift_lab.storage.lease import Lease, LeaseObserver
from cloudshift_lab.storage.memory import MemoryStore


class Clock:
    """Clocks of two machines that disagree on the date by years."""

    def __init__(self, wall_s: float) -> None:
        self.wall_s = wall_s
        self.time_s = 0.0

    def now(self) -> float:
        return self.wall_s + self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-1"


class Offline(MemoryStore):
    """Answers until it is switched off."""

    off = False

    def put(self, key: str, data: bytes) -> None:
        if self.off:
            raise Unavailable("off; switch it on")
        super().put(key, data)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        if self.off:
            raise Unavailable("off; switch it on")
        return super().get(key, start=start, end=end)


def pair() -> tuple[Offline, Lease, Clock, LeaseObserver, Clock]:
    store, ours, theirs = Offline(), Clock(1e9), Clock(2e9)
    lease = Lease(store, "r", 1, ours, ttl_s=30)
    return store, lease, ours, LeaseObserver(store, "r", 1, theirs, ttl_s=30), theirs


def test_an_owner_that_beats_is_never_expired() -> None:
    _, lease, _, observer, clock = pair()
    for _ in range(20):
        lease.beat()
        assert not observer.expired()
        clock.sleep(29)


def test_an_owner_that_stopped_is_expired_after_one_time_to_live_of_the_observer() -> None:
    _, lease, _, observer, clock = pair()
    lease.beat()
    assert not observer.expired()
    clock.sleep(30)
    assert not observer.expired()
    clock.sleep(0.1)
    assert observer.expired()
    lease.beat()
    assert not observer.expired()


def test_an_owner_that_never_beat_expires_too() -> None:
    _, _, _, observer, clock = pair()
    assert not observer.expired()
    clock.sleep(31)
    assert observer.expired()


def test_an_observer_that_cannot_look_proves_nothing() -> None:
    store, lease, _, observer, clock = pair()
    lease.beat()
    assert not observer.expired()
    clock.sleep(31)
    store.off = True
    with pytest.raises(Unavailable):
        observer.expired()


def test_an_owner_may_publish_for_two_thirds_of_the_time_to_live() -> None:
    store, lease, clock, _, _ = pair()
    assert not lease.may_publish()
    lease.beat()
    clock.sleep(20)
    assert lease.may_publish()
    store.off = True
    with pytest.raises(Unavailable):
        lease.beat()
    clock.sleep(0.1)
    assert not lease.may_publish()


def test_a_slow_answer_does_not_extend_the_lease() -> None:
    clock = Clock(0)

    class Slow(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            clock.sleep(21)

    lease = Lease(Slow(), "r", 1, clock, ttl_s=30)
    lease.beat()
    assert not lease.may_publish()
