"""Saving a step from staged slots, alone or with savers of other nodes; failures are answers."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.checkpoint import open_checkpoint
from cloudshift_lab.checkpoint.gathering import ready_key
from cloudshift_lab.checkpoint.layout import step_dir
from cloudshift_lab.checkpoint.saving import (
    Encoder,
    FailedAnswer,
    SavedAnswer,
    SaveRequest,
    SaverJob,
    WrittenAnswer,
    answer,
    explained,
)
from cloudshift_lab.checkpoint.tombs import Tombstone, tombstone_key
from cloudshift_lab.core.errors import Corrupt, Unavailable, UsageError
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.storage.memory import MemoryStore

from .staged_node import Arrays, make_job, stage, weights

PLACE = step_dir("run-a", 7, 1)
SHARED = {"model/shared": np.arange(50_000, dtype=np.float32)}


class ManualWorld:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept = 0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept += 1

    def random(self) -> float:
        return 0.5

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-1"


class Nodes:
    """Two nodes of one rank each over one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = MemoryStore()
        self.world = ManualWorld()
        self.moved: list[int] = []

    def stage(self, rank: int, step: int, arrays: Arrays, catalog: Arrays | None = None) -> None:
        stage(self.root / f"node-{rank}", rank, step, arrays, catalog=catalog)

    def encoder(self, rank: int, **changes: object) -> Encoder:
        job: SaverJob = make_job("memory://s", ranks=(rank,), gather_s=30.0, **changes)
        return Encoder(
            job, self.root / f"node-{rank}", self.store, self.world, moved=self.moved.append
        )


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def test_the_node_with_rank_0_seals_what_the_other_node_wrote(nodes: Nodes) -> None:
    for rank in range(2):
        nodes.stage(rank, 7, weights(7, rank))
    written = nodes.encoder(1).save(7)
    assert isinstance(written, WrittenAnswer)
    assert (written.step, written.raw_bytes) == (7, 200_000)
    sealed = nodes.encoder(0).save(7)
    assert isinstance(sealed, SavedAnswer)
    assert (sealed.coverage, sealed.raw_bytes) == ("complete", 400_000)
    opened = open_checkpoint(
        nodes.store, "run-a", sealed.manifest_key, digest=sealed.manifest_digest
    )
    assert opened.names() == ("model/w0", "model/w1")


def test_nodes_that_save_at_once_meet(tmp_path: Path) -> None:
    store, found = MemoryStore(), {}
    for rank in range(2):
        stage(tmp_path / f"node-{rank}", rank, 7, weights(7, rank))

    def save(rank: int) -> None:
        job = make_job("memory://s", ranks=(rank,))
        found[rank] = Encoder(job, tmp_path / f"node-{rank}", store).save(7)

    threads = [threading.Thread(target=save, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(found[0], SavedAnswer) and found[0].coverage == "complete"
    assert isinstance(found[1], WrittenAnswer)


def test_a_dead_nodes_share_that_replicas_hold_degrades_the_step(nodes: Nodes) -> None:
    nodes.stage(0, 7, SHARED, catalog=SHARED)
    sealed = nodes.encoder(0).save(7)
    assert isinstance(sealed, SavedAnswer)
    assert sealed.coverage == "degraded"
    assert nodes.world.time == pytest.approx(30.0)
    assert nodes.moved, "a saver that waits for others must not look dead"


def test_a_dead_nodes_own_share_leaves_a_hole_and_the_late_record_mends_it(nodes: Nodes) -> None:
    everything = {**weights(7, 0), **weights(7, 1)}
    for rank in range(2):
        nodes.stage(rank, 7, weights(7, rank), catalog=everything)
    first = nodes.encoder(0)
    with pytest.raises(UsageError, match="partial"):
        first.save(7)
    assert not [key for key in nodes.store.list("runs/run-a") if "manifest" in key]
    nodes.encoder(1).save(7)
    sealed = first.save(7)
    assert isinstance(sealed, SavedAnswer) and sealed.coverage == "complete"
    assert sealed.new_bytes == 0 or sealed.stored_bytes > 0


def test_shares_of_another_start_of_the_ranks_are_never_mixed_in(nodes: Nodes) -> None:
    everything = {**weights(7, 0), **weights(7, 1)}
    for rank in range(2):
        nodes.stage(rank, 7, weights(7, rank), catalog=everything)
    nodes.encoder(1).save(7, "first-start")
    with pytest.raises(UsageError, match="partial"):
        nodes.encoder(0).save(7, "second-start")
    nodes.encoder(1).save(7, "second-start")
    sealed = nodes.encoder(0).save(7, "second-start")
    assert isinstance(sealed, SavedAnswer) and sealed.coverage == "complete"


@pytest.mark.parametrize(
    "hint",
    [
        b"",
        b"{",
        b'{"incarnation":"","written":{"rank":0}}',
        b'{"incarnation":"","written":{"rank":1,"record_key":"runs/other/x.json","digest":"'
        + b"0" * 64
        + b'","size":3,"raw_bytes":1,"stored_bytes":1,"new_bytes":1}}',
        b'{"incarnation":"","written":{"rank":1,"record_key":"../../x","digest":"../../x",'
        b'"size":3,"raw_bytes":1,"stored_bytes":1,"new_bytes":1}}',
    ],
)
def test_a_hint_that_lies_is_no_hint(nodes: Nodes, hint: bytes) -> None:
    nodes.stage(0, 7, SHARED, catalog=SHARED)
    nodes.store.put(ready_key(PLACE, 1, 2), hint)
    sealed = nodes.encoder(0).save(7)
    assert isinstance(sealed, SavedAnswer) and sealed.coverage == "degraded"


def test_one_node_with_all_ranks_waits_for_nobody_and_writes_no_hints(nodes: Nodes) -> None:
    for rank in range(2):
        stage(nodes.root / "node-0", rank, 7, weights(7, rank))
    job = make_job("memory://s")
    sealed = Encoder(job, nodes.root / "node-0", nodes.store, nodes.world).save(7)
    assert isinstance(sealed, SavedAnswer) and sealed.coverage == "complete"
    assert nodes.world.slept == 0
    assert not [key for key in nodes.store.list("runs/run-a") if "ready" in key]


class Counted(MemoryStore):
    """Counts what is put, and fails when told."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []
        self.fails_on = ""

    def put(self, key: str, data: bytes) -> None:
        if self.fails_on and self.fails_on in key:
            raise Unavailable("503 slow down; wait")
        self.puts.append(key)
        super().put(key, data)


def test_a_save_that_is_tried_again_uploads_only_what_had_not_arrived(nodes: Nodes) -> None:
    store = nodes.store = Counted()
    for rank in range(2):
        stage(nodes.root / "node-0", rank, 7, weights(7, rank))
    encoder = Encoder(make_job("memory://s"), nodes.root / "node-0", store, nodes.world)
    store.fails_on = "rank-1of2"
    with pytest.raises(Unavailable):
        encoder.save(7)
    store.fails_on = ""
    assert isinstance(encoder.save(7), SavedAnswer)
    packs = [key for key in store.puts if key.startswith("packs/")]
    assert len(packs) == len(set(packs)) == 2


def test_what_was_put_is_put_again_once_it_is_not_what_it_was(nodes: Nodes) -> None:
    store = nodes.store = Counted()
    for rank in range(2):
        stage(nodes.root / "node-0", rank, 7, weights(7, rank))
    encoder = Encoder(make_job("memory://s"), nodes.root / "node-0", store, nodes.world)
    store.fails_on = "manifest"
    with pytest.raises(Unavailable):
        encoder.save(7)
    store.fails_on = ""
    lost = store.list("packs")[0]
    MemoryStore.put(store, lost, b"cut off")
    with pytest.raises(Corrupt):
        encoder.save(7)
    assert isinstance(encoder.save(7), SavedAnswer)
    assert store.size(lost) != len(b"cut off")


def test_a_save_neither_uses_nor_writes_what_a_collection_is_about_to_delete(nodes: Nodes) -> None:
    stage(nodes.root / "node-0", 0, 7, SHARED, world_size=1)
    job = make_job("memory://s", ranks=(0,), world_size=1)
    first = Encoder(job, nodes.root / "node-0", nodes.store, nodes.world).save(7)
    assert isinstance(first, SavedAnswer)
    doomed = nodes.store.list("packs")
    nodes.store.delete(first.manifest_key)
    tomb = Tombstone("gc-1", 0.0, tuple(doomed), tuple(1 for _ in doomed), {})
    nodes.store.put(tombstone_key("gc-1"), to_json(tomb))
    again = Encoder(job, nodes.root / "node-0", nodes.store, nodes.world).save(7)
    assert isinstance(again, SavedAnswer)
    opened = open_checkpoint(nodes.store, "run-a", again.manifest_key, digest=again.manifest_digest)
    assert set(opened.packs()).isdisjoint(doomed)


def committed(nodes: Nodes, encoder: Encoder) -> SavedAnswer:
    """Step 7 of one rank, saved and learnt."""
    stage(nodes.root / "node-0", 0, 7, SHARED, world_size=1)
    saved = encoder.save(7)
    assert isinstance(saved, SavedAnswer)
    encoder.learn(saved.manifest_key, saved.manifest_digest)
    return saved


@pytest.mark.parametrize("lost", ["manifest", "rank-", ".index", "packs/"])
@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
def test_damage_to_the_newest_commit_costs_the_next_save_a_full_one_and_no_more(
    nodes: Nodes, lost: str, is_gone: bool, is_open: bool
) -> None:
    job = make_job("memory://s", ranks=(0,), world_size=1)
    encoder = Encoder(job, nodes.root / "node-0", nodes.store, nodes.world)
    first = committed(nodes, encoder)
    steps = [8, 9]
    if is_open:
        stage(nodes.root / "node-0", 0, 8, SHARED, world_size=1)
        steps.remove(8)
        encoder.save(8)
    keys = [*nodes.store.list(PLACE.prefix), *nodes.store.list("packs")]
    damaged = [key for key in keys if lost in key]
    assert damaged
    for key in damaged:
        if is_gone:
            nodes.store.delete(key)
        else:
            nodes.store.put(key, b"cut off")
    for step in steps:
        stage(nodes.root / "node-0", 0, step, SHARED, world_size=1)
        saved = encoder.save(step)
        assert isinstance(saved, SavedAnswer)
        opened = open_checkpoint(
            nodes.store, "run-a", saved.manifest_key, digest=saved.manifest_digest
        )
        assert np.array_equal(opened.tensor("model/shared"), SHARED["model/shared"])
        if step == steps[0] and (lost == "packs/" or not is_open):
            assert saved.warning is not None and "cloudshift verify run-a" in saved.warning
            assert saved.new_bytes == first.new_bytes
        else:
            assert saved.warning is None
        encoder.learn(saved.manifest_key, saved.manifest_digest)


@pytest.mark.parametrize("standalone", [True, False])
def test_a_standalone_save_shares_what_is_equal_and_makes_no_delta_to_the_rest(
    nodes: Nodes, standalone: bool
) -> None:
    job = make_job("memory://s", ranks=(0,), world_size=1)
    encoder = Encoder(job, nodes.root / "node-0", nodes.store, nodes.world)
    random = np.random.default_rng(7)
    noise, frozen = (random.standard_normal(n, dtype=np.float32) for n in (300_000, 900_000))
    near = (noise.view(np.uint32) ^ np.uint32(1)).view(np.float32)
    found = []
    for step, moving in ((7, noise), (8, near)):
        arrays = {"model/frozen": frozen, "model/moving": moving}
        stage(nodes.root / "node-0", 0, step, arrays, world_size=1)
        saved = encoder.save(step, standalone=standalone)
        assert isinstance(saved, SavedAnswer)
        encoder.learn(saved.manifest_key, saved.manifest_digest)
        found.append(saved)
    first, second = found
    assert second.new_bytes < 0.4 * first.new_bytes, "what is equal is not written again"
    is_delta = second.new_bytes < 0.1 * noise.nbytes
    assert is_delta is not standalone


def test_a_node_that_does_not_seal_relies_on_nothing_after_a_step_that_nobody_committed(
    nodes: Nodes,
) -> None:
    encoders = [nodes.encoder(rank) for rank in range(2)]

    def save(step: int) -> SavedAnswer:
        for rank in range(2):
            nodes.stage(rank, step, weights(7, rank))
        encoders[1].save(step)
        saved = encoders[0].save(step)
        assert isinstance(saved, SavedAnswer)
        for encoder in encoders:
            encoder.learn(saved.manifest_key, saved.manifest_digest)
        return saved

    save(7)
    for key in nodes.store.list("packs"):
        nodes.store.delete(key)
    with pytest.raises(Corrupt):
        save(8)
    assert save(9).coverage == "complete"
    assert save(10).new_bytes == 0


class Broken(Encoder):
    """Meets what a machine can run out of."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def save(self, step: int, incarnation: str = "", *, standalone: bool = False) -> SavedAnswer:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Exhausted"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Exhausted"),
        (MemoryError(), "Exhausted"),
        (OSError(errno.EIO, "Input/output error"), "CloudshiftError"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "Unavailable"),
    ],
)
def test_a_machine_that_ran_out_of_something_is_an_answer_and_not_the_savers_end(
    error: Exception, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = answer(Broken(error), SaveRequest(7))
    assert isinstance(reply, FailedAnswer)
    assert (reply.step, reply.error_kind) == (7, kind)
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_ours_is_told_as_it_is() -> None:
    error = Unavailable("the store is away; wait")
    assert explained(error) is error
