"""Copying between stores: nothing unverified arrives, nothing is sent twice."""

import pytest
from blake3 import blake3

from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.storage import copy
from cloudshift_lab.storage.copy import copy_keys
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Request


class Counting(MemoryStore):
    """Remembers what was asked of it, and damages as many readings as told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Request] = []
        self.written: list[str] = []
        self.damage = 0

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        self.asked.append((key, start, end))
        data = super().get(key, start=start, end=end)
        if self.damage:
            self.damage -= 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def put(self, key: str, data: bytes) -> None:
        self.written.append(key)
        super().put(key, data)


def pack(data: bytes) -> tuple[str, bytes]:
    name = blake3(data).hexdigest()
    return f"packs/{name[:2]}/{name}.pack", data


def filled() -> tuple[Counting, Counting, dict[str, bytes]]:
    source, objects = Counting(), dict([pack(b"a" * 1000), pack(b"b" * 2000), pack(b"")])
    for key, data in objects.items():
        MemoryStore.put(source, key, data)
    return source, Counting(), objects


def test_packs_arrive_whole_and_the_report_counts_them() -> None:
    source, target, objects = filled()
    seen: list[tuple[int, int]] = []
    report = copy_keys(
        source,
        target,
        dict.fromkeys(objects),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {key: target.get(key) for key in objects} == objects
    assert (report.num_bytes, report.num_objects, report.skipped) == (3000, 3, 0)
    assert seen[-1] == (3000, 3000)


def test_what_the_target_has_is_not_sent_again() -> None:
    source, target, objects = filled()
    copy_keys(source, target, dict.fromkeys(objects))
    source.asked.clear()
    report = copy_keys(source, target, dict.fromkeys(objects))
    assert (report.num_bytes, report.num_objects, report.skipped) == (0, 0, 3)
    assert source.asked == []


def test_a_half_written_object_at_the_target_is_replaced() -> None:
    source, target, objects = filled()
    key = next(iter(objects))
    target.put(key, b"half")
    copy_keys(source, target, {key: None})
    assert target.get(key) == objects[key]


def test_a_pack_damaged_at_rest_is_corrupt_and_never_written() -> None:
    source, target, objects = filled()
    key = next(iter(objects))
    MemoryStore.put(source, key, b"z" * 1000)
    with pytest.raises(Corrupt, match="use an older step") as caught:
        copy_keys(source, target, {key: None})
    assert caught.value.facts["key"] == key
    assert target.list("") == []


def test_damage_on_the_wire_is_read_again() -> None:
    source, target, objects = filled()
    key = next(iter(objects))
    source.damage = 1
    copy_keys(source, target, {key: None})
    assert target.get(key) == objects[key]
    assert len(source.asked) == 2


def test_a_record_is_checked_against_the_given_hash() -> None:
    source, target, _ = filled()
    source.put("runs/r/rank-0of1.json", b"{}")
    with pytest.raises(Corrupt):
        copy_keys(source, target, {"runs/r/rank-0of1.json": "0" * 64})
    copy_keys(source, target, {"runs/r/rank-0of1.json": blake3(b"{}").hexdigest()})
    assert target.get("runs/r/rank-0of1.json") == b"{}"


def test_a_key_that_the_source_lacks_is_named_before_anything_is_sent() -> None:
    source, target, objects = filled()
    with pytest.raises(NotFound, match="packs/missing"):
        copy_keys(source, target, {**dict.fromkeys(objects), "packs/missing": None})
    assert target.list("") == []


def test_objects_are_written_in_the_order_given() -> None:
    source, target = Counting(), Counting()
    keys = [f"k{n}" for n in (3, 1, 2)]
    for key in keys:
        MemoryStore.put(source, key, b"x")
    copy_keys(source, target, dict.fromkeys(keys))
    assert target.written == keys


def test_large_objects_travel_in_parts_and_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "PART_BYTES", 300)
    monkeypatch.setattr(copy, "GROUP_BYTES", 2000)
    source, target, objects = filled()
    seen: list[int] = []
    copy_keys(
        source, target, dict.fromkeys(objects), progress=lambda done, total: seen.append(done)
    )
    assert {key: target.get(key) for key in objects} == objects
    assert max((end or 0) - (start or 0) for _, start, end in source.asked) == 300
    assert seen == [1000, 3000]
