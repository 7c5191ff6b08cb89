"""The generators of one rank: taken for a capture, put back, or derived for another world size."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from cloudshift_lab.training.tree import pull_tensors, push_tensors

_DEFAULT_SEED = 0


def gather(place: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The state of torch's, Python's and numpy's generators.

    Args:
        place: Name under which torch's states go into ``tensors``.
        tensors: Filled.
    """
    tensors[place] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[f"{place}/cuda"] = torch.cuda.get_rng_state()
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": pull_tensors(state, place, {}),
        "seed": torch.initial_seed(),
    }


def put_back(leaves: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], place: str) -> None:
    """Undo ``gather``: every generator goes on exactly where it was."""
    torch.set_rng_state(tensors[place])
    if f"{place}/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{place}/cuda"])
    random.setstate(leaves["python"])
    numpy = sys.modules.get("numpy")
    if numpy is not None and leaves["numpy"] is not None:
        numpy.random.set_state(push_tensors(leaves["numpy"], {}))


def derive(leaves: Mapping[str, Any], *, step: int, rank: int, world_size: int) -> int:
    """Seed every generator of a rank that has no saved state of its own.

    A rank of another world size continues nobody's sequence, so that it gets one of its own: the
    same whenever this step is restored at this world size, and another for each rank.

    Args:
        leaves: What ``gather`` gave on the rank whose seed the run goes by.
        step: Restored step.
        rank: Of this process.
        world_size: Ranks now.

    Returns:
        The seed, 0 <= seed < 2**63.
    """
    run_seed = int(leaves.get("seed", _DEFAULT_SEED))
    digest = hashlib.sha256(f"{run_seed}/{step}/{world_size}/{rank}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    return seed
