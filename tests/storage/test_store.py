"""Opening a store by URL, and refusing one that cannot keep two owners apart."""

import os
from pathlib import Path

import pytest

from cloudshift_lab.core.errors import Unsupported, UsageError
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import open_store, probe_store


class Overwriting(MemoryStore):
    """Ignores create-if-absent, as several S3 servers do."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


class Forgetful(MemoryStore):
    """Refuses the second create but keeps other bytes than it was given."""

    def create(self, key: str, data: bytes) -> bool:
        return super().create(key, data[:-1])


@pytest.mark.parametrize("kind", [Overwriting, Forgetful])
def test_a_store_that_ignores_create_if_absent_is_refused(kind: type[MemoryStore]) -> None:
    store = kind()
    with pytest.raises(Unsupported, match=r"ignores create-if-absent.*use a store"):
        probe_store(store)
    assert store.list("") == []


def test_two_openers_of_one_memory_url_see_the_same_objects() -> None:
    open_store("memory://shared/").put("a", b"1")
    assert open_store("memory://shared").get("a") == b"1"
    assert open_store("memory://another").size("a") is None


@pytest.mark.parametrize(
    "url", ["", "s3://", "bucket/x", "file:///", "file://relative/x", "ftp://host/x"]
)
def test_a_url_that_is_no_store_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError):
        open_store(url)


def test_a_file_store_is_named_by_its_folder(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/s/")
    assert store.url == f"file://{tmp_path}/s"
    store.put("a/b", b"1")
    assert (tmp_path / "s/a/b").read_bytes() == b"1"


def test_what_a_killed_writer_left_in_a_folder_is_swept_a_day_later(tmp_path: Path) -> None:
    hidden = tmp_path / "s" / ".tmp"
    hidden.mkdir(parents=True)
    old, young = hidden / "old", hidden / "young"
    for leftover in (old, young):
        leftover.write_bytes(b"half a pack")
    os.utime(old, (1_000_000_000, 1_000_000_000))
    open_store(f"file://{tmp_path}/s").put("a", b"1")
    assert sorted(path.name for path in hidden.iterdir()) == ["young"]
