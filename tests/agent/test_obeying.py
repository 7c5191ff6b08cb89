"""Orders to save now, to push to another store, and to copy in rounds."""

from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.agent import moves
from cloudshift_lab.agent.board import WATCHED_EVERY_S
from cloudshift_lab.agent.protocols import RankError, RanksView, SaveFailed
from cloudshift_lab.checkpoint import KnownChunks, open_checkpoint, seal, stage_arrays, write_rank
from cloudshift_lab.checkpoint.pins import list_holds
from cloudshift_lab.core.orders import AgentStatus, OrderResult, status_key
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store

from .conftest import Attempt, ManualWorld, SwitchableStore, make_job
from .repeating import Standby, train

# -- save ------------------------------------------------------------------------------------------


def test_an_order_to_save_captures_and_is_done_with_the_commit(source: Attempt) -> None:
    source.tick()
    source.run_to(7)
    order = source.order("save")
    source.tick()
    assert source.ranks.told[-1] == "capture"
    assert source.result(order).state == "running"
    source.run_to(9, staged=8)
    source.tick(6)
    result = source.result(order)
    assert (result.state, result.step) == ("done", 8)
    assert result.manifest_digest == source.log.sync().commits[-1].manifest_digest


def test_a_state_staged_before_the_order_is_saved_but_is_not_enough(source: Attempt) -> None:
    source.tick()
    source.saver.is_slow = True
    source.run_to(12, staged=10)
    source.tick()
    order = source.order("save")
    source.tick()
    assert "capture" not in source.ranks.told
    source.saver.is_slow = False
    source.tick(6)
    assert source.log.sync().commits[-1].step == 10
    assert source.result(order).state == "running"
    assert source.ranks.told.count("capture") == 1
    source.run_to(14, staged=13)
    source.tick(6)
    assert source.result(order).step == 13
    source.tick(20)
    assert source.ranks.told.count("capture") == 1


def test_a_step_that_is_committed_already_needs_no_other_save(source: Attempt) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    order = source.order("save")
    source.tick()
    assert (source.result(order).state, source.result(order).step) == ("done", 10)
    assert "capture" not in source.ranks.told


def test_a_standby_saves_nothing_however_it_is_asked(source: Attempt, target: Attempt) -> None:
    source.tick()
    target.tick()
    order = target.order("save")
    target.tick()
    assert target.result(order).error_kind == "Conflict"


def test_an_order_to_save_fails_with_the_ranks(source: Attempt) -> None:
    source.tick()
    source.run_to(7)
    order = source.order("save")
    source.tick()
    source.ranks.view = RanksView(state="failed", step=7, error=RankError(0, "ValueError: x"))
    source.tick()
    assert "ValueError: x" in (source.result(order).error or "")


def test_a_save_that_was_refused_is_tried_again_with_a_newer_step(source: Attempt) -> None:
    source.tick()
    source.saver.failures = [SaveFailed(8, "Unavailable", "the bucket is away; wait")] * 3
    source.run_to(7)
    order = source.order("save")
    source.tick()
    source.run_to(9, staged=8)
    source.tick(40)
    assert source.result(order).step == 8


# -- push ------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> SwitchableStore:
    return SwitchableStore("memory://other")


@pytest.fixture
def pusher(world: ManualWorld, other: SwitchableStore) -> Attempt:
    """A source that may push to one other store."""

    def open_store(cloud: str, url: str) -> Store:
        assert (cloud, url) == ("there", other.url)
        return other

    made = Attempt(world, SwitchableStore("memory://source"), make_job(), open_store=open_store)
    made.tick()
    made.run_to(10, staged=10)
    made.tick()
    return made


def test_a_source_pushes_a_step_and_the_target_has_nothing_left_to_copy(
    world: ManualWorld, pusher: Attempt, other: SwitchableStore
) -> None:
    commit = pusher.log.sync().commits[-1]
    digest = str(commit.manifest_digest)
    push = pusher.order("copy", step=10, digest=digest, to_cloud="there", to_url=other.url)
    pusher.tick()
    result = pusher.result(push)
    assert result.state == "done" and result.num_bytes > 0
    assert open_checkpoint(other, "run-a", commit).tensor("w")[0, 0] == 10
    assert {hold.generation for _, hold in list_holds(other)} == {2}
    target = Standby(world, pusher, other)
    target.tick()
    copy = target.order("copy", step=10, digest=digest)
    target.tick()
    assert (target.result(copy).state, target.result(copy).num_bytes) == ("done", 0)


def test_a_push_goes_on_after_the_other_store_was_away(
    pusher: Attempt, other: SwitchableStore
) -> None:
    other.is_down = True
    push = pusher.order("precopy", replay=True, to_cloud="there", to_url=other.url)
    pusher.tick()
    assert pusher.result(push).state == "running"
    assert pusher.published.state == "running"
    other.is_down = False
    pusher.tick(8)
    assert (pusher.result(push).state, pusher.result(push).step) == ("done", 10)


def test_half_a_place_to_push_to_is_refused(pusher: Attempt) -> None:
    push = pusher.order("precopy", to_url="memory://other")
    pusher.tick()
    assert pusher.result(push).error_kind == "UsageError"


# -- rounds ----------------------------------------------------------------------------------------


class GrowingSource:
    """A store whose run commits another step whenever a manifest arrives at the target."""

    def __init__(self, world: ManualWorld, changes: list[int]) -> None:
        self.store = SwitchableStore("memory://source")
        self.log = RunLog(self.store, "run-a", world)
        self.log.acquire(generation=1, owner="owner-1", nonce="a")
        self.known = KnownChunks()
        self.parts = {f"p{n}": np.zeros(65536, dtype=np.float32) for n in range(16)}
        self.changes = changes
        self.step = 0

    def commit(self) -> None:
        """The next step: as many of the parts as were planned have changed since the last one."""
        self.step += 10
        random = np.random.default_rng(self.step)
        for n in range(self.changes.pop(0)):
            self.parts[f"p{n}"] = random.standard_normal(65536, dtype=np.float32)
        staged = stage_arrays(self.parts, step=self.step)
        written = write_rank(self.store, "run-a", staged, generation=1, known=self.known)
        sealed = seal(self.store, "run-a", self.step, generation=1, world_size=1, written=[written])
        record = self.log.commit(
            generation=1, step=self.step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"n{self.step}",
        )  # fmt: skip
        self.known = KnownChunks.from_checkpoint(open_checkpoint(self.store, "run-a", record))


class ArrivalStore(SwitchableStore):
    source: GrowingSource | None = None

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        if self.source is not None and "/manifest." in key and self.source.changes:
            self.source.commit()


@pytest.fixture
def no_small_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "SMALL_BYTES", 0)
    monkeypatch.setattr(moves, "SMALL_S", 0.0)


def growing(world: ManualWorld, changes: list[int]) -> tuple[GrowingSource, Attempt]:
    source = GrowingSource(world, changes)
    source.commit()
    store = ArrivalStore("memory://target")
    store.source = source
    job = make_job(2, standby=True, store_url=store.url, source_url="memory://source")
    target = Attempt(world, store, job, source.store)
    target.tick()
    return source, target


@pytest.mark.usefixtures("no_small_rest")
def test_rounds_go_on_while_the_rest_shrinks_and_then_say_what_is_left(world: ManualWorld) -> None:
    source, target = growing(world, [64, 12, 2, 2])
    order = target.order("precopy", replay=True)
    target.tick()
    result = target.result(order)
    assert (result.state, result.step) == ("done", 30)
    assert "3 rounds" in result.detail and "more have changed since" in result.detail
    assert source.step == 40


@pytest.mark.usefixtures("no_small_rest")
def test_a_dense_state_is_copied_once_and_not_again_and_again(world: ManualWorld) -> None:
    _, target = growing(world, [16, 16, 16])
    order = target.order("precopy", num_steps=3)
    target.tick()
    assert (target.result(order).step, "1 round," in target.result(order).detail) == (10, True)


def test_a_small_rest_is_the_last_one(world: ManualWorld) -> None:
    source, target = growing(world, [16, 1, 1, 1])
    order = target.order("precopy", replay=True)
    target.tick()
    assert target.result(order).step == 10, "all of it is small here"
    assert source.changes == [1, 1]


@pytest.mark.usefixtures("no_small_rest")
def test_what_two_commits_share_is_copied_for_a_move_that_is_closed_by_copying(
    world: ManualWorld,
) -> None:
    source, target = growing(world, [16, 4])
    source.commit()
    order = target.order("precopy")
    target.tick()
    result = target.result(order)
    assert (result.state, result.step) == ("done", None)
    assert result.num_bytes > 0
    assert not [key for key in target.store.list("") if "/manifest." in key]


def test_precopying_waits_for_a_first_save_when_it_needs_a_whole_step(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    target.tick()
    order = target.order("precopy", replay=True)
    target.tick(8)
    assert target.result(order).state == "running"
    assert "first save" in target.result(order).detail
    source.run_to(10, staged=10)
    source.tick()
    target.tick(8)
    assert (target.result(order).state, target.result(order).step) == ("done", 10)


def test_a_step_that_vanishes_while_it_is_copied_is_not_copied_for_ever(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    for key in source.store.list("packs"):
        source.store.delete(key)
    target.tick()
    order = target.order("precopy", replay=True)
    target.tick(8)
    assert target.result(order).error_kind == "NotFound"


def test_a_later_order_ends_a_copy_that_is_under_way(source: Attempt, target: Attempt) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    target.tick()
    source.store.is_down = True
    precopy = target.order("precopy", replay=True)
    target.tick()
    target.order("copy", step=10, digest="0" * 64)
    target.tick()
    assert target.result(precopy).error_kind == "Conflict"


def test_an_order_that_failed_still_says_what_it_had_carried(
    source: Attempt, target: Attempt
) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick()
    target.tick()
    source.store.is_down = True
    precopy = target.order("precopy", replay=True)
    target.tick()
    board = target.agent._board
    board.update(results={precopy: OrderResult(state="running", num_bytes=7)})
    target.order("copy", step=10, digest="0" * 64)
    target.tick()
    assert (target.result(precopy).state, target.result(precopy).num_bytes) == ("failed", 7)


# -- what others see -------------------------------------------------------------------------------


def test_losses_that_json_has_no_word_for_are_left_out_of_the_status(source: Attempt) -> None:
    source.tick()
    source.ranks.view = RanksView(
        state="running", step=3, losses=((1, 0.5), (2, float("nan")), (3, float("inf")))
    )
    assert source.tick(12).losses == ((1, 0.5),)


def test_a_source_that_got_an_order_tells_every_step_soon(source: Attempt) -> None:
    source.tick()
    train(source, 10, staged=10)
    source.order("save")
    source.tick()
    beats = []
    for step in range(11, 31):
        source.run_to(step, staged=10)
        source.agent.tick()
        source.world.time += WATCHED_EVERY_S
        status = from_json(source.store.get(status_key("run-a", 1)), AgentStatus)
        beats.append(status.step)
    assert beats[2:] == list(range(13, 31))


def test_the_progress_of_an_order_does_not_flood_the_store(source: Attempt) -> None:
    source.tick()
    source.run_to(3)
    source.order("drain")
    source.tick()
    before = source.published.beat
    for _ in range(100):
        source.agent.tick()
        source.world.time += 0.05
    assert source.published.beat - before <= 5.0 / WATCHED_EVERY_S + 1
