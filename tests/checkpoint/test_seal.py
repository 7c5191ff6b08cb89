import numpy as np
import pytest

from cloudshift_lab.checkpoint import Staged, TensorBox, seal, stage_arrays, write_rank
from cloudshift_lab.checkpoint.seal import seal_again
from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"


def write_all(store, stage, arrays, world_size, *, step=1, ranks=None):
    return [
        write_rank(
            store, RUN, stage(arrays, step=step, rank=r, world_size=world_size), generation=1
        )
        for r in (ranks if ranks is not None else range(world_size))
    ]


def close(store, written, world_size, **options):
    return seal(store, RUN, 1, generation=1, world_size=world_size, written=written, **options)


def test_all_ranks_make_a_complete_step(arrays, stage):
    store = MemoryStore()
    sealed = close(store, write_all(store, stage, arrays, 3), 3)
    assert sealed.coverage == "complete"
    assert sealed.raw_bytes == sum(a.nbytes for a in arrays.values())
    assert 0 < sealed.stored_bytes < sealed.raw_bytes


def test_a_missing_rank_whose_rows_nobody_else_has_is_refused_by_name(arrays, stage):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 3, ranks=[0, 2])
    with pytest.raises(UsageError, match=r"partial: 4 tensors have holes \(layer\.weight"):
        close(store, written, 3)
    assert not [key for key in store.list("") if "/manifest." in key]


def test_a_partial_step_that_was_asked_for_reads_what_it_has(arrays, stage, opened):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 3, ranks=[0, 2])
    sealed = close(store, written, 3, partial="keep")
    assert sealed.coverage == "partial"
    checkpoint = opened(store, sealed)
    with pytest.raises(UsageError, match="allow_partial=True"):
        checkpoint.tensor("adam.step")
    box = checkpoint.box("layer.weight", (0, 0), (300, 301), allow_partial=True)
    assert (box == arrays["layer.weight"][:300]).all()
    assert checkpoint.tensor("adam.step", allow_partial=True) == arrays["adam.step"]
    with pytest.raises(NotFound, match="does not hold all of"):
        checkpoint.tensor("layer.weight", allow_partial=True)
    with pytest.raises(NotFound):
        checkpoint.box("layer.weight", (299, 0), (2, 301), allow_partial=True)


def test_a_late_record_completes_a_partial_step(arrays, stage, opened):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 3, ranks=[0, 2])
    partial = close(store, written, 3, partial="keep")
    written += write_all(store, stage, arrays, 3, ranks=[1])
    complete = close(store, written, 3)
    assert complete.coverage == "complete"
    assert complete.manifest_key != partial.manifest_key
    assert (opened(store, complete).tensor("layer.weight") == arrays["layer.weight"]).all()


def test_a_partial_step_is_sealed_again_when_the_late_record_arrives(arrays, stage, opened):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 4, ranks=[0, 2])
    partial = close(store, written, 4, partial="keep")
    seen = (partial.manifest_key, partial.manifest_digest)
    still = seal_again(store, RUN, *seen, write_all(store, stage, arrays, 4, ranks=[2, 3]))
    assert still.coverage == "partial"
    late = write_all(store, stage, arrays, 4, ranks=[1, 3])
    sealed = seal_again(store, RUN, *seen, late)
    assert (sealed.coverage, sealed.holes) == ("complete", ())
    assert sealed == close(store, written + late, 4)
    assert (opened(store, sealed).tensor("layer.weight") == arrays["layer.weight"]).all()


def test_a_late_record_of_another_step_is_not_sealed_in(arrays, stage):
    store = MemoryStore()
    partial = close(store, write_all(store, stage, arrays, 2, ranks=[0]), 2, partial="keep")
    other = write_all(store, stage, arrays, 2, step=2, ranks=[1])
    with pytest.raises(Corrupt, match="never mix"):
        seal_again(store, RUN, partial.manifest_key, partial.manifest_digest, other)


def test_replicas_cover_for_a_missing_rank(arrays, opened):
    store = MemoryStore()
    written = [
        write_rank(store, RUN, stage_arrays(arrays, step=1, rank=r, world_size=3), generation=1)
        for r in (0, 2)
    ]
    sealed = close(store, written, 3)
    assert sealed.coverage == "degraded"
    assert (opened(store, sealed).tensor("layer.weight") == arrays["layer.weight"]).all()


def test_without_a_catalogue_nobody_knows_what_a_missing_rank_held():
    store = MemoryStore()
    box = TensorBox("w", "uint8", (3,), (0,), (3,))
    staged = Staged(1, 0, 2, (box,), (np.zeros(3, np.uint8),))
    written = [write_rank(store, RUN, staged, generation=1)]
    with pytest.raises(UsageError, match="missing ranks held"):
        close(store, written, 2)


def test_ranks_that_disagree_on_a_tensor_are_refused():
    store = MemoryStore()
    written = [
        write_rank(
            store, RUN, stage_arrays({"w": np.zeros(n)}, step=1, rank=r, world_size=2), generation=1
        )
        for r, n in enumerate((3, 4))
    ]
    with pytest.raises(Corrupt, match="give them two names"):
        close(store, written, 2)


def test_shards_of_different_steps_or_writers_are_never_mixed(arrays, stage):
    store = MemoryStore()
    good = write_all(store, stage, arrays, 2, ranks=[0])
    other = write_all(store, stage, arrays, 2, step=2, ranks=[1])
    with pytest.raises(Corrupt, match="never mix"):
        close(store, good + other, 2)
    with pytest.raises(Corrupt, match="never mix"):
        close(store, write_all(store, stage, arrays, 3), 2)


def test_the_same_rank_twice_and_no_rank_at_all_are_refused(arrays, stage):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 1)
    for wrong in (written * 2, []):
        with pytest.raises(UsageError, match="pass each written rank once"):
            close(store, wrong, 1)


@pytest.mark.parametrize("kind", [".pack", ".index"])
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_step_whose_objects_did_not_arrive_is_not_sealed(arrays, stage, kind, damage):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 2)
    key = next(key for key in store.list("") if key.endswith(kind))
    if damage == "gone":
        store.delete(key)
    else:
        store.put(key, store.get(key)[:-1])
    with pytest.raises(Corrupt, match="save this step again"):
        close(store, written, 2)


def test_sealing_again_writes_the_same_manifest(arrays, stage):
    store = MemoryStore()
    written = write_all(store, stage, arrays, 2)
    assert close(store, written, 2) == close(store, list(reversed(written)), 2)


def test_a_store_of_a_newer_format_is_left_alone(arrays, stage):
    store = MemoryStore()
    store.put("cloudshift.json", b'{"format": "cloudshift", "version": 2}')
    with pytest.raises(Corrupt, match="format version 2"):
        close(store, write_all(store, stage, arrays, 1), 1)
