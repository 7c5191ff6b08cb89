"""Collections delete garbage and nothing else, whoever saves, copies or dies meanwhile."""

import numpy as np
import pytest

from cloudshift_lab.checkpoint import KnownChunks, open_checkpoint, open_run, verify
from cloudshift_lab.checkpoint.copy import copy_plan
from cloudshift_lab.checkpoint.gc import (
    GRACE_S,
    collect,
    hold,
    list_pins,
    mark,
    pin,
    release_holds,
    sweep,
    tombstoned,
    unpin,
)
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.share import stage_arrays
from cloudshift_lab.checkpoint.tombs import open_tombstones
from cloudshift_lab.checkpoint.write import write_rank
from cloudshift_lab.core.errors import Conflict, Corrupt, NotFound, Unavailable, UsageError
from cloudshift_lab.storage.log import RunLog, log_key
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.transfer import transfer


class Clock:
    """A world whose time moves only when a test says so."""

    def __init__(self):
        self.time_s = 1000.0
        self.ids = 0

    def now(self):
        return self.time_s

    def monotonic(self):
        return self.time_s

    def sleep(self, seconds):
        self.time_s += seconds

    def random(self):
        return 0.5

    def new_id(self, prefix):
        self.ids += 1
        return f"{prefix}-{self.ids}"


class Trainer:
    """One run in a store: saves, commits and forgets as an agent does."""

    def __init__(self, store, clock, run="run-1", generation=1):
        self.store, self.clock, self.run, self.generation = store, clock, run, generation
        self.log = RunLog(store, run, clock)
        self.log.acquire(generation=generation, owner=f"o{generation}", nonce=clock.new_id("acq"))
        self.known = None

    def begin(self):
        self.since = self.log.sync().next_seq
        self.dead = tombstoned(self.store)

    def write(self, step, arrays=None):
        arrays = state(step) if arrays is None else arrays
        written = write_rank(
            self.store, self.run, stage_arrays(arrays, step=step), generation=self.generation,
            known=self.known, dead_packs=self.dead,
        )  # fmt: skip
        return seal(
            self.store, self.run, step, generation=self.generation, world_size=1, written=[written]
        )

    def commit(self, sealed):
        record = self.log.commit(
            generation=self.generation, step=sealed.step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=self.clock.new_id("commit"),
            since=self.since,
        )  # fmt: skip
        self.known = KnownChunks.from_checkpoint(open_checkpoint(self.store, self.run, record))
        return record

    def save(self, step, arrays=None):
        self.begin()
        return self.commit(self.write(step, arrays))

    def forget(self, *steps):
        return self.log.forget(steps=steps, nonce=self.clock.new_id("forget"))

    def is_whole(self):
        return all(
            verify(self.store, self.run, c.manifest_key, c.manifest_digest).ok
            for c in RunLog(self.store, self.run, self.clock).sync().commits
        )


BASE = np.arange(600_000, dtype=np.int64) * 2_654_435_761


def state(step):
    """A frozen table and a few weights that change in every step."""
    return {"table": BASE, "weights": np.full(300_000, step, dtype=np.int64) * np.arange(300_000)}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def trainer(store, clock):
    return Trainer(store, clock)


def packs(store):
    return set(store.list("packs"))


def collect_all(store, clock):
    """Mark, wait, sweep, wait, bury."""
    reports = []
    for _ in range(3):
        reports.append(collect(store, world=clock))
        clock.sleep(GRACE_S + 1)
    return reports


def test_a_forgotten_step_is_deleted_and_shared_packs_stay(store, clock, trainer):
    for step in (1, 2, 3):
        trainer.save(step)
    before = packs(store)
    shared = set(open_run(store, "run-1", 1).packs()) & set(open_run(store, "run-1", 3).packs())
    only_second = set(open_run(store, "run-1", 2).packs()) - shared
    assert shared
    assert only_second
    assert trainer.forget(2) == (2,)
    reports = collect_all(store, clock)
    assert packs(store) == before - only_second
    assert reports[0].marked == reports[1].deleted == len(only_second) + 3
    assert reports[0].marked_bytes == reports[1].deleted_bytes > 0
    assert not [key for key in store.list("runs/run-1/steps") if "/00000002/" in key]
    assert trainer.is_whole()
    assert store.list("gc") == []
    with pytest.raises(NotFound, match="no committed step 2"):
        open_run(store, "run-1", 2)


def test_the_first_collection_only_marks_and_a_dry_run_not_even_that(store, clock, trainer):
    trainer.save(1)
    trainer.save(2)
    trainer.forget(1)
    before = store.list("")
    report = collect(store, world=clock, dry_run=True)
    assert store.list("") == before
    assert report.marked > 0
    marked = collect(store, world=clock)
    assert (marked.marked, marked.deleted) == (report.marked, 0)
    assert marked.due_at == clock.now() + GRACE_S
    assert packs(store) == {key for key in before if key.startswith("packs/")}
    clock.sleep(GRACE_S - 1)
    again = collect(store, world=clock)
    assert (again.marked, again.waiting, again.deleted) == (0, report.marked, 0)


def test_the_newest_step_is_never_forgotten(trainer):
    trainer.save(1)
    trainer.save(2)
    assert trainer.forget(1, 2, 7) == (1,)
    assert trainer.forget(1, 2) == ()
    assert [c.step for c in trainer.log.sync().commits] == [2]
    assert trainer.log.sync().last_commit.step == 2


def test_a_save_that_ran_during_marking_and_committed_is_spared(store, clock, trainer):
    trainer.save(1)
    trainer.begin()
    sealed = trainer.write(2)
    collect(store, world=clock)
    assert tombstoned(store)
    trainer.commit(sealed)
    clock.sleep(GRACE_S + 1)
    report = collect(store, world=clock)
    assert report.spared > 0
    assert trainer.is_whole()


def test_a_save_that_slept_over_a_sweep_is_refused_and_saves_again(store, clock, trainer):
    trainer.save(1)
    trainer.begin()
    sealed = trainer.write(2)
    collect(store, world=clock)
    clock.sleep(GRACE_S + 1)
    assert collect(store, world=clock).deleted > 0
    with pytest.raises(Conflict, match="save it again"):
        trainer.commit(sealed)
    trainer.save(2)
    assert trainer.is_whole()
    clock.sleep(2 * GRACE_S)
    collect_all(store, clock)
    assert trainer.is_whole()


def test_a_pack_under_a_tombstone_is_not_written_again_under_its_name(store, clock, trainer):
    trainer.save(1, {"w": BASE[::-1].copy()})
    trainer.save(2)
    trainer.forget(1)
    collect(store, world=clock)
    doomed = tombstoned(store)
    assert doomed
    trainer.save(3, {"w": BASE[::-1].copy()})
    assert doomed.isdisjoint(pack for pack, _ in open_run(store, "run-1", 3).packs().values())
    clock.sleep(GRACE_S + 1)
    collect(store, world=clock)
    assert trainer.is_whole()


def test_a_collection_right_now_is_safe_beside_a_running_save(store, clock, trainer):
    trainer.save(1)
    trainer.begin()
    sealed = trainer.write(2)
    assert collect(store, world=clock, grace_s=0).deleted > 0
    with pytest.raises(Conflict):
        trainer.commit(sealed)
    trainer.save(2)
    assert trainer.is_whole()


def test_a_step_is_kept_by_its_pin_until_that_is_taken_out(store, clock, trainer):
    first = trainer.save(1, {"w": BASE})
    trainer.save(2)
    assert pin(store, "base", "run-1", 1, world=clock) == pin(
        store, "base", "run-1", 1, world=clock
    )
    trainer.forget(1)
    collect_all(store, clock)
    assert verify(store, "run-1", first.manifest_key, first.manifest_digest).ok
    assert [found.step for found in list_pins(store, "run-1")] == [1]
    assert list_pins(store, "other") == ()
    unpin(store, "base")
    collect_all(store, clock)
    assert not verify(store, "run-1", first.manifest_key, first.manifest_digest).ok


def test_a_forgotten_step_cannot_be_pinned_and_a_taken_name_is_refused(store, clock, trainer):
    trainer.save(1)
    trainer.save(2)
    pin(store, "base", "run-1", 2, world=clock)
    with pytest.raises(Conflict, match="holds step 2"):
        pin(store, "base", "run-1", 1, world=clock)
    trainer.forget(1)
    with pytest.raises(NotFound, match="any more"):
        pin(store, "other", "run-1", 1, world=clock)
    with pytest.raises(UsageError, match="cannot name a pin"):
        pin(store, "../log", "run-1", 2, world=clock)
    assert [found.name for found in list_pins(store)] == ["base"]


def test_another_run_that_shares_packs_keeps_them(store, clock, trainer):
    trainer.save(1, {"w": BASE})
    other = Trainer(store, clock, run="run-2")
    other.known = trainer.known
    other.save(1, {"w": BASE})
    trainer.save(2, {"w": BASE[::-1].copy()})
    trainer.forget(1)
    collect_all(store, clock)
    assert other.is_whole()
    assert trainer.is_whole()


def test_what_was_forgotten_after_marking_still_counts_in_that_sweep(store, clock, trainer):
    """Somebody who read the log before may be about to refer to it."""
    trainer.begin()
    sealed = trainer.write(1)
    collect(store, world=clock)  # marks the packs of the unfinished save
    first = trainer.commit(sealed)
    trainer.save(2, {"w": BASE[::-1].copy()})
    trainer.forget(1)
    clock.sleep(GRACE_S + 1)
    collect(store, world=clock)
    assert verify(store, "run-1", first.manifest_key, first.manifest_digest).ok


def test_left_over_objects_of_an_old_generation_go_and_what_is_being_saved_stays(
    store, clock, trainer
):
    trainer.save(1)
    trainer.begin()
    trainer.write(2)
    newer = Trainer(store, clock, generation=2)
    newer.begin()
    newer.write(2, {"w": BASE[::-1].copy()})
    collect_all(store, clock)
    assert not store.list("runs/run-1/steps/00000002/g1")
    assert store.list("runs/run-1/steps/00000002/g2")
    assert store.list("runs/run-1/log") == [log_key("run-1", n) for n in range(4)]


def test_a_copy_under_way_is_held_until_its_commit(store, clock, trainer):
    commit = trainer.save(1)
    target = MemoryStore("memory://target")
    step = open_checkpoint(store, "run-1", commit)
    hold(target, "run-1", 2, step.object_keys(), world=clock)
    copy(store, target, commit)
    assert all(report.deleted == 0 for report in collect_all(target, clock))
    assert verify(target, "run-1", commit.manifest_key, commit.manifest_digest).ok
    log = RunLog(target, "run-1", clock)
    log.acquire(generation=2, owner="b", nonce="a")
    log.commit(
        generation=2, step=1, manifest_key=commit.manifest_key,
        manifest_digest=commit.manifest_digest, nonce="c",
    )  # fmt: skip
    collect_all(target, clock)
    assert target.list("holds") == []
    assert verify(target, "run-1", commit.manifest_key, commit.manifest_digest).ok


def copy(source, target, commit):
    plan = copy_plan(source, target, "run-1", commit.manifest_key, commit.manifest_digest)
    transfer(source, target, plan.packs, then=[plan.records])


def test_a_cancelled_copy_is_collected_after_its_hold_is_released(store, clock, trainer):
    commit = trainer.save(1)
    target = MemoryStore("memory://target")
    hold(target, "run-1", 2, open_checkpoint(store, "run-1", commit).object_keys(), world=clock)
    copy(store, target, commit)
    release_holds(target, "run-1", 2)
    collect_all(target, clock)
    assert packs(target) == set()


def test_a_copy_calls_off_a_collection_that_has_not_begun_to_delete(store, clock, trainer):
    commit = trainer.save(1)
    target = MemoryStore("memory://target")
    copy(store, target, commit)  # garbage there: an earlier move that failed
    made = mark(target, world=clock)
    step = open_checkpoint(store, "run-1", commit)
    hold(target, "run-1", 2, step.object_keys(), world=clock)
    assert tombstoned(target) == frozenset()
    assert sweep(target, made.tomb, world=clock).deleted == 0
    assert set(step.packs()) <= packs(target)


def test_a_copy_waits_for_a_deletion_that_has_begun(store, clock, trainer):
    commit = trainer.save(1)
    target = MemoryStore("memory://target")
    copy(store, target, commit)
    step = open_checkpoint(store, "run-1", commit)
    collect(target, world=clock, grace_s=0)
    with pytest.raises(Unavailable, match="tried again once that is done"):
        hold(target, "run-1", 2, step.object_keys(), world=clock)
    clock.sleep(GRACE_S + 1)
    collect(target, world=clock)
    hold(target, "run-1", 2, step.object_keys(), world=clock)
    copy(store, target, commit)
    collect_all(target, clock)
    assert verify(target, "run-1", commit.manifest_key, commit.manifest_digest).ok


@pytest.mark.parametrize("what", ["log", "manifest", "pin", "hold", "tombstone"])
def test_what_cannot_be_read_stops_the_collection(store, clock, trainer, what):
    first = trainer.save(1)
    trainer.save(2)
    pin(store, "base", "run-1", 2, world=clock)
    hold(store, "run-9", 5, ["packs/aa"], world=clock)
    trainer.forget(1)
    collect(store, world=clock)
    keys = {
        "log": log_key("run-1", 1),
        "manifest": trainer.log.sync().last_commit.manifest_key,
        "pin": "pins/base.json",
        "hold": store.list("holds")[0],
        "tombstone": store.list("gc")[0],
    }
    store.put(keys[what], store.get(keys[what])[:-2])
    clock.sleep(GRACE_S + 1)
    with pytest.raises(Corrupt):
        collect(store, world=clock)
    assert verify(store, "run-1", first.manifest_key, first.manifest_digest).ok


def test_a_hostile_tombstone_deletes_no_log(store, clock, trainer):
    trainer.save(1)
    trainer.save(2)
    trainer.forget(1)
    collect(store, world=clock)
    key = store.list("gc")[0]
    for wanted in (b"runs/run-1/log/000000000000.json", b"cloudshift.json", b"../packs/x.pack"):
        tomb = next(iter(open_tombstones(store))).keys[0].encode()
        body = store.get(key)
        store.put(key, body.replace(tomb, wanted))
        clock.sleep(GRACE_S + 1)
        with pytest.raises(Corrupt, match="no tombstone of ours"):
            collect(store, world=clock)
        store.put(key, body)
    assert store.size("runs/run-1/log/000000000000.json")


class MortalStore(MemoryStore):
    """Dies at its n-th change: the process that asked is gone, before or after the effect."""

    def __init__(self, store, lives, *, after):
        super().__init__(store.url)
        self._objects, self.lives, self.after = store._objects, lives, after

    def _change(self, effect):
        self.lives -= 1
        if self.lives == 0 and not self.after:
            raise KeyboardInterrupt
        value = effect()
        if self.lives == 0:
            raise KeyboardInterrupt
        return value

    def put(self, key, data):
        self._change(lambda: super(MortalStore, self).put(key, data))

    def create(self, key, data):
        return self._change(lambda: super(MortalStore, self).create(key, data))

    def delete(self, key):
        self._change(lambda: super(MortalStore, self).delete(key))


@pytest.mark.parametrize("after", [False, True])
def test_a_collection_that_dies_at_any_change_harms_nothing_and_is_finished_by_the_next(after):
    lives = deaths = 0
    while deaths == lives:
        lives += 1
        store, clock = MemoryStore(), Clock()
        trainer = Trainer(store, clock)
        for step in (1, 2, 3):
            trainer.save(step)
        trainer.forget(1, 2)
        deaths += _collect_and_die(MortalStore(store, lives, after=after), clock)
        assert trainer.is_whole(), f"death {lives}"
        trainer.save(4)
        trainer.forget(3)
        collect_all(store, clock)
        collect_all(store, clock)
        assert packs(store) == set(open_run(store, "run-1").packs()), f"death {lives}"
        assert store.list("gc") == [], f"death {lives}"
        assert trainer.is_whole(), f"death {lives}"
    assert deaths > 12


def _collect_and_die(store, clock):
    try:
        for _ in range(3):
            collect(store, world=clock, concurrency=1)
            clock.sleep(GRACE_S + 1)
    except KeyboardInterrupt:
        return 1
    return 0


class Counting(MemoryStore):
    """Counts what is asked of it, and can end the collection at a request of a kind."""

    def __init__(self, store):
        super().__init__(store.url)
        self._objects, self.asked, self.ends_at = store._objects, [], None

    def _ask(self, verb, key):
        self.asked.append((verb, key))
        if self.ends_at is not None and self.ends_at(verb, key):
            raise KeyboardInterrupt

    def get(self, key, *, start=None, end=None):
        self._ask("get", key)
        return super().get(key, start=start, end=end)

    def create(self, key, data):
        self._ask("create", key)
        return super().create(key, data)

    def delete(self, key):
        self._ask("delete", key)
        super().delete(key)

    def count(self, verb, part):
        return sum(found == verb and part in key for found, key in self.asked)


def tombstone_due(store, clock, trainer):
    trainer.save(1)
    trainer.save(2)
    trainer.forget(1)
    collect(store, world=clock)
    clock.sleep(GRACE_S + 1)


def test_a_sweep_that_is_begun_again_and_again_costs_a_running_save_one_repetition(
    store, clock, trainer
):
    tombstone_due(store, clock, trainer)
    mortal = Counting(store)
    mortal.ends_at = lambda verb, key: verb == "create" and key.endswith(".verdict.json")
    trainer.begin()
    refused = trainer.write(3)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            collect(mortal, world=clock, concurrency=1)
    assert len(trainer.log.sync().sweeps) == 1
    with pytest.raises(Conflict):
        trainer.commit(refused)
    trainer.begin()
    again = trainer.write(3)
    with pytest.raises(KeyboardInterrupt):
        collect(mortal, world=clock, concurrency=1)
    trainer.commit(again)
    assert collect(store, world=clock).deleted > 0
    assert trainer.is_whole()


def test_a_sweep_begun_again_tells_a_run_that_was_acquired_since(store, clock, trainer):
    tombstone_due(store, clock, trainer)
    mortal = Counting(store)
    mortal.ends_at = lambda verb, key: verb == "create" and key.endswith(".verdict.json")
    with pytest.raises(KeyboardInterrupt):
        collect(mortal, world=clock, concurrency=1)
    other = Trainer(store, clock, run="run-2")
    other.save(1)
    collect(store, world=clock)
    assert len(trainer.log.sync().sweeps) == len(other.log.sync().sweeps) == 1
    assert other.is_whole()


def test_a_manifest_that_cannot_be_read_disturbs_no_save(store, clock, trainer):
    tombstone_due(store, clock, trainer)
    broken = Trainer(store, clock, run="run-2")
    store.delete(broken.save(1).manifest_key)
    with pytest.raises(Corrupt):
        collect(store, world=clock)
    assert trainer.log.sync().sweeps == ()


def test_manifests_are_read_once_and_before_anybody_is_told(store, clock, trainer):
    for step in range(3, 9):
        trainer.save(step)
    trainer.forget(3)
    made = mark(store, world=clock)
    counting = Counting(store)
    sweep(counting, made.tomb, world=clock, concurrency=1)
    told = next(n for n, (verb, _) in enumerate(counting.asked) if verb == "create")
    manifests = [n for n, (_, key) in enumerate(counting.asked) if "/manifest." in key]
    reads = [n for n in manifests if counting.asked[n][0] == "get"]
    assert len(reads) == 5
    assert max(reads) < told


def test_deletes_go_on_where_they_were_ended(store, clock, trainer):
    for step in range(1, 30):
        trainer.save(step)
    trainer.forget(*range(1, 29))
    collect(store, world=clock)
    clock.sleep(GRACE_S + 1)
    total = len(next(iter(open_tombstones(store))).keys)
    mortal = Counting(store)
    mortal.ends_at = lambda verb, key: mortal.count("delete", "") > 70
    with pytest.raises(KeyboardInterrupt):
        collect(mortal, world=clock, concurrency=1)
    counting = Counting(store)
    assert collect(counting, world=clock).deleted == total - 70
    assert counting.count("delete", "") == total - 70
    assert trainer.is_whole()


def finished_and_broken(store, clock, *, released=True):
    """A run whose only step has lost its manifest, but no record."""
    broken = Trainer(store, clock, run="run-2")
    commit = broken.save(1, {"w": BASE[::-1].copy()})
    needed = set(open_run(store, "run-2", 1).packs())
    store.delete(commit.manifest_key)
    if released:
        broken.log.release(generation=1, nonce="end")
    return needed


def test_a_finished_runs_lost_manifest_stops_the_collection_until_it_is_given_up(
    store, clock, trainer
):
    needed = finished_and_broken(store, clock)
    trainer.save(1)
    trainer.save(2)
    trainer.forget(1)
    with pytest.raises(Corrupt, match="gc --without run-2"):
        collect(store, world=clock)
    report = collect(store, world=clock, grace_s=0, without=["run-2"])
    assert report.given_up == ("run-2@1",)
    assert report.deleted > 0
    assert needed <= packs(store)
    assert trainer.is_whole()


def test_packs_that_only_lost_records_named_go_with_what_was_given_up(store, clock, trainer):
    needed = finished_and_broken(store, clock)
    for key in store.list("runs/run-2/steps"):
        store.put(key, b"damaged")
    trainer.save(1)
    collect(store, world=clock, grace_s=0, without=["run-2"])
    assert not needed & packs(store)
    assert trainer.is_whole()


def test_a_run_with_an_owner_is_never_given_up(store, clock, trainer):
    finished_and_broken(store, clock, released=False)
    trainer.save(1)
    before = store.list("")
    with pytest.raises(Corrupt, match="run-2"):
        collect(store, world=clock, grace_s=0, without=["run-2"])
    assert store.list("") == before


def test_a_run_that_is_not_given_up_still_stops_the_collection(store, clock, trainer):
    finished_and_broken(store, clock)
    with pytest.raises(Corrupt):
        collect(store, world=clock, grace_s=0, without=["run-1"])


def test_an_older_step_that_is_lost_is_to_be_forgotten(store, clock, trainer):
    first = trainer.save(1)
    trainer.save(2)
    store.delete(first.manifest_key)
    with pytest.raises(Corrupt, match="forget run-1@1"):
        collect(store, world=clock)
    trainer.forget(1)
    collect(store, world=clock, grace_s=0)
    assert trainer.is_whole()
