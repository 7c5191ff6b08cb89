"""Committers that race, records that come late, and collections beside saves, on every store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloudshift_lab.checkpoint import (
    KnownChunks,
    Sealed,
    Staged,
    TensorBox,
    TensorSpec,
    WrittenRank,
    open_run,
    seal,
    stage_arrays,
    verify,
    write_rank,
)
from cloudshift_lab.checkpoint.gc import collect, tombstoned
from cloudshift_lab.checkpoint.seal import seal_again
from cloudshift_lab.core.errors import Conflict, Fenced
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.log import LogState, RunLog
from cloudshift_lab.storage.split import SplitStore
from cloudshift_lab.storage.store import Store

KINDS = ["memory", "file", "s3", "gs", "az", "split"]
RUN = "run-1"
SPEC = TensorSpec("w", "int64", (64,))
TABLE = np.arange(60_000, dtype=np.int64) * 2_654_435_761


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, fresh_store: Callable[[str], Store]) -> Store:
    """One of each kind; ``split`` is a folder whose logs are in etcd."""
    if request.param == "split":
        return SplitStore(fresh_store("etcd"), fresh_store("file"))
    return fresh_store(request.param)


def share(rank: int, world_size: int, *, step: int = 10, add: int = 0, of: int = 0) -> Staged:
    """A rank's rows of ``w``; with ``of`` set, those of another rank: a replica."""
    rows = 64 // (of or world_size)
    start = rank % (of or world_size) * rows
    values = np.arange(start, start + rows, dtype=np.int64) + step + add
    box = TensorBox("w", "int64", (64,), (start,), (rows,))
    return Staged(step, rank, world_size, (box,), (values.view(np.uint8),), None, (SPEC,))


def write(store: Store, *shares: Staged, generation: int = 1) -> list[WrittenRank]:
    return [write_rank(store, RUN, staged, generation=generation) for staged in shares]


def commit(store: Store, sealed: Sealed, *, generation: int = 1) -> bool:
    """True when it landed, False when it was fenced off."""
    try:
        RunLog(store, RUN).commit(
            generation=generation, step=sealed.step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=REAL_WORLD.new_id("n"),
        )  # fmt: skip
    except Fenced:
        return False
    return True


def test_of_two_committers_of_one_step_one_wins_and_its_state_is_read(store: Store) -> None:
    """The same generation twice: a saver that was taken for dead, and the one after it."""
    RunLog(store, RUN).acquire(generation=1, owner="a", nonce="a")

    def publish(add: int) -> bool:
        written = write(store, *(share(rank, 2, add=add) for rank in range(2)))
        sealed = seal(store, RUN, 10, generation=1, world_size=2, written=written)
        return commit(store, sealed)

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(publish, [0, 1000]))
    assert won.count(True) == 1
    add = [0, 1000][won.index(True)]
    assert (open_run(store, RUN).tensor("w") == np.arange(64) + 10 + add).all()


def test_a_late_committer_of_an_older_generation_changes_nothing(store: Store) -> None:
    RunLog(store, RUN).acquire(generation=1, owner="a", nonce="a")
    late = seal(
        store, RUN, 20, generation=1, world_size=1, written=write(store, share(0, 1, step=20))
    )
    RunLog(store, RUN).acquire(generation=2, owner="b", nonce="b")
    newer = write(store, share(0, 1, step=20, add=7), generation=2)
    sealed = seal(store, RUN, 20, generation=2, world_size=1, written=newer)
    assert commit(store, sealed, generation=2)
    assert not commit(store, late)
    assert (open_run(store, RUN).tensor("w") == np.arange(64) + 27).all()


def test_a_late_record_makes_a_partial_step_complete(store: Store) -> None:
    RunLog(store, RUN).acquire(generation=1, owner="a", nonce="a")
    early = write(store, share(0, 4), share(2, 4))
    partial = seal(store, RUN, 10, generation=1, world_size=4, written=early, partial="keep")
    assert partial.coverage == "partial"
    late = write(store, share(1, 4), share(3, 4))
    whole = seal_again(store, RUN, partial.manifest_key, partial.manifest_digest, late)
    assert whole.coverage == "complete"
    assert commit(store, whole)
    assert (open_run(store, RUN).tensor("w") == np.arange(64) + 10).all()


def test_replicas_stand_in_for_a_rank_that_died(store: Store) -> None:
    """Four ranks, two replicas of each half: one may be missing, two of a half may not."""
    written = write(store, *(share(rank, 4, of=2) for rank in (0, 2, 3)))
    sealed = seal(store, RUN, 10, generation=1, world_size=4, written=written)
    assert sealed.coverage == "degraded"
    halves = [part for part in written if part.rank in (0, 2)]
    torn = seal(store, RUN, 10, generation=1, world_size=4, written=halves, partial="keep")
    assert (torn.coverage, torn.holes) == ("partial", ("w",))


class Saver:
    """Saves steps as an agent does: again, when the store was swept meanwhile."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = RunLog(store, RUN)
        self.log.acquire(generation=1, owner="a", nonce="a")
        self.repeated = 0

    def save(self, step: int) -> None:
        while not self._try(step, self.log.sync()):
            self.repeated += 1
        steps = [commit.step or 0 for commit in self.log.sync().commits[:-1]]
        self.log.forget(steps=steps, nonce=REAL_WORLD.new_id("f"))

    def _try(self, step: int, state: LogState) -> bool:
        doomed = tombstoned(self.store)
        known = KnownChunks.from_checkpoint(open_run(self.store, RUN)) if state.commits else None
        arrays = {"table": TABLE, "weights": np.full(9_000, step) * np.arange(9_000)}
        written = write_rank(
            self.store, RUN, stage_arrays(arrays, step=step), generation=1, known=known,
            dead_packs=doomed,
        )  # fmt: skip
        sealed = seal(self.store, RUN, step, generation=1, world_size=1, written=[written])
        try:
            self.log.commit(
                generation=1, step=step, manifest_key=sealed.manifest_key,
                manifest_digest=sealed.manifest_digest, nonce=REAL_WORLD.new_id("c"),
                since=state.next_seq,
            )  # fmt: skip
        except Conflict:
            return False
        return True


def test_collections_without_grace_beside_saves_lose_nothing(store: Store) -> None:
    saver = Saver(store)
    saver.save(1)

    def tidy() -> int:
        return sum(collect(store, grace_s=0.0, concurrency=2).deleted for _ in range(4))

    with ThreadPoolExecutor(1) as pool:
        tidying = pool.submit(tidy)
        for step in range(2, 6):
            saver.save(step)
        deleted = tidying.result(timeout=100) + collect(store, grace_s=0.0).deleted
    newest = RunLog(store, RUN).sync().commits
    assert [c.step for c in newest] == [5]
    assert verify(store, RUN, str(newest[0].manifest_key), str(newest[0].manifest_digest)).ok
    assert deleted >= 4
    assert len(store.list("packs")) <= 3
