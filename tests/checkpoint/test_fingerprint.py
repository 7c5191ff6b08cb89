"""A state that was replayed elsewhere is the sealed one exactly when every hash is the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cloudshift_lab.checkpoint import Checkpoint, open_checkpoint
from cloudshift_lab.checkpoint.fingerprint import differing
from cloudshift_lab.storage.memory import MemoryStore

from .conftest import RUN, save_arrays, stage_share

Arrays = dict[str, np.ndarray]


class PacklessStore(MemoryStore):
    """Refuses to give out packs: whoever needs their bytes is found out."""

    is_closed = False

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        assert not (self.is_closed and key.startswith("packs/")), f"{key} was read"
        return super().get(key, start=start, end=end)


def state(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "large": random.standard_normal((700, 1024), dtype=np.float32),
        "bias": random.standard_normal(33, dtype=np.float32),
        "count": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


@pytest.fixture(params=[1, 2, 3])
def world_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def sealed(world_size: int) -> Checkpoint:
    store = PacklessStore()
    saved = save_arrays(store, state(), step=5, world_size=world_size)
    store.is_closed = True
    return open_checkpoint(store, RUN, saved.manifest_key, digest=saved.manifest_digest)


def shares(arrays: Arrays, world_size: int) -> list:
    return [stage_share(arrays, step=5, rank=r, world_size=world_size) for r in range(world_size)]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_equal_state_differs_in_nothing_and_no_pack_is_read(
    sealed: Checkpoint, world_size: int, threads: int
) -> None:
    seen: list[int] = []
    found = differing(shares(state(), world_size), sealed, threads=threads, progress=seen.append)
    assert found == ()
    assert seen == sorted(seen)
    assert seen[-1] == sum(array.nbytes for array in state().values())


@pytest.mark.parametrize("name", ["large", "bias", "count"])
def test_one_flipped_bit_names_its_tensor(sealed: Checkpoint, world_size: int, name: str) -> None:
    arrays = state()
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1).view(np.uint8)[-1] ^= 1
    assert differing(shares(arrays, world_size), sealed) == (name,)


def test_a_tensor_of_another_shape_or_dtype_or_name_differs(
    sealed: Checkpoint, world_size: int
) -> None:
    arrays = state()
    arrays["bias"] = arrays["bias"].reshape(3, 11)
    arrays["count"] = arrays["count"].astype(np.int32)
    arrays["new"] = np.ones(3, dtype=np.float32)
    assert differing(shares(arrays, world_size), sealed) == ("bias", "count", "new")


def test_a_sealed_tensor_that_nobody_staged_differs_also_for_some_of_the_ranks(
    sealed: Checkpoint, world_size: int
) -> None:
    arrays = state()
    del arrays["bias"]
    staged = shares(arrays, world_size)
    assert differing(staged, sealed) == ("bias",)
    for share in staged:
        assert differing([share], sealed) == ("bias",)


def test_a_tensor_that_another_rank_has_sealed_differs_though_its_bytes_are_equal() -> None:
    store, arrays = MemoryStore(), state()
    saved = save_arrays(store, arrays, step=5, world_size=2)
    sealed = open_checkpoint(store, RUN, saved.manifest_key, digest=saved.manifest_digest)
    alone = stage_share({"count": arrays["count"]}, step=5, rank=0, world_size=2)
    first, second = shares(arrays, 2)
    moved = dataclasses.replace(
        second,
        boxes=(*second.boxes, *alone.boxes),
        buffers=(*second.buffers, *alone.buffers),
    )
    assert differing([first], sealed) == ()
    assert differing([moved], sealed) == ("count",)


def test_other_leaves_name_their_rank(sealed: Checkpoint, world_size: int) -> None:
    staged = shares(state(), world_size)
    staged[-1] = dataclasses.replace(staged[-1], leaves={"rank": world_size - 1, "seed": 1})
    assert differing(staged, sealed) == (f"leaves of rank {world_size - 1}",)


def test_leaves_that_are_not_a_number_are_equal_to_themselves() -> None:
    store = MemoryStore()
    share = dataclasses.replace(shares(state(), 1)[0], leaves={"scale": float("nan")})
    from cloudshift_lab.checkpoint import seal, write_rank

    written = write_rank(store, RUN, share, generation=1)
    found = seal(store, RUN, 5, generation=1, world_size=1, written=[written])
    sealed = open_checkpoint(store, RUN, found.manifest_key, digest=found.manifest_digest)
    assert differing([share], sealed) == ()


def test_a_state_that_was_split_otherwise_is_not_taken_for_equal(sealed: Checkpoint) -> None:
    num, world_size = sealed.world_size, sealed.world_size + 2
    expected = (f"the split: {world_size} ranks instead of {num}",)
    assert differing(shares(state(), world_size), sealed) == expected
