"""Two steps that leave no trace, so that a resumed run reduces gradients as a long-running one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from cloudshift_lab.training import randomness

PASSES = 2


def warm_up(model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    """Run forward and backward twice, then put buffers, gradients and all randomness back.

    DistributedDataParallel rebuilds its buckets after its first iteration, and sums depend on
    them: without this a resumed step would differ in its last bits from the uninterrupted one.

    Args:
        model: The wrapped model, as the training loop uses it.
        loss: One forward pass to a scalar, on any batch of the usual shape.

    Source: measured, 4 ranks: 78 of 80 losses equal without, 80 of 80 with it. Sharded models
        (``fully_shard``, on one or two mesh axes) were equal without it too.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    grads = [(param, _copy(param.grad)) for param in model.parameters()]
    generators: dict[str, torch.Tensor] = {}
    others = randomness.gather("rng", generators)
    for _ in range(PASSES):
        loss().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for buffer, saved in buffers:
            buffer.copy_(saved)
    for param, grad in grads:
        param.grad = grad
    randomness.put_back(others, generators, "rng")


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()
