import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.checkpoint import (
    BoxRequest,
    Staged,
    TensorBox,
    TensorSpec,
    open_checkpoint,
    seal,
    stage_arrays,
    write_rank,
)
from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.storage.memory import MemoryStore

RUN = "run-1"


class RangeStore(MemoryStore):
    """Remembers the ranges that were read."""

    def __init__(self):
        super().__init__()
        self.ranges = []

    def get(self, key, *, start=None, end=None):
        data = super().get(key, start=start, end=end)
        self.ranges.append((key, len(data)))
        return data


def split(shape, parts, axis):
    """Boxes of up to ``parts`` uneven shares along one axis."""
    borders = np.unique(np.linspace(0, shape[axis], parts + 1).astype(int))
    for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        offset = [0] * len(shape)
        size = list(shape)
        offset[axis], size[axis] = start, stop - start
        yield tuple(offset), tuple(size)


def take(array, offset, shape):
    return array[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]


def save_split(store, array, world_size, axis):
    boxes = list(split(array.shape, world_size, axis))
    spec = TensorSpec("t", array.dtype.name, array.shape)
    written = []
    for rank in range(world_size):
        mine = boxes[rank : rank + 1]
        staged = Staged(
            1, rank, world_size,
            tuple(TensorBox("t", array.dtype.name, array.shape, o, s) for o, s in mine),
            tuple(np.ascontiguousarray(take(array, o, s)).reshape(-1).view(np.uint8)
                  for o, s in mine),
            None, (spec,),
        )  # fmt: skip
        written.append(write_rank(store, RUN, staged, generation=1))
    sealed = seal(store, RUN, 1, generation=1, world_size=world_size, written=written)
    return open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple),
    st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
    st.integers(1, 6), st.integers(1, 6), st.data(),
)  # fmt: skip
def test_any_world_size_restores_what_any_other_saved(shape, dtype, before, after, data):
    # Long rows make several cells per axis, also along the second one.
    stretch = data.draw(st.sampled_from([1, 997, 20_011]))
    if math.prod(shape) * stretch < 400_000:
        shape = (*shape[:-1], shape[-1] * stretch)
    array = (np.arange(math.prod(shape)) * 2654435761 % 251).reshape(shape).astype(dtype)
    axis = data.draw(st.integers(0, len(shape) - 1))
    checkpoint = save_split(MemoryStore(), array, before, axis)
    other = data.draw(st.integers(0, len(shape) - 1))
    requests = [BoxRequest("t", o, s) for o, s in split(shape, after, other)]
    for request, found in zip(requests, checkpoint.read_many(requests), strict=True):
        assert found.dtype == array.dtype
        assert (found == take(array, request.offset, request.shape)).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_box_of_a_tensor_can_be_read(data):
    array = np.random.default_rng(5).standard_normal((700, 3, 211)).astype(np.float32)
    checkpoint = save_split(MemoryStore(), array, 3, data.draw(st.integers(0, 2)))
    offset = tuple(data.draw(st.integers(0, n)) for n in array.shape)
    shape = tuple(
        data.draw(st.integers(0, n - o)) for n, o in zip(array.shape, offset, strict=True)
    )
    assert (checkpoint.box("t", offset, shape) == take(array, offset, shape)).all()


def test_reading_fetches_each_blob_once_and_hardly_more_than_is_stored():
    store = RangeStore()
    array = np.random.default_rng(6).standard_normal((4000, 512)).astype(np.float32)
    checkpoint = save_split(store, array, 4, 0)
    store.ranges.clear()
    requests = [BoxRequest("t", o, s) for o, s in split(array.shape, 7, 0)]
    checkpoint.read_many(requests)
    stored = sum(size for _, size in checkpoint.packs().values())
    assert sum(size for _, size in store.ranges) <= 1.05 * stored
    assert len(store.ranges) <= 2 * len(checkpoint.packs())


def test_a_small_box_reads_only_its_chunks():
    store = RangeStore()
    array = np.random.default_rng(6).standard_normal((4000, 512)).astype(np.float32)
    checkpoint = save_split(store, array, 1, 0)
    store.ranges.clear()
    checkpoint.box("t", (100, 0), (1, 512))
    assert sum(size for _, size in store.ranges) < 300_000


def test_reading_into_given_buffers_fills_them(arrays, save, opened):
    store = MemoryStore()
    checkpoint = opened(store, save(store, arrays, world_size=2))
    names = list(arrays)
    buffers = [np.full(arrays[n].nbytes, 0xAA, dtype=np.uint8) for n in names]
    requests = [BoxRequest(n, (0,) * arrays[n].ndim, arrays[n].shape) for n in names]
    found = checkpoint.read_many(requests, out=buffers, threads=2)
    for name, buffer, array in zip(names, buffers, found, strict=True):
        assert buffer.tobytes() == arrays[name].tobytes()
        assert np.shares_memory(buffer, array) or not array.size


def test_a_buffer_of_the_wrong_size_is_refused(arrays, save, opened):
    store = MemoryStore()
    checkpoint = opened(store, save(store, arrays))
    with pytest.raises(UsageError, match="contiguous buffer"):
        checkpoint.read_many(
            [BoxRequest("layer.bias", (0,), (301,))], out=[np.zeros(601, dtype=np.uint8)]
        )


def test_replicas_that_overlap_are_read_once():
    array = np.arange(1000, dtype=np.int64)
    store = RangeStore()
    written = [
        write_rank(
            store, RUN, stage_arrays({"t": array}, step=1, rank=r, world_size=3), generation=1
        )
        for r in range(3)
    ]
    sealed = seal(store, RUN, 1, generation=1, world_size=3, written=written)
    checkpoint = open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)
    store.ranges.clear()
    assert (checkpoint.tensor("t") == array).all()
    assert len(store.ranges) == 1


def test_names_leaves_and_objects_of_a_step_can_be_listed(arrays, save, opened):
    store = MemoryStore()
    sealed = save(store, arrays, step=9, world_size=2)
    checkpoint = opened(store, sealed)
    assert checkpoint.names() == tuple(sorted(arrays))
    assert (checkpoint.step, checkpoint.world_size, checkpoint.coverage) == (9, 2, "complete")
    assert checkpoint.ranks == (0, 1)
    assert [checkpoint.leaves(r) for r in (0, 1)] == [{"rank": 0}, {"rank": 1}]
    assert set(checkpoint.object_keys()) == set(store.list("")) - {"cloudshift.json"}
    assert list(checkpoint.object_keys())[-1] == sealed.manifest_key
    assert checkpoint.object_sizes() == {key: store.size(key) for key in checkpoint.object_keys()}


def test_what_is_not_there_is_said_in_words(arrays, save, opened):
    store = MemoryStore()
    checkpoint = opened(store, save(store, arrays))
    with pytest.raises(NotFound, match=r"no tensor 'layer\.weigth'"):
        checkpoint.tensor("layer.weigth")
    with pytest.raises(NotFound, match="no record of rank 4"):
        checkpoint.leaves(4)
    with pytest.raises(UsageError, match="does not lie inside"):
        checkpoint.box("layer.bias", (300,), (2,))


class StreamedStore(RangeStore):
    """Hands ranges out last first."""

    def get_each(self, requests, concurrency=8):
        for number in reversed(range(len(requests))):
            key, start, end = requests[number]
            yield number, self.get(key, start=start, end=end)


def test_ranges_may_arrive_in_any_order():
    array = np.random.default_rng(6).standard_normal((9000, 512)).astype(np.float32)
    checkpoint = save_split(StreamedStore(), array, 2, 0)
    assert checkpoint.tensor("t").tobytes() == array.tobytes()


def test_a_range_damaged_on_its_way_is_read_once_more_and_then_refused():
    class Noisy(RangeStore):
        damaged = 1

        def get_each(self, requests, concurrency=8):
            for number, body in super().get_each(requests, concurrency):
                if number == 1:
                    body = body[:1000] + bytes([body[1000] ^ 4]) + body[1001:]
                yield number, body

        def get(self, key, *, start=None, end=None):
            body = super().get(key, start=start, end=end)
            return body if self.damaged else bytes([body[0] ^ 1]) + body[1:]

    array = np.random.default_rng(6).standard_normal((9000, 512)).astype(np.float32)
    store = Noisy()
    checkpoint = save_split(store, array, 1, 0)
    assert checkpoint.tensor("t").tobytes() == array.tobytes()
    store.damaged = 0
    with pytest.raises(Corrupt, match=r"differs from its hash|do not add up"):
        checkpoint.tensor("t")


def test_the_requests_of_one_plan_are_many_at_first_and_never_larger_than_the_limit():
    array = np.random.default_rng(6).standard_normal((12000, 512)).astype(np.float32)
    store = RangeStore()
    checkpoint = save_split(store, array, 1, 0)
    store.ranges.clear()
    whole = [BoxRequest("t", (0, 0), array.shape)]
    checkpoint.read_many(whole, concurrency=8)
    assert len(store.ranges) >= 8
    store.ranges.clear()
    checkpoint.read_many(whole, concurrency=1)
    assert max(size for _, size in store.ranges) <= 8 * 2**20
