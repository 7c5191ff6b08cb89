"""Saving in one line, for every test of this room."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import settings

from cloudshift_lab.checkpoint import (
    Checkpoint,
    KnownChunks,
    Sealed,
    Staged,
    TensorBox,
    TensorSpec,
    open_checkpoint,
    seal,
    write_rank,
)

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

RUN = "run-1"


def rows_of_rank(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Uneven shares on purpose, as FSDP makes them: the last ranks may get nothing."""
    share = -(-rows // world_size)
    return min(rank * share, rows), min((rank + 1) * share, rows)


def stage_share(arrays: dict[str, np.ndarray], *, step: int, rank: int, world_size: int) -> Staged:
    """Rows of every array; 0-d arrays go to rank 0."""
    boxes, buffers = [], []
    for name, array in arrays.items():
        start, stop = rows_of_rank(array.shape[0], rank, world_size) if array.ndim else (0, 0)
        if array.ndim and start == stop:
            continue
        if not array.ndim and rank:
            continue
        part = array[start:stop] if array.ndim else array
        offset = (start, *[0] * (array.ndim - 1)) if array.ndim else ()
        boxes.append(TensorBox(name, array.dtype.name, array.shape, offset, part.shape))
        buffers.append(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    catalog = tuple(TensorSpec(n, a.dtype.name, a.shape) for n, a in arrays.items())
    return Staged(step, rank, world_size, tuple(boxes), tuple(buffers), {"rank": rank}, catalog)


def save_arrays(
    store, arrays, *, step=1, world_size=1, generation=1, known=None, base=None,
    ranks: Sequence[int] = (),
) -> Sealed:  # fmt: skip
    written = [
        write_rank(
            store, RUN, stage_share(arrays, step=step, rank=rank, world_size=world_size),
            generation=generation, known=known, base=base,
        )
        for rank in ranks or range(world_size)
    ]  # fmt: skip
    return seal(store, RUN, step, generation=generation, world_size=world_size, written=written)


def open_sealed(store, sealed: Sealed) -> Checkpoint:
    return open_checkpoint(store, RUN, sealed.manifest_key, digest=sealed.manifest_digest)


@pytest.fixture(scope="session")
def stage() -> Callable[..., Staged]:
    return stage_share


@pytest.fixture(scope="session")
def save() -> Callable[..., Sealed]:
    return save_arrays


@pytest.fixture(scope="session")
def opened() -> Callable[..., Checkpoint]:
    return open_sealed


@pytest.fixture(scope="session")
def known_of() -> Callable[..., KnownChunks]:
    return lambda store, sealed: KnownChunks.from_checkpoint(open_sealed(store, sealed))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "layer.weight": rng.standard_normal((900, 301)).astype(np.float32),
        "layer.bias": rng.standard_normal(301).astype(np.float16),
        "adam.step": np.array(17.0, dtype=np.float32),
        "tokens": rng.integers(0, 50_000, (40, 33)),
        "mask": rng.random(77) < 0.5,
        "none": np.zeros((0, 4), dtype=np.float64),
    }
