"""Files of any size hold what was put, also where whole blocks go past the page cache."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.core.errors import Exhausted
from cloudshift_lab.storage import file as file_module
from cloudshift_lab.storage.file import FileStore

MIB = 2**20


def _view(num_bytes: int, start: int) -> memoryview:
    """Random bytes that begin ``start`` bytes into a page."""
    space = np.random.default_rng(num_bytes).integers(0, 256, num_bytes + 8192, dtype=np.uint8)
    first = -space.ctypes.data % 4096 + start
    return space[first : first + num_bytes].data


@pytest.mark.parametrize("num_bytes", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 4095])
@pytest.mark.parametrize("start", [0, 1])
def test_a_view_of_any_size_and_place_is_stored_whole(
    tmp_path: Path, num_bytes: int, start: int
) -> None:
    store = FileStore(f"file://{tmp_path}")
    data = _view(num_bytes, start)
    store.put("a/b", data)
    assert store.get("a/b") == bytes(data)


def test_a_disk_that_takes_no_direct_writes_stores_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "_DIRECT", 0)
    data = _view(2 * MIB + 5, 0)
    store = FileStore(f"file://{tmp_path}")
    store.put("a", data)
    assert store.get("a") == bytes(data)


def test_a_full_disk_is_told_also_when_it_fills_up_on_the_direct_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_module.os, "write", full)
    store = FileStore(f"file://{tmp_path}")
    with pytest.raises(Exhausted):
        store.put("a", _view(2 * MIB, 0))
    assert store.list("") == []
