"""Which rank stages which tensor, so that all ranks carry about the same number of bytes."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def share_out(
    num_bytes: Mapping[str, int], world_size: int, *, already: Mapping[int, int] | None = None
) -> dict[str, int]:
    """Give each name to a rank; the same on every rank, since it depends on nothing else.

    Args:
        num_bytes: Size of each tensor by name.
        world_size: Ranks to share between.
        already: Bytes that a rank carries anyway.

    Returns:
        Name to rank; greedy from the largest, so no rank is above the mean by more than one tensor.
    """
    load = [(already or {}).get(rank, 0) for rank in range(world_size)]
    owner: dict[str, int] = {}
    for name in sorted(num_bytes, key=lambda name: (-num_bytes[name], name)):
        rank = min(range(world_size), key=lambda rank: (load[rank], rank))
        owner[name] = rank
        load[rank] += num_bytes[name]
    return owner


def share_of(
    rank: int,
    world_size: int,
    *,
    replicated: Mapping[str, torch.Tensor],
    rank0: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The tensors that ``rank`` stages: its part of the replicated ones and all of its own."""
    carried = sum(tensor.nbytes for tensor in rank0.values())
    sizes = {name: tensor.nbytes for name, tensor in replicated.items()}
    owner = share_out(sizes, world_size, already={0: carried})
    share = {name: tensor for name, tensor in replicated.items() if owner[name] == rank}
    return {**share, **(rank0 if rank == 0 else {}), **own}
