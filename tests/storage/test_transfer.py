"""Objects arrive whole, once, in order and within their limits, however bad the way is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from blake3 import blake3

from cloudshift_lab.core.errors import Corrupt, Denied, Exhausted, NotFound, Unavailable
from cloudshift_lab.sim.faulty_store import FaultRates, FaultyStore, Mutation
from cloudshift_lab.sim.scheduler import Scheduler, SimWorld
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Blob
from cloudshift_lab.storage.transfer import (
    TransferOptions,
    TransferProgress,
    TransferReport,
    transfer,
    transfer_steps,
)

MIB = 2**20
CONCURRENCY = pytest.mark.parametrize("concurrency", [1, 8])


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-1"


@dataclass
class Wire:
    """What passed, and what goes wrong next."""

    fetched: list[tuple[str, int, int]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    spoil: Callable[[str, bytes], bytes] = lambda key, data: data
    before_put: Callable[[str], None] = lambda key: None

    @property
    def num_bytes(self) -> int:
        return sum(end - start for _, start, end in self.fetched)


class Watched(MemoryStore):
    """A store at the end of a wire."""

    def __init__(self, wire: Wire, objects: dict[str, bytes] | None = None) -> None:
        super().__init__()
        self.wire = wire
        self.num_looks = 0
        for key, data in (objects or {}).items():
            super().put(key, data)

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        data = super().get(key, start=start, end=end)
        self.wire.fetched.append((key, start or 0, end or len(data)))
        return self.wire.spoil(key, data)

    def put(self, key: str, data: Blob) -> None:
        self.wire.before_put(key)
        self.wire.written.append(key)
        super().put(key, data)

    def size(self, key: str) -> int | None:
        self.num_looks += 1
        return super().size(key)


def pack(data: bytes) -> tuple[str, bytes]:
    name = blake3(data).hexdigest()
    return f"packs/{name[:2]}/{name}.pack", data


OBJECTS = dict([pack(b"a" * 1000), pack(b"b" * 2000), pack(b"")])


class Pair:
    """A source with three packs, an empty target, and the wire between them."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = OBJECTS if objects is None else objects
        self.wire = Wire()
        self.source, self.target = Watched(self.wire, self.objects), Watched(self.wire)
        self.clock = Clock()

    def send(
        self,
        options: TransferOptions | None = None,
        progress: Callable[[TransferProgress], None] | None = None,
        **more: object,
    ) -> TransferReport:
        keys = dict.fromkeys(self.objects)
        return transfer(
            self.source, self.target, keys, options=options, world=self.clock, progress=progress,
            **more,  # type: ignore[arg-type]
        )  # fmt: skip

    def arrived(self) -> bool:
        return {key: MemoryStore.get(self.target, key) for key in self.objects} == self.objects


def failing(times: int, error: Exception) -> Callable[[str, bytes], bytes]:
    left = [times]

    def spoil(key: str, data: bytes) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return data

    return spoil


def spoiling(times: int, change: Callable[[bytes], bytes]) -> Callable[[str, bytes], bytes]:
    left = [times]

    def spoil(key: str, data: bytes) -> bytes:
        if not data or left[0] == 0:
            return data
        left[0] -= 1
        return change(data)

    return spoil


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@CONCURRENCY
def test_packs_arrive_whole_and_the_report_counts_them(concurrency: int) -> None:
    pair, seen = Pair(), []
    report = pair.send(TransferOptions(concurrency=concurrency), progress=seen.append)
    assert pair.arrived()
    assert (report.num_bytes, report.num_objects, report.skipped) == (3000, 3, 0)
    assert (report.wire_bytes, report.retries) == (3000, 0)
    last = seen[-1]
    assert (last.done_bytes, last.total_bytes, last.done_objects, last.total_objects) == (
        3000, 3000, 3, 3,
    )  # fmt: skip


@CONCURRENCY
def test_what_the_target_has_is_not_sent_again(concurrency: int) -> None:
    pair = Pair()
    pair.send()
    pair.wire.fetched.clear()
    report = pair.send(TransferOptions(concurrency=concurrency))
    assert (report.num_bytes, report.num_objects, report.skipped) == (0, 0, 3)
    assert report.bytes_per_s is None
    assert pair.wire.fetched == []


def test_a_half_written_object_at_the_target_is_replaced() -> None:
    pair = Pair()
    pair.target.put(next(iter(OBJECTS)), b"half")
    pair.send()
    assert pair.arrived()


@CONCURRENCY
def test_a_pack_damaged_at_rest_is_corrupt_after_two_equal_readings_and_never_written(
    concurrency: int,
) -> None:
    key, data = pack(b"a" * 1000)
    pair = Pair({key: data})
    MemoryStore.put(pair.source, key, b"z" * 1000)
    with pytest.raises(Corrupt, match="use an older step") as caught:
        pair.send(TransferOptions(concurrency=concurrency))
    assert caught.value.facts["key"] == key
    assert len(pair.wire.fetched) == 2
    assert pair.target.list("") == []


@CONCURRENCY
def test_damage_on_the_wire_is_read_again(concurrency: int) -> None:
    pair = Pair()
    pair.wire.spoil = spoiling(1, flip)
    report = pair.send(TransferOptions(concurrency=concurrency))
    assert pair.arrived()
    assert len(pair.wire.written) == 3
    assert report.retries == 1


@CONCURRENCY
def test_a_truncated_answer_is_asked_for_again(concurrency: int) -> None:
    pair = Pair()
    pair.wire.spoil = spoiling(2, lambda data: data[:-1])
    report = pair.send(TransferOptions(concurrency=concurrency))
    assert pair.arrived()
    assert report.retries == 2


def test_an_object_that_is_shorter_than_it_should_be_is_corrupt() -> None:
    pair = Pair()
    with pytest.raises(Corrupt, match="damaged"):
        pair.send(sizes={key: len(data) + 5 for key, data in OBJECTS.items()})
    assert pair.target.list("") == []


def test_a_record_is_checked_against_the_given_hash() -> None:
    pair = Pair({"runs/r/rank-0of1.json": b"{}"})
    with pytest.raises(Corrupt):
        transfer(pair.source, pair.target, {"runs/r/rank-0of1.json": "0" * 64}, world=pair.clock)
    digest = blake3(b"{}").hexdigest()
    transfer(pair.source, pair.target, {"runs/r/rank-0of1.json": digest}, world=pair.clock)
    assert pair.arrived()


def test_a_key_that_the_source_lacks_is_named_before_anything_is_sent() -> None:
    pair = Pair()
    with pytest.raises(NotFound, match="packs/missing"):
        transfer(pair.source, pair.target, {**dict.fromkeys(OBJECTS), "packs/missing": None})
    assert pair.wire.fetched == []


def test_one_at_a_time_objects_are_written_in_the_order_given() -> None:
    pair = Pair({f"k{n}": b"x" for n in (3, 1, 2)})
    pair.send(TransferOptions(concurrency=1))
    assert pair.wire.written == ["k3", "k1", "k2"]


@CONCURRENCY
def test_a_group_is_not_written_before_those_before_it_even_when_one_of_these_is_late(
    concurrency: int,
) -> None:
    pair = Pair({f"g{n // 4}/{n}": b"x" * 10 for n in range(12)})
    groups = [dict.fromkeys(k for k in pair.objects if k.startswith(f"g{g}")) for g in range(3)]
    pair.wire.spoil = failing(5, Unavailable("lost; try again"))
    transfer(
        pair.source, pair.target, groups[0], then=groups[1:], world=pair.clock,
        options=TransferOptions(concurrency=concurrency),
    )  # fmt: skip
    assert [key[:2] for key in pair.wire.written] == ["g0"] * 4 + ["g1"] * 4 + ["g2"] * 4


def test_large_objects_travel_in_parts_of_8_mib() -> None:
    pair = Pair({"large": bytes(range(256)) * (4096 * 17) + b"end"})
    pair.send(TransferOptions(concurrency=1))
    assert pair.arrived()
    assert [end - start for _, start, end in pair.wire.fetched] == [8 * MIB, 8 * MIB, MIB + 3]


def test_many_at_a_time_parts_begin_small_and_grow_while_they_come_quickly() -> None:
    pair = Pair({"large": bytes(60 * MIB)})
    pair.send(TransferOptions(concurrency=8))
    assert pair.arrived()
    sizes = [end - start for _, start, end in pair.wire.fetched]
    assert sizes[:8] == [MIB] * 8
    assert max(sizes) >= 4 * MIB
    assert sum(sizes) == 60 * MIB


def test_memory_bounds_what_is_read_ahead_of_a_slow_target() -> None:
    pair = Pair({f"k{n}": bytes(1000) for n in range(20)})
    ahead = []

    def notice(key: str) -> None:
        ahead.append(pair.wire.num_bytes - 1000 * len(pair.wire.written))

    pair.wire.before_put = notice
    pair.send(TransferOptions(concurrency=8, memory_bytes=3000))
    assert pair.arrived()
    assert max(ahead) <= 3000


def test_the_next_objects_are_read_while_the_last_is_written() -> None:
    """The first write waits for later reads, which a copy in turns would never begin."""
    pair = Pair({f"k{n}": bytes(1000) for n in range(12)})
    read_ahead = threading.Event()

    def spoil(key: str, data: bytes) -> bytes:
        if key == "k11":
            read_ahead.set()
        return data

    pair.wire.spoil = spoil
    pair.wire.before_put = lambda key: None if read_ahead.wait(60) else pytest.fail("no overlap")
    pair.send(TransferOptions(concurrency=2))
    assert pair.arrived()


def test_more_than_the_budget_is_refused_before_anything_is_read() -> None:
    pair = Pair()
    with pytest.raises(Exhausted, match="allow more or move less") as caught:
        pair.send(TransferOptions(max_bytes=2999))
    assert caught.value.facts == {"needed": 3000, "allowed": 2999}
    assert pair.wire.fetched == []
    assert pair.send(TransferOptions(max_bytes=3000)).num_bytes == 3000


@CONCURRENCY
def test_a_budget_that_repetitions_used_up_stops_it_and_keeps_what_arrived(
    concurrency: int,
) -> None:
    pair = Pair({f"k{n}": bytes(1000) for n in range(6)})
    pair.wire.spoil = failing(2, Unavailable("lost; try again"))
    with pytest.raises(Exhausted, match="what arrived stays"):
        pair.send(TransferOptions(concurrency=concurrency, max_bytes=7000))
    assert pair.wire.num_bytes <= 7000
    assert len(pair.target.list("")) == 5
    assert pair.send(TransferOptions(max_bytes=1000)).skipped == 5


def test_what_a_busy_store_refused_costs_no_budget() -> None:
    pair = Pair()
    pair.wire.spoil = failing(3, Unavailable("busy; try again", busy=True))
    assert pair.send(TransferOptions(max_bytes=3000)).wire_bytes == 3000


@CONCURRENCY
def test_a_limit_of_bytes_per_second_is_kept(concurrency: int) -> None:
    pair = Pair({f"k{n}": bytes(MIB) for n in range(4)})
    report = pair.send(TransferOptions(concurrency=concurrency, bytes_per_s=MIB))
    assert pair.arrived()
    assert pair.clock.time_s >= 3.5
    assert report.bytes_per_s == pytest.approx(4 * MIB / pair.clock.time_s)


@CONCURRENCY
def test_a_burst_of_refusals_is_waited_out_with_fewer_requests_at_a_time(concurrency: int) -> None:
    pair = Pair({f"k{n}": bytes(1000) for n in range(40)})
    seen: list[int] = []
    pair.wire.spoil = failing(20, Unavailable("busy; try again", busy=True))
    report = pair.send(
        TransferOptions(concurrency=concurrency),
        progress=lambda step: seen.append(step.concurrency),
    )
    assert pair.arrived()
    assert report.retries == 20
    assert min(seen) == 1
    assert seen[-1] > 1 or concurrency == 1


def test_a_source_that_stays_away_is_unavailable_after_the_patience() -> None:
    pair = Pair()
    pair.wire.spoil = failing(10**6, Unavailable("no answer; try again"))
    with pytest.raises(Unavailable, match=r"for 20 s \(no answer"):
        pair.send(TransferOptions(patience_s=20))
    assert 20 < pair.clock.time_s < 60
    assert len(pair.wire.fetched) < 60, "an outage must not bring more and more requests"


def test_a_target_that_stays_away_is_unavailable_too() -> None:
    pair = Pair()

    def refuse(key: str) -> None:
        raise Unavailable("no answer; try again")

    pair.wire.before_put = refuse
    with pytest.raises(Unavailable, match="no answer"):
        pair.send(TransferOptions(patience_s=20))


def test_refused_credentials_are_not_tried_again() -> None:
    pair = Pair()
    pair.wire.spoil = failing(1, Denied("no entry; renew the key"))
    with pytest.raises(Denied):
        pair.send(TransferOptions(concurrency=1))
    assert len(pair.wire.fetched) == 1


def test_a_deadline_ends_it() -> None:
    pair = Pair({f"k{n}": bytes(MIB) for n in range(10)})
    with pytest.raises(Exhausted, match="allow more time"):
        pair.send(TransferOptions(bytes_per_s=MIB, deadline_s=5))
    assert 5 <= pair.clock.time_s < 6


@CONCURRENCY
def test_what_its_caller_raises_ends_it_and_what_arrived_stays(concurrency: int) -> None:
    pair = Pair({f"k{n}": bytes(1000) for n in range(40)})

    class CalledOff(Exception):
        pass

    def stop(step: TransferProgress) -> None:
        if step.done_objects >= 10:
            raise CalledOff

    with pytest.raises(CalledOff):
        pair.send(TransferOptions(concurrency=concurrency), progress=stop)
    there = len(pair.target.list(""))
    assert 10 <= there < 40
    assert pair.send().skipped == there


@CONCURRENCY
def test_a_closed_generator_leaves_whole_objects_only(concurrency: int) -> None:
    pair = Pair({f"k{n}": bytes(1000) for n in range(40)})
    steps = transfer_steps(
        pair.source, pair.target, dict.fromkeys(pair.objects), world=pair.clock,
        options=TransferOptions(concurrency=concurrency),
    )  # fmt: skip
    for step in steps:
        if step.done_objects >= 5:
            break
    steps.close()
    found = pair.target.list("")
    assert 5 <= len(found) < 40
    assert all(len(pair.target.get(key)) == 1000 for key in found)


def test_a_source_whose_sizes_are_known_is_not_asked_for_them() -> None:
    pair = Pair()
    pair.send(sizes={key: len(data) for key, data in OBJECTS.items()})
    assert pair.arrived()
    assert pair.source.num_looks == 0


def test_speed_and_rest_are_told_on_the_way() -> None:
    pair, seen = Pair({f"k{n}": bytes(MIB) for n in range(8)}), []
    pair.send(TransferOptions(concurrency=1, bytes_per_s=MIB), progress=seen.append)
    midway = next(step for step in seen if step.done_bytes == 4 * MIB)
    assert midway.bytes_per_s == pytest.approx(MIB, rel=0.3)
    assert midway.eta_s == pytest.approx(4, rel=0.3)


def test_nothing_to_bring_is_done_at_once() -> None:
    pair = Pair({})
    report = pair.send()
    assert (report.num_bytes, report.num_objects, report.skipped) == (0, 0, 0)


def test_one_at_a_time_it_runs_in_a_simulation_and_starts_no_thread() -> None:
    def history() -> tuple[str, float]:
        pair, scheduler = Pair(), Scheduler(7)
        pair.wire.spoil = failing(4, Unavailable("lost; try again"))
        began = threading.active_count()

        def body() -> None:
            transfer(
                pair.source, pair.target, dict.fromkeys(OBJECTS),
                options=TransferOptions(concurrency=1), world=SimWorld(scheduler, "a"),
                progress=lambda step: scheduler.trace(str(step)),
            )  # fmt: skip
            assert threading.active_count() <= began + 1, "only the actor's own"

        scheduler.spawn("a", body)
        scheduler.run()
        assert pair.arrived()
        return scheduler.digest(), scheduler.clock_s

    assert history() == history()


BAD = FaultRates(
    before=0.05, after=0.05, late=0.02, damaged=0.05, outage=0.005, full=0, denied=0,
    calm_at_s=400.0,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_through_bad_stores_and_crashes_only_whole_objects_arrive_and_in_the_end_all(
    seed: int,
) -> None:
    print(f"seed {seed}")
    objects = dict(pack(bytes([n]) * (300 + n)) for n in range(12))
    scheduler, torn = Scheduler(seed), []
    inner, arrived = MemoryStore("memory://source"), MemoryStore("memory://target")
    for key, data in objects.items():
        inner.put(key, data)

    def judge(mutation: Mutation) -> None:
        if mutation.data != objects[mutation.key]:
            torn.append(mutation)

    source, target = (
        FaultyStore(store, scheduler, BAD, watch=judge, yielded=lambda operation: None)
        for store in (inner, arrived)
    )

    def live(name: str) -> None:
        options = TransferOptions(concurrency=1, patience_s=5)
        while True:
            world = SimWorld(scheduler, name)
            try:
                transfer(source, target, dict.fromkeys(objects), options=options, world=world)
                return
            except Unavailable:
                world.sleep(1.0)

    first = scheduler.spawn("first", lambda: live("first"))
    scheduler.call_later(5.0 + seed / 4, lambda: scheduler.crash(first))
    scheduler.spawn("second", lambda: live("second"), after_s=10.0 + seed / 4)
    scheduler.run()
    assert torn == []
    assert {key: arrived.get(key) for key in arrived.list("")} == objects
