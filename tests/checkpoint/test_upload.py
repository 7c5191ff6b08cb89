"""The store as a save sees it is a store like any other, tells of each request, repeats no pack."""

from __future__ import annotations

import pytest

from cloudshift_lab.checkpoint.upload import UploadStore
from cloudshift_lab.sim.contracts import StoreContract
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store

PACK = f"packs/aa/{'a' * 64}.pack"


class TestUploadStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return UploadStore(MemoryStore(), lambda _moved: None)


class Counted(MemoryStore):
    """Remembers what was put."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        self.puts.append(key)
        super().put(key, data)


def test_every_request_that_ended_is_told() -> None:
    moved: list[int] = []
    upload = UploadStore(MemoryStore(), moved.append)
    upload.put("a", b"12345")
    upload.put_many({"b": b"1", "c": b"123"})
    upload.get("a")
    upload.get_many([("a", None, None), ("b", None, None)])
    list(upload.get_each([("a", None, None)]))
    upload.size("a")
    upload.list("packs")
    upload.delete("a")
    assert sorted(moved, reverse=True) == [5, 3, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_pack_that_arrived_does_not_travel_again_within_its_step() -> None:
    store = Counted()
    upload = UploadStore(store, lambda _moved: None)
    for step, dead, puts in ((7, "", 1), (7, "", 1), (7, "a" * 64, 2), (7, "", 2), (8, "", 3)):
        upload.begin(step, frozenset({dead}))
        upload.put(PACK, b"x")
        assert len(store.puts) == puts, (step, dead)


def test_what_is_not_a_pack_is_written_each_time() -> None:
    store = Counted()
    upload = UploadStore(store, lambda _moved: None)
    upload.begin(7)
    upload.put("runs/r/x.json", b"x")
    upload.put("runs/r/x.json", b"y")
    assert store.get("runs/r/x.json") == b"y"


def test_after_a_doubt_everything_is_written_again() -> None:
    store = Counted()
    upload = UploadStore(store, lambda _moved: None)
    upload.begin(7)
    upload.put(PACK, b"x")
    upload.forget()
    upload.put(PACK, b"x")
    assert store.puts == [PACK, PACK]
