"""What is not a tensor in a state dictionary: as typed JSON, with its key in every error."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cloudshift_lab.checkpoint.leaves import decode_leaves, encode_leaves
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.tree import pull_tensors, push_tensors


def to_plain(value: object, key: str, tensors: dict[str, torch.Tensor]) -> object:
    """A value as a checkpoint holds it: plain, with its tensors taken out.

    Args:
        value: Anything; numbers, strings, bytes, numpy arrays, tensors and containers of such pass.
        key: Where it stands in the state, for names and messages.
        tensors: Filled: name to tensor, for those inside of lists and tuples.

    Raises:
        UsageError: Something else is in it; names the key path.
    """
    plain = pull_tensors(value, key, tensors)
    encode_leaves(plain, key)
    return plain


def from_plain(plain: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Undo ``to_plain``."""
    return push_tensors(plain, tensors)


def to_bytes(value: object, key: str) -> bytes:
    """A value as typed JSON, for writers that take byte streams.

    Raises:
        UsageError: As ``to_plain``; also for a tensor inside of a tuple, which no stream holds.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = to_plain(value, key, tensors)
    if tensors:
        raise UsageError(f"{next(iter(tensors))} is a tensor inside a tuple; use a list for it")
    return encode_leaves(plain, key)


def from_bytes(data: bytes) -> object:
    """Undo ``to_bytes``.

    Raises:
        Corrupt: The bytes are something else, a pickle for example.
    """
    return push_tensors(decode_leaves(data), {})
