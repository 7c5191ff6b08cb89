from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.checkpoint.history import du, history
from cloudshift_lab.checkpoint.layout import pack_key
from cloudshift_lab.core.errors import NotFound, Unavailable
from cloudshift_lab.storage.log import LogBase, RunLog
from cloudshift_lab.storage.memory import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("memory://here")


@pytest.fixture
def commit(save, known_of):
    """Save one step, reusing what the step before it stored, and commit it."""
    known: dict[str, object] = {}

    def run(store, log, arrays, step, *, generation=1):
        sealed = save(store, arrays, step=step, generation=generation, known=known.get(store.url))
        known[store.url] = known_of(store, sealed)
        log.commit(
            generation=generation, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
        return sealed

    return run


@pytest.fixture
def log(store) -> RunLog:
    made = RunLog(store, "run-1")
    made.acquire(generation=1, owner="o", nonce="a")
    return made


def test_steps_are_told_with_what_each_added(store, log, commit, arrays) -> None:
    commit(store, log, arrays, 10)
    commit(store, log, {**arrays, "layer.bias": arrays["layer.bias"] + 1}, 20)
    commit(store, log, {**arrays, "layer.bias": arrays["layer.bias"] + 1}, 30)
    ten, twenty, thirty = history(store, "run-1").lines
    assert [line.step for line in (ten, twenty, thirty)] == [10, 20, 30]
    assert ten.new_bytes > 100 * twenty.new_bytes > 0
    assert thirty.new_bytes == 0
    assert ten.raw_bytes == sum(array.nbytes for array in arrays.values())
    assert (ten.coverage, ten.world_size, ten.urls) == ("complete", 1, ("memory://here",))
    assert [line.step for line in history(store, "run-1", last=2).lines] == [20, 30]
    assert history(store, "run-1", last=1).lines == (thirty,)


def test_a_step_whose_manifest_is_damaged_is_listed_with_the_reason(
    store, log, commit, arrays
) -> None:
    sealed = commit(store, log, arrays, 10)
    store.put(sealed.manifest_key, b"{}")
    (line,) = history(store, "run-1").lines
    assert (line.step, line.raw_bytes) == (10, 0)
    assert "differs from its hash" in line.problem


def test_a_run_without_a_log_is_not_found(store) -> None:
    with pytest.raises(NotFound, match="no log of 'run-9'"):
        history(store, "run-9")


@pytest.fixture
def moved(store, log, commit, arrays):
    """``run-1`` was saved twice here, then moved there, where it saved once more."""
    there = MemoryStore("memory://there")
    commit(store, log, arrays, 10)
    sealed = commit(store, log, arrays | {"layer.bias": arrays["layer.bias"] + 1}, 20)
    for key in store.list("packs") + store.list("runs/run-1/steps"):
        there.put(key, store.get(key))
    left = log.handover(
        generation=1, to_url=there.url, new_owner="p", migration_id="mig-1", nonce="h"
    )
    base = LogBase(store.url, left.seq, left.digest)
    arrived = RunLog(there, "run-1")
    arrived.acquire(generation=2, owner="p", nonce="b", base=base)
    arrived.commit(
        generation=2, step=20, manifest_key=sealed.manifest_key,
        manifest_digest=sealed.manifest_digest, nonce="copied",
    )  # fmt: skip
    commit(there, arrived, arrays, 30, generation=2)
    return there


@pytest.mark.parametrize("asked", ["here", "there"])
def test_a_run_that_moved_is_told_from_its_beginning(store, moved, asked) -> None:
    stores = {"memory://here": store, "memory://there": moved}
    told = history(stores[f"memory://{asked}"], "run-1", open_store=stores.__getitem__)
    places = {line.step: set(line.urls) for line in told.lines}
    assert places == {
        10: {"memory://here"},
        20: {"memory://here", "memory://there"},
        30: {"memory://there"},
    }
    assert told.unreachable == {}


def test_a_cloud_that_is_away_hides_only_its_own_steps(moved) -> None:
    def away(url: str) -> MemoryStore:
        raise Unavailable(f"{url} does not answer; try again later")

    told = history(moved, "run-1", open_store=away)
    assert [line.step for line in told.lines] == [20, 30]
    assert told.unreachable == {"memory://here": "memory://here does not answer; try again later"}


def test_usage_counts_shared_packs_once_and_finds_loose_ones(store, log, commit, arrays) -> None:
    commit(store, log, arrays, 10)
    commit(store, log, {**arrays, "layer.bias": arrays["layer.bias"] + 1}, 20)
    loose = pack_key("ab" * 32)
    store.put(loose, b"12345")
    told: list[tuple[int, int]] = []
    usage = du(store, progress=lambda *t: told.append(t))
    (run,) = usage.runs
    packs = [key for key in store.list("packs") if key != loose]
    assert run.pack_bytes == usage.pack_bytes == sum(store.size(key) for key in packs)
    assert (usage.loose_packs, usage.loose_bytes) == (1, 5)
    assert run.only_here_bytes == run.pack_bytes
    ten, twenty = run.steps
    assert ten.only_here_bytes + twenty.only_here_bytes < run.pack_bytes
    assert twenty.only_here_bytes > 0
    assert told == [(0, 1)]


def test_usage_of_one_run_and_of_none(store, log, commit, arrays) -> None:
    commit(store, log, {"w": np.ones(3)}, 10)
    assert [run.run_id for run in du(store, "run-1").runs] == ["run-1"]
    with pytest.raises(NotFound, match="no log of 'run-2'"):
        du(store, "run-2")
    assert du(MemoryStore("memory://nothing")).runs == ()
