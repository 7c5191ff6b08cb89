"""A node directory as ranks leave it: staged slots, written without torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.checkpoint.saving import SaverJob
from cloudshift_lab.core.staging import (
    StagedBox,
    StagedRank,
    StagedSpec,
    replace_file,
    slot_file,
    staged_file,
)
from cloudshift_lab.core.wire import to_json

T = TypeVar("T")
Arrays = Mapping[str, npt.NDArray[np.generic]]


def make_job(store_url: str, ranks: tuple[int, ...] = (0, 1), **changes: object) -> SaverJob:
    job = SaverJob(
        run_id="run-a", generation=1, world_size=2, ranks=ranks, store_url=store_url, threads=1
    )
    return msgspec.structs.replace(job, **changes)


def stage(
    node_dir: Path, rank: int, step: int, arrays: Arrays, *,
    catalog: Arrays | None = None, world_size: int = 2, slot: int = 0,
) -> None:  # fmt: skip
    """One rank's whole arrays in one slot, announced."""
    node_dir.mkdir(exist_ok=True)
    boxes, start = [], 0
    for name, array in arrays.items():
        zeros = (0,) * array.ndim
        boxes.append(
            StagedBox(name, array.dtype.name, array.shape, zeros, array.shape, start, array.nbytes)
        )
        start += array.nbytes
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    slot_file(node_dir, rank, slot).write_bytes(data)
    specs = tuple(StagedSpec(n, a.dtype.name, a.shape) for n, a in (catalog or {}).items())
    described = StagedRank(
        step=step, is_last=False, rank=rank, world_size=world_size,
        slot_file=slot_file(node_dir, rank, slot).name, boxes=tuple(boxes),
        leaves=msgspec.Raw(encode_leaves({"rank": rank})), catalog=specs,
    )  # fmt: skip
    replace_file(staged_file(node_dir, rank, slot), to_json(described))


def weights(step: int, rank: int, num_bytes: int = 200_000) -> Arrays:
    """A share that differs by step and rank."""
    return {f"model/w{rank}": np.full(num_bytes // 4, float(step * 10 + rank), np.float32)}


def until(found: Callable[[], T | None]) -> T:
    """Poll until there is something, for at most a minute."""
    deadline = time.monotonic() + 60
    while (answer := found()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer
