from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.checkpoint import diff as module
from cloudshift_lab.checkpoint.diff import diff
from cloudshift_lab.core.steps import Diff
from cloudshift_lab.storage.memory import MemoryStore

ROWS, COLUMNS = 3000, 128


class Counting(MemoryStore):
    """Counts the bytes read from packs."""

    pack_bytes = 0

    def get(self, key, *, start=None, end=None):
        data = super().get(key, start=start, end=end)
        if key.startswith("packs/"):
            self.pack_bytes += len(data)
        return data

    def get_many(self, requests, concurrency=8):
        return [self.get(key, start=start, end=end) for key, start, end in requests]


@pytest.fixture
def store() -> Counting:
    return Counting("memory://diff")


@pytest.fixture
def compare(store, save, opened):
    def run(before, after, *, worlds=(1, 1), progress=None) -> Diff:
        known = None
        first = opened(store, save(store, before, step=10, world_size=worlds[0], known=known))
        second = opened(store, save(store, after, step=20, world_size=worlds[1]))
        store.pack_bytes = 0
        return diff(first, second, progress)

    return run


def only(report: Diff, name: str):
    return next(tensor for tensor in report.tensors if tensor.name == name)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def test_equal_steps_are_the_same_without_reading_a_chunk(compare, store, arrays) -> None:
    report = compare(arrays, dict(arrays))
    assert {tensor.fate for tensor in report.tensors} == {"same"}
    assert (report.read_bytes, store.pack_bytes) == (0, 0)
    assert report.shared_bytes == report.total_bytes > 0


def test_a_changed_tensor_is_measured_exactly(compare) -> None:
    before = noise()
    after = before + np.float32(0.01) * noise(1)
    tensor = only(compare({"w": before}, {"w": after}), "w")
    delta = after.astype(np.float64) - before
    assert (tensor.fate, tensor.changed, tensor.is_bound) == (
        "changed", np.count_nonzero(delta), False,
    )  # fmt: skip
    assert tensor.norm == pytest.approx(np.linalg.norm(delta))
    relative = np.linalg.norm(delta) / np.linalg.norm(before.astype(np.float64))
    assert tensor.relative == pytest.approx(relative)
    assert tensor.max_abs == np.abs(delta).max()


def test_only_chunks_that_differ_are_read_and_the_relative_norm_is_a_bound(compare, store) -> None:
    before = noise()
    after = before.copy()
    after[5, 7] += 1
    report = compare({"w": before}, {"w": after})
    tensor = only(report, "w")
    assert (tensor.changed, tensor.max_abs, tensor.is_bound) == (1, pytest.approx(1.0), True)
    exact = tensor.norm / np.linalg.norm(before.astype(np.float64))
    assert tensor.relative is not None
    assert exact <= tensor.relative
    assert 0 < store.pack_bytes < before.nbytes
    assert report.read_bytes < before.nbytes


@settings(max_examples=25)
@given(
    worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    touched=st.sets(st.integers(0, ROWS - 1), max_size=4),
)
def test_steps_of_any_two_world_sizes_compare_alike(save, opened, worlds, touched) -> None:
    before, after = noise(), noise()
    after[sorted(touched)] += 1
    store = MemoryStore("memory://worlds")
    first = opened(store, save(store, {"w": before}, step=1, world_size=worlds[0]))
    second = opened(store, save(store, {"w": after}, step=2, world_size=worlds[1]))
    tensor = only(diff(first, second), "w")
    assert tensor.changed == len(touched) * COLUMNS
    assert tensor.norm == pytest.approx(np.sqrt(len(touched) * COLUMNS), rel=1e-5)


def test_tensors_of_one_side_and_of_another_kind_are_named(compare) -> None:
    before = {"gone": np.ones(3), "kind": np.ones(4), "shape": np.ones(2)}
    after = {"new": np.ones(5), "kind": np.ones(4, np.float32), "shape": np.ones((2, 1))}
    report = compare(before, after)
    fates = {tensor.name: (tensor.fate, tensor.note) for tensor in report.tensors}
    assert fates == {
        "gone": ("removed", ""),
        "new": ("added", ""),
        "kind": ("replaced", "was float64 [4]"),
        "shape": ("replaced", "was float64 [2]"),
    }


def test_progress_counts_up_to_all_and_can_stop_the_work(compare, monkeypatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 300_000)
    told: list[tuple[int, int]] = []
    report = compare({"w": noise()}, {"w": noise(1)}, progress=lambda *t: told.append(t))
    assert told[0] == (0, noise().nbytes)
    assert told[-1] == (noise().nbytes, noise().nbytes)
    assert len(told) > 3
    assert report.read_bytes == 2 * noise().nbytes

    def stop(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare({"w": noise()}, {"w": noise(1)}, progress=stop)


def test_nan_and_integers_and_scalars_and_nothing_at_all_compare(compare) -> None:
    before = {
        "nan": np.array([np.nan, 1.0]), "ids": np.arange(3), "step": np.array(1.0),
        "none": np.zeros((0, 4)),
    }  # fmt: skip
    after = {
        "nan": np.array([np.nan, 2.0]), "ids": np.arange(3) + 2, "step": np.array(2.0),
        "none": np.zeros((0, 4)),
    }  # fmt: skip
    report = compare(before, after)
    assert (only(report, "nan").changed, only(report, "nan").norm) == (1, 1.0)
    assert only(report, "ids").max_abs == 2.0
    assert only(report, "step").relative == 1.0
    assert only(report, "none").fate == "same"


def test_values_that_are_no_tensors_are_compared_by_path(store, opened, stage) -> None:
    from dataclasses import replace

    from cloudshift_lab.checkpoint import seal, write_rank

    def save(step: int, leaves: object) -> object:
        staged = replace(stage({"w": np.ones(3)}, step=step, rank=0, world_size=1), leaves=leaves)
        written = write_rank(store, "run-1", staged, generation=1)
        sealed = seal(store, "run-1", step, generation=1, world_size=1, written=[written])
        return opened(store, sealed)

    first = save(1, {"opt": {"lr": 0.1, "betas": [0.9, 0.95]}, "rng": list(range(600)), "old": 1})
    second = save(2, {"opt": {"lr": 0.05, "betas": [0.9, 0.99]}, "rng": list(range(1, 601))})
    changed = {leaf.path: (leaf.before, leaf.after) for leaf in diff(first, second).leaves}
    assert changed["opt/lr"] == ("0.1", "0.05")
    assert changed["opt/betas[1]"] == ("0.95", "0.99")
    assert changed["old"] == ("1", "-")
    assert len(changed["rng"][0]) <= 60
    assert len(changed) == 4
