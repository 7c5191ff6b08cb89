from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.checkpoint import TensorBox, npz
from cloudshift_lab.checkpoint.npz import write_npz
from cloudshift_lab.checkpoint.write import write_rank
from cloudshift_lab.core.errors import Denied, Exhausted
from cloudshift_lab.storage.memory import MemoryStore


@pytest.fixture
def step(save, opened, arrays):
    store = MemoryStore("memory://npz")
    return opened(store, save(store, arrays, world_size=3))


def test_numpy_loads_every_tensor_bitwise(step, arrays, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(npz, "BATCH_BYTES", 100_000)
    told: list[tuple[int, int]] = []
    size = write_npz(step, tmp_path / "a.npz", lambda *t: told.append(t))
    loaded = np.load(tmp_path / "a.npz")
    assert sorted(loaded.files) == sorted(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    total = sum(array.nbytes for array in arrays.values())
    assert (told[0], told[-1]) == ((0, total), (total, total))
    assert len(told) > len(arrays)
    assert size == (tmp_path / "a.npz").stat().st_size


def test_bfloat16_becomes_float32_with_the_same_values(stage, opened, tmp_path: Path) -> None:
    from dataclasses import replace

    from cloudshift_lab.checkpoint import seal

    store = MemoryStore("memory://bf16")
    values = np.float32([1.0, -2.5, 3e38, 0.0])
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    box = TensorBox("w", "bfloat16", (4,), (0,), (4,))
    staged = replace(
        stage({"w": halves}, step=1, rank=0, world_size=1),
        boxes=(box,), buffers=(halves.view(np.uint8),), catalog=(),
    )  # fmt: skip
    written = write_rank(store, "run-1", staged, generation=1)
    sealed = seal(store, "run-1", 1, generation=1, world_size=1, written=[written])
    write_npz(opened(store, sealed), tmp_path / "a.npz")
    loaded = np.load(tmp_path / "a.npz")["w"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, (halves.astype(np.uint32) << 16).view(np.float32))


def test_work_that_is_stopped_leaves_no_file_behind(step, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(step, tmp_path / "a.npz", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(step, tmp_path: Path) -> None:
    with pytest.raises((Exhausted, Denied), match="cannot write"):
        write_npz(step, tmp_path / "nowhere" / "a.npz")
