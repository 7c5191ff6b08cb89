"""Old steps are forgotten and collected beside the training, and never in the way of anything."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.node import NodeAgent
from cloudshift_lab.agent.protocols import RanksView
from cloudshift_lab.agent.retention import COLLECT_EVERY_S, FORGET_EVERY_S
from cloudshift_lab.checkpoint.collecting import Collected
from cloudshift_lab.checkpoint.gc import GRACE_S, GcReport, collect, pin

from .conftest import Attempt, ManualWorld, SwitchableStore, make_job


class InlineCollector:
    """Collects within ``start``, as the process would; counts."""

    def __init__(self, store: SwitchableStore, world: ManualWorld) -> None:
        self._store = store
        self._world = world
        self._done: Collected | None = None
        self.reports: list[GcReport] = []
        self.broken = ""
        self.is_slow = False
        self.started = self.closed = 0

    @property
    def busy(self) -> bool:
        return self._done is not None

    def start(self) -> None:
        self.started += 1
        if self.broken:
            self._done = Collected(error_kind="Corrupt", message=self.broken)
            return
        self.reports.append(collect(self._store, world=self._world, concurrency=1))
        self._done = Collected(report=self.reports[-1])

    def poll(self) -> Collected | None:
        if self.is_slow:
            return None
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        self._done = None
        self.closed += 1


class Kept(Attempt):
    """An attempt with a collector, that commits step after step."""

    def __init__(
        self, world: ManualWorld, store: SwitchableStore | None = None, **changes: object
    ) -> None:
        store = store or SwitchableStore("memory://source")
        super().__init__(world, store, make_job(**changes))
        self.collector = InlineCollector(store, world)
        self.agent = NodeAgent(
            self.job, store=store, source_store=None, world=world, ranks=self.ranks,
            saver=self.saver, collector=self.collector,
        )  # fmt: skip
        self.tick()

    def commit(self, *steps: int, loss: float | None = None, apart_s: float = 61.0) -> None:
        for step in steps:
            self.ranks.view = RanksView(
                state="running", step=step, staged_step=step, staged_loss=loss, num_steps=step
            )
            self.tick(6)
            self.world.time += apart_s
            self.tick(12)

    @property
    def steps(self) -> list[int]:
        return [c.step or 0 for c in self.log.sync().commits]


def test_the_newest_steps_stay_and_the_status_says_how_much_they_take(world: ManualWorld) -> None:
    attempt = Kept(world, keep="2")
    attempt.commit(10, 20, 30, 40)
    assert attempt.steps == [30, 40]
    saves = attempt.published.saves
    assert (saves.keep, saves.kept_steps) == ("2", 2)
    assert saves.kept_bytes is not None and saves.kept_bytes > 0


def test_with_all_nothing_is_forgotten_or_collected(world: ManualWorld) -> None:
    attempt = Kept(world, keep="all")
    attempt.commit(10, 20, 30)
    assert attempt.steps == [10, 20, 30]
    assert attempt.published.saves.kept_steps == 3
    assert attempt.collector.reports == []


def test_commits_in_quick_succession_are_forgotten_together(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10, apart_s=0)
    attempt.commit(*range(11, 17), apart_s=0)
    world.time += FORGET_EVERY_S
    attempt.tick()
    assert attempt.steps == [16]
    forgets = [r for r in attempt.log.sync().records if r.kind == "forget"]
    assert len(forgets) <= 2


def test_a_pinned_step_stays(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10)
    pin(attempt.store, "release", "run-a", 10, world=world)
    attempt.commit(20, 30)
    assert attempt.steps == [10, 30]


def test_the_best_step_stays_and_what_was_not_measured_is_not_called_worse(
    world: ManualWorld,
) -> None:
    attempt = Kept(world, keep="1,best=1")
    attempt.commit(10)
    attempt.commit(20, loss=1.0)
    attempt.commit(30, loss=3.0)
    attempt.commit(40, loss=2.0)
    assert attempt.steps == [10, 20, 40]


def test_an_agent_that_is_started_again_still_knows_the_best_steps(world: ManualWorld) -> None:
    first = Kept(world, keep="1,best=1")
    first.commit(10, loss=1.0)
    first.commit(20, loss=3.0)
    assert first.steps == [10, 20]
    again = Kept(world, first.store, keep="1,best=1")
    again.commit(30, loss=2.0)
    assert again.steps == [10, 30]
    again.commit(40, loss=0.5)
    assert again.steps == [40]


def test_a_loss_is_noted_at_once_and_a_damaged_note_costs_nothing_but_room(
    world: ManualWorld,
) -> None:
    first = Kept(world, keep="1,best=1")
    first.commit(10, loss=1.0, apart_s=0)
    first.commit(20, loss=3.0, apart_s=0)
    note = f"runs/{first.job.run_id}/figures.json"
    assert first.store.get(note).count(b":") == 3
    first.store.put(note, b"{")
    again = Kept(world, first.store, keep="1,best=1")
    again.commit(30, 40, loss=2.0)
    assert again.steps == [10, 20, 40]
    assert any("figures.json" in line for line in again.published.warnings)


def test_what_was_forgotten_is_deleted_a_grace_later(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10, 20)
    assert attempt.collector.reports[0].marked > 0
    packs = attempt.store.list("packs")
    world.time += GRACE_S + 1
    attempt.tick(8)
    assert sum(report.deleted for report in attempt.collector.reports) > 0
    assert len(attempt.store.list("packs")) < len(packs)
    attempt.commit(30)
    assert attempt.published.state == "running"


def test_a_collection_that_fails_is_said_once_and_tried_again(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.collector.broken = "nothing was collected: a log cannot be read; repair it"
    attempt.commit(10, 20)
    assert attempt.collector.broken in attempt.published.warnings
    attempt.collector.broken = ""
    world.time += COLLECT_EVERY_S
    attempt.tick(8)
    assert len(attempt.collector.reports) == 1


def test_a_drain_ends_a_collection_and_forgets_nothing(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10)
    attempt.order("drain")
    attempt.tick(4)
    attempt.collector.start()
    attempt.ranks.view = RanksView(state="running", step=20, staged_step=20)
    world.time += FORGET_EVERY_S
    attempt.tick(8)
    assert attempt.collector.closed >= 1
    assert attempt.steps == [10, 20]


def test_a_store_that_is_away_while_steps_are_forgotten_is_a_warning(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10)
    attempt.commit(20, apart_s=0)
    attempt.store.lost_part = "/log/"
    world.time += FORGET_EVERY_S
    attempt.agent.tick()
    assert "the store is cut off; wait" in attempt.agent.status.warnings
    attempt.store.lost_part = ""
    world.time += FORGET_EVERY_S
    attempt.tick(8)
    assert attempt.steps == [20]
    assert attempt.published.state == "running"


def test_a_run_that_always_has_something_to_save_collects_all_the_same(
    world: ManualWorld,
) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10, 20)
    assert len(attempt.collector.reports) == 1
    world.time += GRACE_S + 1
    attempt.saver.is_slow = True
    attempt.run_to(30, staged=30)
    attempt.tick(20)
    assert attempt.saver.busy
    assert attempt.collector.started == 2
    assert sum(report.deleted for report in attempt.collector.reports) > 0


def test_a_save_does_not_end_a_collection_that_runs(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.collector.is_slow = True
    attempt.commit(10, 20, 30, 40, 50)
    assert (attempt.collector.started, attempt.collector.closed) == (1, 0)
    assert attempt.steps == [50]
    attempt.collector.is_slow = False
    attempt.tick(4)
    assert not attempt.collector.busy


def test_collections_that_are_always_interrupted_are_a_warning_until_one_gets_through(
    world: ManualWorld,
) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10)
    attempt.collector.is_slow = True
    attempt.commit(20)
    for number in range(3):
        assert not any("interrupted" in line for line in attempt.published.warnings)
        assert attempt.collector.busy
        attempt.ranks.view = RanksView(state="starting", staged_step=20)
        attempt.tick(2)
        assert attempt.collector.closed == number + 1
        attempt.run_to(21, staged=20)
        world.time += FORGET_EVERY_S
        attempt.tick(12)
    said = "collections were interrupted 3 times in a row"
    assert any(said in line and "`cloudshift gc" in line for line in attempt.published.warnings)


def test_a_kept_step_that_is_damaged_is_said_once_looked_at_rarely_and_stops_no_collection(
    world: ManualWorld,
) -> None:
    attempt = Kept(world, keep="2")
    attempt.collector.broken = "a manifest is damaged; repair it"
    attempt.store.damaged_part = "manifest"
    attempt.commit(10, 20)
    attempt.store.damaged_part = ""
    attempt.commit(30)
    attempt.tick(100)
    commits = attempt.log.sync().commits
    assert [commit.step for commit in commits] == [20, 30]
    assert 1 <= attempt.store.reads.count(str(commits[0].manifest_key)) <= 3
    said = [line for line in attempt.published.warnings if "step 20, which is kept" in line]
    assert len(said) == 1 and "`cloudshift repair run-a`" in said[0]
    assert attempt.collector.started == 1


def test_best_without_a_loss_says_what_it_needs_until_one_is_told(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1,best=1")
    attempt.commit(10, 20, 30)
    assert attempt.steps == [10, 20, 30]
    assert any("session.step(loss=" in line for line in attempt.published.warnings)
    other = Kept(world, keep="1,best=1")
    other.commit(10, 20, 30, loss=1.0)
    assert not any("loss" in line for line in other.published.warnings)


@pytest.mark.parametrize("keep", ["", "0", "some", "best=x"])
def test_a_policy_that_cannot_be_read_never_starts(world: ManualWorld, keep: str) -> None:
    with pytest.raises(ValueError, match="which steps to keep"):
        Kept(world, keep=keep)


def test_a_short_run_ends_with_the_steps_that_its_policy_names(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10, 20, 30, apart_s=0)
    assert attempt.steps == [10, 20, 30]
    attempt.ranks.view = RanksView(state="finished", step=30, staged_step=30, staged_last=True)
    attempt.tick(4)
    assert attempt.published.state == "finished"
    assert attempt.steps == [30]
    assert attempt.published.saves.kept_steps == 1


def test_pins_that_cannot_be_read_do_not_keep_a_run_from_its_end(world: ManualWorld) -> None:
    attempt = Kept(world, keep="1")
    attempt.commit(10, 20, apart_s=0)
    attempt.store.put("pins/broken.json", b"{")
    attempt.ranks.view = RanksView(state="finished", step=20, staged_step=20, staged_last=True)
    attempt.tick(8)
    assert attempt.published.state == "finished"
    assert attempt.steps == [10, 20]
    assert attempt.log.sync().records[-1].kind == "release"
    assert any("pins/broken.json" in warning for warning in attempt.published.warnings)
