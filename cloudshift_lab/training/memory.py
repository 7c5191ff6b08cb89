"""A tensor's elements as bytes and back, without copies where they lie together."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from cloudshift_lab.core.errors import UsageError

Bytes = npt.NDArray[np.uint8]


def bytes_of(tensor: torch.Tensor, name: str) -> Bytes:
    """The elements in C order; a view of a contiguous tensor on the host, else a copy.

    Raises:
        UsageError: A sparse or quantised tensor.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UsageError(
            f"'{name}' is a {tensor.layout} tensor, which a checkpoint cannot hold; "
            "make it dense before saving"
        )
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def writable_bytes(tensor: torch.Tensor) -> Bytes | None:
    """A view through which a reader fills the tensor; None when its memory is not like that."""
    plain = tensor.detach()
    is_simple = plain.device.type == "cpu" and plain.is_contiguous()
    if not is_simple or plain.is_conj() or plain.is_neg() or plain.layout != torch.strided:
        return None
    return plain.reshape(-1).view(torch.uint8).numpy()


def tensor_of(data: Bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over bytes that were read; shares their memory."""
    kind: torch.dtype = getattr(torch, dtype)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=kind)
    return torch.from_numpy(data.reshape(-1).view(np.uint8)).view(kind).reshape(shape)
