"""Repairing saves what can be saved, says exactly what is lost, and makes nothing worse."""

import random

import numpy as np
import pytest

from cloudshift_lab.checkpoint import KnownChunks, open_checkpoint, open_run, verify
from cloudshift_lab.checkpoint.repair import repair
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.storage.log import RunLog, log_key
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"


def tensors(step):
    rng = np.random.default_rng(1)
    table = rng.integers(0, 2**60, 400_000)
    moving = np.random.default_rng(step).integers(0, 2**60, (400_000,))
    return {"table": table, "weights": moving, "small": np.arange(5) * step}


@pytest.fixture
def store(save):
    """Three steps; the second and third reuse the first one's table."""
    store = MemoryStore()
    log = RunLog(store, RUN)
    log.acquire(generation=1, owner="a", nonce="a")
    known = None
    for step in (1, 2, 3):
        sealed = save(store, tensors(step), step=step, known=known, world_size=2)
        record = log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
        known = KnownChunks.from_checkpoint(open_checkpoint(store, RUN, record))
    return store


def copy_of(store):
    copied = MemoryStore("memory://copy")
    for key in store.list(""):
        copied.put(key, store.get(key))
    return copied


def flip(store, key, place=None):
    data = bytearray(store.get(key))
    data[len(data) // 2 if place is None else place] ^= 4
    store.put(key, bytes(data))


def own_packs(store, step):
    shared = set(open_run(store, RUN, step - 1).packs())
    return [key for key in open_run(store, RUN, step).packs() if key not in shared]


def is_whole(store, step):
    commit = next(c for c in RunLog(store, RUN).sync().commits if c.step == step)
    return verify(store, RUN, commit.manifest_key, commit.manifest_digest).ok


def test_a_sound_store_is_left_alone(store):
    before = copy_of(store)
    report = repair(store, RUN)
    assert [(v.step, v.state) for v in report.steps] == [(3, "whole"), (2, "whole"), (1, "whole")]
    assert (report.healed, report.bad, report.newest_whole) == ((), (), 3)
    assert copy_of(store)._objects == before._objects


def test_a_flipped_bit_costs_one_tensor_and_the_report_says_which(store):
    key = own_packs(store, 3)[0]
    flip(store, key)
    before = copy_of(store)
    report = repair(store, RUN)
    newest = report.steps[0]
    assert (newest.state, newest.lost) == ("damaged", ("weights",))
    assert [v.state for v in report.steps[1:]] == ["whole", "whole"]
    assert (report.newest_whole, report.bad, report.healed) == (2, (key,), ())
    assert copy_of(store)._objects == before._objects
    assert (open_run(store, RUN, 3).tensor("table") == tensors(3)["table"]).all()


def test_damage_in_a_shared_pack_is_told_of_every_step_that_uses_it(store):
    flip(
        store,
        next(iter(set(open_run(store, RUN, 1).packs()) & set(open_run(store, RUN, 3).packs()))),
        100,
    )
    lost = {v.step: v.lost for v in repair(store, RUN).steps}
    assert lost[3] == lost[2] != ()
    assert set(lost[3]) <= set(lost[1]) | {"table"}


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("kind", [".pack", ".index", "rank-0of2", "manifest."])
def test_every_object_is_healed_from_another_store(store, kind, damage):
    other = copy_of(store)
    step = open_run(store, RUN, 3)
    names = [key for key in step.object_keys() if kind in key]
    key = next(k for k in names if kind != "rank-0of2" or k.endswith(".json"))
    if damage == "gone":
        store.delete(key)
    elif damage == "cut":
        store.put(key, store.get(key)[:-1])
    else:
        flip(store, key)
    tried = repair(store, RUN, other=other, dry_run=True)
    assert tried.healed == (key,)
    assert tried.newest_whole == 3
    assert not is_whole(store, 3)
    report = repair(store, RUN, other=[MemoryStore("memory://empty"), other])
    assert (report.healed, report.bad, report.newest_whole) == ((key,), (), 3)
    assert store.get(key) == other.get(key)
    assert all(is_whole(store, step) for step in (1, 2, 3))


def test_a_copy_that_is_damaged_too_heals_nothing(store):
    other = copy_of(store)
    key = own_packs(store, 3)[0]
    flip(store, key)
    flip(other, key, 7)
    before = store.get(key)
    assert repair(store, RUN, other=other).bad == (key,)
    assert store.get(key) == before


def test_a_lost_manifest_makes_a_step_gone_and_the_next_older_is_named(store):
    commit = RunLog(store, RUN).sync().last_commit
    store.delete(commit.manifest_key)
    report = repair(store, RUN)
    assert (report.steps[0].state, report.newest_whole) == ("gone", 2)
    assert "does not exist" in report.steps[0].problem
    assert report.bad == (commit.manifest_key,)


def test_a_pack_is_rebuilt_from_equal_chunks_in_another_pack(save):
    """The same content saved twice without knowing of each other: two packs hold each chunk."""
    store = MemoryStore()
    log = RunLog(store, RUN)
    log.acquire(generation=1, owner="a", nonce="a")
    table, extra = tensors(1)["table"], tensors(2)["weights"]
    for step, state in ((1, {"a": table}), (2, {"a": table, "b": extra})):
        sealed = save(store, state, step=step)
        log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
    key = next(iter(open_run(store, RUN, 1).packs()))
    sound = store.get(key)
    for damaged in (sound[:1000], sound[:-3] + b"abc"):
        store.put(key, damaged)
        report = repair(store, RUN)
        assert (report.healed, report.bad) == ((key,), ())
        assert store.get(key) == sound
    store.delete(key)
    assert repair(store, RUN).newest_whole == 2
    assert store.get(key) == sound


def test_random_damage_is_judged_as_reading_judges_it(store):
    for seed in range(10):
        rng = random.Random(seed)
        damaged = copy_of(store)
        for _ in range(rng.randrange(1, 4)):
            key = rng.choice(damaged.list("packs"))
            data = bytearray(damaged.get(key))
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
            elif data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            damaged.put(key, bytes(data))
        for verdict in repair(damaged, RUN).steps:
            assert set(verdict.lost) == unreadable(damaged, verdict.step), f"seed {seed}"
        assert repair(damaged, RUN, other=store).newest_whole == 3
        assert not repair(damaged, RUN).bad


def unreadable(store, step):
    lost = set()
    opened = open_run(store, RUN, step)
    for name in opened.names():
        try:
            opened.tensor(name)
        except (Corrupt, NotFound):
            lost.add(name)
    return lost


def test_only_asked_for_steps_are_looked_at(store):
    assert [v.step for v in repair(store, RUN, steps=[2]).steps] == [2]
    with pytest.raises(NotFound, match="no committed step 9"):
        repair(store, RUN, steps=[9])


def test_a_damaged_log_is_refused_by_name(store):
    store.put(log_key(RUN, 1), b"{")
    with pytest.raises(Corrupt, match="log/000000000001"):
        repair(store, RUN)


def test_progress_ends_at_the_total(store):
    seen = []
    report = repair(store, RUN, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.num_bytes, report.num_bytes)


@pytest.fixture
def twice(save):
    """The same table saved by two steps that know nothing of each other, in different packs."""
    store = MemoryStore()
    log = RunLog(store, RUN)
    log.acquire(generation=1, owner="a", nonce="a")
    table, extra = tensors(1)["table"], tensors(2)["weights"]
    for step, state in ((1, {"a": table}), (2, {"a": table, "b": extra})):
        sealed = save(store, state, step=step)
        log.commit(
            generation=1, step=step, manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest, nonce=f"c{step}",
        )  # fmt: skip
    return store


@pytest.mark.parametrize("damage", ["gone", "flip"])
def test_a_dry_run_says_what_repair_then_does_when_a_healed_pack_heals_another(twice, damage):
    other = MemoryStore("memory://copy")
    first = sorted(open_run(twice, RUN, 1).packs())
    second = sorted(open_run(twice, RUN, 2).packs())
    for key in second:
        other.put(key, twice.get(key))
    for key in (*first, *second):
        twice.delete(key) if damage == "gone" else flip(twice, key)
    before = copy_of(twice)
    tried = repair(twice, RUN, other=other, dry_run=True)
    assert copy_of(twice)._objects == before._objects
    assert set(tried.healed) == {*first, *second}
    done = repair(twice, RUN, other=other)
    assert set(tried.healed) == set(done.healed)
    assert (tried.bad, tried.steps) == (done.bad, done.steps) == ((), tried.steps)
    assert all(is_whole(twice, step) for step in (1, 2))


def test_dry_runs_promise_what_repairs_keep(twice):
    for seed in range(20):
        rng = random.Random(seed)
        damaged, other = copy_of(twice), copy_of(twice)
        for store in (damaged, other):
            for key in rng.sample(twice.list("packs"), rng.randrange(1, len(twice.list("packs")))):
                store.delete(key) if rng.random() < 0.5 else flip(
                    store, key, rng.randrange(store.size(key))
                )
        tried = repair(damaged, RUN, other=other, dry_run=True)
        done = repair(damaged, RUN, other=other)
        assert (sorted(tried.healed), tried.bad, tried.steps) == (
            sorted(done.healed), done.bad, done.steps,
        ), seed  # fmt: skip
