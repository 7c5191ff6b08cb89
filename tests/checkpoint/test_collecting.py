"""The collector's process: collects one store once, and can be ended at any moment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.checkpoint import seal, stage_arrays, write_rank
from cloudshift_lab.checkpoint.collecting import DEADLINE_S, CollectorProcess
from cloudshift_lab.core.world import RealWorld
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store, open_store

from .staged_node import make_job, until


class AheadWorld(RealWorld):
    """A clock that a test puts forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of two steps, the first of them forgotten."""
    store = open_store(f"file://{tmp_path}/store")
    log = RunLog(store, "run-a")
    log.acquire(generation=1, owner="o", nonce="n")
    for step in (1, 2):
        staged = stage_arrays({"w": np.full(1000, step, np.float32)}, step=step)
        written = write_rank(store, "run-a", staged, generation=1)
        sealed = seal(store, "run-a", step, generation=1, world_size=1, written=[written])
        log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
    log.forget(steps=[1], nonce="f")
    return store


@pytest.fixture
def world() -> AheadWorld:
    return AheadWorld()


@pytest.fixture
def collector(store: Store, world: AheadWorld, tmp_path: Path) -> Iterator[CollectorProcess]:
    made = CollectorProcess(make_job(store.url), tmp_path / "logs" / "collector.log", world)
    yield made
    made.close()


def test_what_nothing_refers_to_is_marked_and_waits_for_its_grace(
    collector: CollectorProcess, store: Store
) -> None:
    packs = store.list("packs")
    collector.start()
    assert collector.busy
    done = until(collector.poll)
    assert not collector.busy
    assert done.report is not None and done.report.marked >= 2
    assert done.report.due_at is not None
    assert store.list("packs") == packs


def test_a_store_that_cannot_be_understood_is_told_in_one_line(
    collector: CollectorProcess, store: Store
) -> None:
    store.put("gc/gc-1.json", b"not a tombstone")
    collector.start()
    done = until(collector.poll)
    assert (done.report, done.error_kind) == (None, "Corrupt")
    assert "gc-1" in done.message


def test_a_collector_that_was_killed_is_said_and_the_next_one_works(
    collector: CollectorProcess,
) -> None:
    collector.start()
    assert collector._process is not None
    os.kill(collector._process.pid, signal.SIGKILL)
    done = until(collector.poll)
    assert done.report is None and "ended with code -9" in done.message
    collector.start()
    assert until(collector.poll).report is not None


def test_a_collector_that_hangs_is_ended(collector: CollectorProcess, world: AheadWorld) -> None:
    collector.start()
    assert collector._process is not None
    os.kill(collector._process.pid, signal.SIGSTOP)
    assert collector.poll() is None
    world.ahead_s = DEADLINE_S
    done = until(collector.poll)
    assert done.error_kind == "Exhausted" and "30 minutes" in done.message
    assert not collector.busy


def test_a_collector_that_cannot_be_started_is_an_answer(
    collector: CollectorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr(sys, "executable", str(tmp_path / "no-python"))
        collector.start()
        assert collector.busy
        done = until(collector.poll)
    assert done.error_kind == "Exhausted" and "no collector could be started" in done.message
    assert not collector.busy
