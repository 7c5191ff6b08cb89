"""A model whose weights after any step are known beforehand, so that lost steps show."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint import Checkpoint, Staged, TensorBox, TensorSpec

WORLD_SIZE = 2
_ROWS = 8
_TABLE = np.arange(64, dtype=np.int64) * 2_654_435_761
_SPECS = (
    TensorSpec("table", "int64", (64,)),
    TensorSpec("weights", "int64", (_ROWS, 2)),
)
Weights = npt.NDArray[np.int64]


def first_weights() -> Weights:
    """Before the first step."""
    return np.arange(_ROWS * 2, dtype=np.int64).reshape(_ROWS, 2)


def next_weights(weights: Weights, step: int) -> Weights:
    """What step number ``step`` makes of the weights; depends on every step before it."""
    return (weights * 31 + step * 7 + 3) % 1_000_000_007


def drifted(weights: Weights) -> Weights:
    """What a machine that computes a little differently makes of the same step."""
    other = weights.copy()
    other[0, 0] = (other[0, 0] + 1) % 1_000_000_007
    return other


def loss_of(weights: Weights) -> float:
    """The loss that a step tells; as good as a hash of the whole state."""
    mixed = int(np.dot(weights.reshape(-1), np.arange(1, weights.size + 1)) % 999_983)
    return mixed / 999_983


@functools.cache
def weights_after(step: int) -> Weights:
    """The weights of a run that never stopped, after ``step`` steps."""
    weights = first_weights()
    for done in range(1, step + 1):
        weights = next_weights(weights, done)
    return weights


def stage(weights: Weights, step: int, rank: int) -> Staged:
    """One rank's share: half of the weights each; rank 0 has the constant table too."""
    half = _ROWS // WORLD_SIZE
    boxes = [TensorBox("weights", "int64", (_ROWS, 2), (rank * half, 0), (half, 2))]
    arrays: list[Weights] = [weights[rank * half : (rank + 1) * half]]
    if rank == 0:
        boxes.append(TensorBox("table", "int64", (64,), (0,), (64,)))
        arrays.append(_TABLE)
    buffers = tuple(np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays)
    leaves = {"step": step, "rank": rank}
    return Staged(step, rank, WORLD_SIZE, tuple(boxes), buffers, leaves, _SPECS)


def read_weights(checkpoint: Checkpoint) -> tuple[int, Weights]:
    """Step and weights as a restarting rank reads them, constant table included."""
    table = checkpoint.tensor("table")
    if not np.array_equal(table, _TABLE):
        return -1, first_weights()
    leaves = checkpoint.leaves(0)
    step = leaves["step"] if isinstance(leaves, dict) else -1
    return int(step), np.asarray(checkpoint.tensor("weights"), dtype=np.int64)
