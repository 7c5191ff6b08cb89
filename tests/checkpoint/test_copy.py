import numpy as np
import pytest

from cloudshift_lab.checkpoint import copy_plan, static_chunks, static_packs, verify
from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"


def follow(plan, source, target):
    for keys in (plan.packs, plan.records):
        for key in keys:
            target.put(key, source.get(key))


def test_a_followed_plan_makes_the_step_readable_at_the_target(arrays, save, opened):
    source, target = MemoryStore("memory://a"), MemoryStore("memory://b")
    sealed = save(source, arrays, world_size=3)
    plan = copy_plan(source, target, RUN, sealed.manifest_key, sealed.manifest_digest)
    assert plan.num_bytes == sum(source.size(key) for key in plan.packs)
    follow(plan, source, target)
    assert verify(target, RUN, sealed.manifest_key, sealed.manifest_digest, level=2).ok
    assert (opened(target, sealed).tensor("layer.weight") == arrays["layer.weight"]).all()
    again = copy_plan(source, target, RUN, sealed.manifest_key, sealed.manifest_digest)
    assert (again.packs, again.records, again.num_bytes) == ({}, {}, 0)
    assert again.present_bytes == plan.num_bytes


def test_the_manifest_is_the_last_thing_in_the_plan(arrays, save):
    source = MemoryStore()
    sealed = save(source, arrays, world_size=2)
    plan = copy_plan(source, MemoryStore(), RUN, sealed.manifest_key, sealed.manifest_digest)
    kinds = [key.rsplit(".", 1)[1] for key in plan.records]
    assert kinds == ["index", "index", "json", "json", "json"]
    assert list(plan.records)[-1] == sealed.manifest_key


@pytest.mark.parametrize("kind", ["pack", "index", "json"])
def test_a_torn_object_at_the_target_is_copied_again(arrays, save, kind):
    source, target = MemoryStore(), MemoryStore()
    sealed = save(source, arrays, world_size=2)
    first = copy_plan(source, target, RUN, sealed.manifest_key, sealed.manifest_digest)
    follow(first, source, target)
    torn = {key for key in source.list("") if key.endswith(kind)} - {"cloudshift.json"}
    for key in torn:
        target.put(key, source.get(key)[:-1])
    plan = copy_plan(source, target, RUN, sealed.manifest_key, sealed.manifest_digest)
    assert {*plan.packs, *plan.records} == torn


def test_only_changed_packs_travel_after_a_precopy(arrays, save, known_of, opened):
    source, target = MemoryStore(), MemoryStore()
    frozen = np.random.default_rng(1).standard_normal((500, 700)).astype(np.float32)
    first = save(source, {**arrays, "frozen": frozen}, step=1)
    follow(
        copy_plan(source, target, RUN, first.manifest_key, first.manifest_digest), source, target
    )
    later = {**arrays, "frozen": frozen, "layer.bias": arrays["layer.bias"] + 1}
    second = save(source, later, step=2, known=known_of(source, first))
    plan = copy_plan(source, target, RUN, second.manifest_key, second.manifest_digest)
    assert plan.num_bytes < frozen.nbytes / 100
    follow(plan, source, target)
    assert verify(target, RUN, second.manifest_key, second.manifest_digest).ok
    older, newer = opened(source, first), opened(source, second)
    assert set(static_packs(older, newer)) == set(older.packs())
    assert len(static_chunks(older, newer)) == len(newer.chunk_ids()) - 1


def test_two_steps_without_common_bytes_share_nothing(save, opened):
    store = MemoryStore()
    older, newer = (
        opened(store, save(store, {"w": np.full(9999, step, np.int64)}, step=step))
        for step in (1, 2)
    )
    assert static_packs(older, newer) == {}
    assert static_chunks(older, newer) == frozenset()


def test_a_step_that_is_not_at_the_source_cannot_be_planned(arrays, save):
    sealed = save(MemoryStore(), arrays)
    with pytest.raises(NotFound):
        copy_plan(MemoryStore(), MemoryStore(), RUN, sealed.manifest_key, sealed.manifest_digest)
