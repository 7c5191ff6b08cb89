import numpy as np
import pytest

from cloudshift_lab.checkpoint import (
    BoxRequest,
    KnownChunks,
    Staged,
    TensorBox,
    open_checkpoint,
    seal,
    stage_arrays,
    verify,
    write_rank,
)
from cloudshift_lab.core.errors import Unavailable, Unsupported, UsageError
from cloudshift_lab.storage.file import FileStore
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"


class CountingStore(MemoryStore):
    """Remembers every write in order, and the ranges that were read."""

    def __init__(self):
        super().__init__()
        self.writes = []
        self.reads = []

    def put(self, key, data):
        self.writes.append((key, len(data)))
        super().put(key, data)

    def get(self, key, *, start=None, end=None):
        self.reads.append((key, start, end))
        return super().get(key, start=start, end=end)


class CrashingStore(MemoryStore):
    """Dies at its n-th operation, before or after the effect."""

    def __init__(self, crash_at, after):
        super().__init__()
        self.left = crash_at
        self.after = after

    def _operate(self, effect):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Unavailable("the store went away; try again")
        result = effect()
        if self.left == 0:
            raise Unavailable("the answer was lost; try again")
        return result

    def get(self, key, *, start=None, end=None):
        parent = super()
        return self._operate(lambda: parent.get(key, start=start, end=end))

    def put(self, key, data):
        parent = super()
        self._operate(lambda: parent.put(key, data))

    def create(self, key, data):
        parent = super()
        return self._operate(lambda: parent.create(key, data))

    def size(self, key):
        parent = super()
        return self._operate(lambda: parent.size(key))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_array_comes_back_bit_for_bit(arrays, opened, save, threads):
    arrays["nan.payload"] = np.array([0x7FC00001, 0xFFC12345, 0x80000000], "<u4").view("<f4")
    arrays["complex"] = np.array([complex(-0.0, float("inf")), 1j] * 20, dtype=np.complex128)
    arrays["transposed"] = arrays["layer.weight"].T[::2]
    store = MemoryStore()
    written = write_rank(store, RUN, stage_arrays(arrays, step=1), generation=1, threads=threads)
    checkpoint = opened(store, seal(store, RUN, 1, generation=1, world_size=1, written=[written]))
    for name, array in arrays.items():
        found = checkpoint.tensor(name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes(), name


def test_bfloat16_travels_as_two_byte_words():
    words = np.arange(65536, dtype="<u2").reshape(256, 256)
    box = TensorBox("w", "bfloat16", (256, 256), (0, 0), (256, 256))
    staged = Staged(1, 0, 1, (box,), (memoryview(words).cast("B"),))
    store = MemoryStore()
    written = write_rank(store, RUN, staged, generation=1)
    sealed = seal(store, RUN, 1, generation=1, world_size=1, written=[written])
    found = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    assert found.tensor("w").dtype == np.uint16
    assert (found.tensor("w") == words).all()


def test_the_number_of_threads_changes_no_byte(arrays):
    first, second = MemoryStore(), MemoryStore()
    one = write_rank(first, RUN, stage_arrays(arrays, step=1), generation=1, threads=1)
    assert one == write_rank(second, RUN, stage_arrays(arrays, step=1), generation=1, threads=4)


def test_equal_content_is_stored_once_whatever_it_is_called(arrays):
    alone = {"a": arrays["layer.weight"]}
    tied = {"a": arrays["layer.weight"], "b": arrays["layer.weight"].copy()}
    sizes = [
        write_rank(MemoryStore(), RUN, stage_arrays(x, step=1), generation=1).new_bytes
        for x in (alone, tied)
    ]
    assert sizes[0] == sizes[1]


def test_a_second_save_writes_only_what_changed(arrays, save, known_of, opened):
    store = MemoryStore()
    first = save(store, arrays, step=1)
    changed = {**arrays, "layer.bias": arrays["layer.bias"] + 1}
    known = known_of(store, first)
    written = write_rank(store, RUN, stage_arrays(changed, step=2), generation=1, known=known)
    assert 0 < written.new_bytes < 2 * arrays["layer.bias"].nbytes
    second = seal(store, RUN, 2, generation=1, world_size=1, written=[written])
    assert (opened(store, second).tensor("layer.bias") == changed["layer.bias"]).all()
    assert (opened(store, second).tensor("layer.weight") == arrays["layer.weight"]).all()


def test_the_grid_is_that_of_the_whole_tensor_and_not_of_the_share(opened):
    share = np.arange(1024 * 1024, dtype=np.float32)
    box = TensorBox("w", "float32", (131_072, 1024), (1024, 0), (1024, 1024))
    store = MemoryStore()
    written = write_rank(store, RUN, Staged(1, 0, 2, (box,), (share.view(np.uint8),)), generation=1)
    sealed = seal(store, RUN, 1, generation=1, world_size=2, written=[written], partial="keep")
    assert len(opened(store, sealed).chunk_ids()) == 4  # 1 MiB cells; alone it would have 16


def test_dedup_survives_a_change_of_world_size(arrays, save, known_of, stage):
    rows = np.random.default_rng(1).standard_normal((6000, 256)).astype(np.float32)
    store = MemoryStore()
    known = known_of(store, save(store, {"w": rows}, world_size=4))
    new = sum(
        write_rank(
            store, RUN, stage({"w": rows}, step=2, rank=rank, world_size=3), generation=2,
            known=known,
        ).new_bytes
        for rank in range(3)
    )  # fmt: skip
    assert new < rows.nbytes / 4


def test_an_object_that_is_merely_there_is_not_trusted(arrays):
    """A pack that was torn in an earlier, uncommitted attempt is written again."""
    store = CountingStore()
    write_rank(store, RUN, stage_arrays(arrays, step=1), generation=1)
    packs = [key for key, _ in store.writes if key.startswith("packs/")]
    for key in packs:
        store.put(key, b"torn")
    store.writes.clear()
    written = write_rank(store, RUN, stage_arrays(arrays, step=1), generation=1)
    assert {key for key, _ in store.writes} >= set(packs)
    sealed = seal(store, RUN, 1, generation=1, world_size=1, written=[written])
    assert verify(store, RUN, sealed.manifest_key, sealed.manifest_digest).ok


def test_writes_go_packs_then_index_then_record_then_manifest(arrays):
    store = CountingStore()
    written = write_rank(store, RUN, stage_arrays(arrays, step=1), generation=1)
    seal(store, RUN, 1, generation=1, world_size=1, written=[written])
    order = [key for key, _ in store.writes]
    assert order[0].endswith(".pack")
    assert len(order) == 4
    assert order[-3].endswith(".index")
    assert order[-2] == written.record_key
    assert "/manifest." in order[-1]


def test_large_shares_are_cut_into_packs_and_small_tensors_lie_together(monkeypatch):
    monkeypatch.setattr("cloudshift_lab.checkpoint.packer.PACK_BYTES", 300_000)
    noise = np.random.default_rng(2).integers(0, 256, (16, 100_000), dtype=np.uint8)
    arrays = {"big": noise, **{f"small.{i}": noise[0, i * 50 : i * 50 + 50] for i in range(300)}}
    store = CountingStore()
    written = write_rank(store, RUN, stage_arrays(arrays, step=1), generation=1)
    packs = [size for key, size in store.writes if key.startswith("packs/")]
    assert len(packs) > 4
    assert max(packs) < 300_000 + 2**20
    sealed = seal(store, RUN, 1, generation=1, world_size=1, written=[written])
    checkpoint = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    store.reads.clear()
    wanted = [BoxRequest(f"small.{i}", (0,), (50,)) for i in range(300)]
    found = checkpoint.read_many(wanted)
    assert all((a == arrays[w.name]).all() for a, w in zip(found, wanted, strict=True))
    assert len(store.reads) == 1


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_store_operation_leaves_a_save_that_can_be_repeated(
    arrays, save, opened, after
):
    crashes = 0
    for crash_at in range(1, 60):
        store = CrashingStore(crash_at, after)
        try:
            save(store, arrays, world_size=2)
        except Unavailable:
            crashes += 1
            store.left = -1
            sealed = save(store, arrays, world_size=2)
            checkpoint = opened(store, sealed)
            for name, array in arrays.items():
                assert checkpoint.tensor(name).tobytes() == array.tobytes()
            assert verify(store, RUN, sealed.manifest_key, sealed.manifest_digest).ok
        else:
            break
    assert crashes == crash_at - 1 > 10


def test_two_generations_write_the_same_step_without_touching_each_other(arrays, save, opened):
    store = MemoryStore()
    other = {**arrays, "layer.bias": arrays["layer.bias"] * 2}
    old = save(store, arrays, step=5, generation=1)
    new = save(store, other, step=5, generation=2, world_size=2)
    assert old.manifest_key != new.manifest_key
    for sealed, expected in ((old, arrays), (new, other)):
        assert (opened(store, sealed).tensor("layer.bias") == expected["layer.bias"]).all()


def test_a_save_to_a_folder_can_be_read_from_the_folder(tmp_path, arrays, save, opened):
    store = FileStore(f"file://{tmp_path}")
    checkpoint = opened(store, save(store, arrays, world_size=3))
    assert (checkpoint.tensor("layer.weight") == arrays["layer.weight"]).all()


def test_a_buffer_of_the_wrong_size_is_refused_before_anything_is_written():
    box = TensorBox("w", "float32", (4,), (0,), (4,))
    store = CountingStore()
    with pytest.raises(UsageError, match="needs 16 bytes"):
        write_rank(store, RUN, Staged(1, 0, 1, (box,), (memoryview(bytes(15)),)), generation=1)
    assert store.writes == []


def test_a_leaf_that_json_cannot_hold_is_refused_before_anything_is_written(arrays):
    store = CountingStore()
    with pytest.raises(UsageError, match=r"leaves\.rng is a set"):
        write_rank(store, RUN, stage_arrays(arrays, step=1, leaves={"rng": {1}}), generation=1)
    assert store.writes == []


def test_strings_and_objects_are_no_tensors():
    with pytest.raises(Unsupported):
        stage_arrays({"s": np.array(["a"])}, step=1)
    with pytest.raises(Unsupported):
        stage_arrays({"o": np.array([object()])}, step=1)


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "x" * 200, "a b"])
def test_a_run_id_that_cannot_be_part_of_a_key_is_refused(arrays, run_id):
    with pytest.raises(UsageError):
        write_rank(MemoryStore(), run_id, stage_arrays(arrays, step=1), generation=1)


def test_known_chunks_count_what_they_know(arrays, save, opened):
    store = MemoryStore()
    checkpoint = opened(store, save(store, arrays))
    known = KnownChunks.from_checkpoint(checkpoint)
    assert len(known) == len(checkpoint.chunk_ids())
    assert known.find(bytes(32)) is None


def test_one_unchanged_kilobyte_does_not_drag_an_older_pack_along(save, known_of, opened):
    store = MemoryStore()
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((256, 1024), dtype=np.float32)}
    state = {"rng/0": rng.integers(0, 256, 5056, dtype=np.uint8)}
    first = save(store, weights | state, step=1)
    known = known_of(store, first)
    moved = {"w": rng.standard_normal((256, 1024), dtype=np.float32)}
    second = save(store, moved | state, step=2, known=known)
    packs = [set(opened(store, sealed).packs()) for sealed in (first, second)]
    assert packs[0].isdisjoint(packs[1])
    kept = save(store, weights | {"rng/0": state["rng/0"][::-1].copy()}, step=3, known=known)
    assert packs[0] < set(opened(store, kept).packs())


def test_a_dead_pack_is_neither_reused_nor_written_under_its_name(arrays, save, known_of, opened):
    store = CountingStore()
    first = save(store, arrays, step=1)
    dead = frozenset(digest for digest, _ in opened(store, first).packs().values())
    known = known_of(store, first)
    store.writes.clear()
    written = write_rank(
        store, RUN, stage_arrays(arrays, step=2), generation=1, known=known, dead_packs=dead
    )
    assert not {f"packs/{d[:2]}/{d}.pack" for d in dead} & {key for key, _ in store.writes}
    second = seal(store, RUN, 2, generation=1, world_size=1, written=[written])
    for digest in dead:
        store.delete(f"packs/{digest[:2]}/{digest}.pack")
    assert verify(store, RUN, second.manifest_key, second.manifest_digest).ok
    for name, array in arrays.items():
        assert opened(store, second).tensor(name).tobytes() == array.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_save_tells_how_far_it_is(arrays, threads):
    told = []
    written = write_rank(
        MemoryStore(), RUN, stage_arrays(arrays, step=1), generation=1, threads=threads,
        progress=told.append,
    )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == written.raw_bytes


def test_a_base_from_another_store_is_refused(arrays, save, opened):
    elsewhere = MemoryStore("memory://elsewhere")
    base = opened(elsewhere, save(elsewhere, arrays, step=1))
    with pytest.raises(UsageError, match="pass a base from"):
        write_rank(MemoryStore(), RUN, stage_arrays(arrays, step=2), generation=1, base=base)
