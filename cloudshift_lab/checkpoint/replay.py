"""One AdamW step computed again from the step before, so that only what differs need be stored.

The operations and their order are those of ``torch.optim.AdamW``. Whatever another device or a
fused kernel rounds differently is in the residual, which is always stored; all arithmetic here is
IEEE addition, multiplication, division and square root, so that decoding gives the same bytes on
any hardware.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cloudshift_lab.checkpoint.codecs import (
    ADAMW_V,
    ADAMW_W,
    Encoded,
    decode_sparse,
    encode_sparse,
)
from cloudshift_lab.core.errors import Corrupt

Floats = npt.NDArray[np.float32]
Bytes1d = npt.NDArray[np.uint8]
Scalars = tuple[float, float, float, float]
_SCALARS = struct.Struct("<B3x4f")
ORDERS = (0, 1)
"""Of the last operation: 0 for w + (s*m)/d, 1 for w + s*(m/d) as some GPUs do it."""


class Step(NamedTuple):
    """Hyperparameters of one AdamW step of one parameter; ``number`` counts its steps from 1."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    number: int


class Param(NamedTuple):
    """A parameter that AdamW steps: names of its tensors, and which steps it may have made."""

    name: str
    weight: str
    exp_avg: str
    exp_avg_sq: str
    num_steps: str
    groups: tuple[Mapping[str, Any], ...]

    def steps(self, number: int) -> Iterator[Step]:
        """The step with each learning rate that the leaves know of: a scheduler may have moved it.

        Args:
            number: Steps that the parameter has made, with this one.
        """
        rates = dict.fromkeys(float(group["lr"]) for group in self.groups)
        group = self.groups[0]
        beta1, beta2 = group["betas"]
        for lr in rates:
            yield Step(lr, beta1, beta2, group["eps"], group["weight_decay"], number)


def find_params(leaves: object, before: object) -> list[Param]:
    """The parameters that the leaves of a training session say AdamW steps.

    Args:
        leaves: Of the step to save.
        before: Of the step before it.
    """
    old = {name: values for names, values in _groups(before) for name in names}
    return [
        Param(
            name, f"model/{name}", f"optimizer/{name}/exp_avg", f"optimizer/{name}/exp_avg_sq",
            f"optimizer/{name}/step", (values, old[name]),
        )
        for names, values in _groups(leaves)
        for name in names
        if name in old
    ]  # fmt: skip


def _groups(leaves: object) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Names and values of the groups that are AdamW's, as far as the leaves have such."""
    optimizer = leaves.get("optimizer") if isinstance(leaves, dict) else None
    groups = optimizer.get("groups") if isinstance(optimizer, dict) else None
    return [
        (group["names"], group["values"])
        for group in (groups if isinstance(groups, list) else [])
        if isinstance(group, dict)
        and isinstance(group.get("names"), list)
        and _is_adamw(group.get("values"))
    ]


def _is_adamw(values: object) -> bool:
    if not isinstance(values, dict):
        return False
    numbers = [values.get(key) for key in ("lr", "eps", "weight_decay")]
    betas = values.get("betas")
    return (
        all(isinstance(number, float | int) for number in numbers)
        and isinstance(betas, tuple | list)
        and len(betas) == 2
        and all(isinstance(beta, float) for beta in betas)
        and not values.get("amsgrad")
        and bool(values.get("decoupled_weight_decay") or values["weight_decay"] == 0)
    )


def encode_v(v: Floats, m: Floats, old_m: Floats, old_v: Floats, step: Step) -> Encoded | None:
    """Second moments as what differs from the replayed ones; None if these have a NaN.

    Args:
        v: After the step.
        m: First moments after the step.
        old_m: First moments before the step.
        old_v: Second moments before the step.
        step: What it was made with.
    """
    scalars = (1 - step.beta1, step.beta2, 1 - step.beta2, 0.0)
    return _encoded(ADAMW_V, v, replayed_v(m, old_m, old_v, scalars), (0, *scalars))


def encode_w(
    w: Floats, m: Floats, v: Floats, old_w: Floats, step: Step, *, order: int
) -> Encoded | None:  # fmt: skip
    """Weights as what differs from the replayed ones; see ``encode_v``."""
    scalars = w_scalars(step)
    return _encoded(ADAMW_W, w, replayed_w(m, v, old_w, scalars, order), (order, *scalars))


def w_scalars(step: Step) -> Scalars:
    """Decay, root of the second bias correction, epsilon and the negative step size."""
    size = step.lr / (1 - step.beta1**step.number)
    root = (1 - step.beta2**step.number) ** 0.5
    return (1 - step.lr * step.weight_decay, root, step.eps, -size)


def _encoded(
    codec: int, values: Floats, replayed: Floats, head: tuple[int, float, float, float, float]
) -> Encoded | None:  # fmt: skip
    if np.isnan(replayed).any():
        return None  # which payload a NaN gets is up to the hardware
    residual = replayed.view("<u4")
    residual ^= values.view("<u4")
    return Encoded(codec, 4, _SCALARS.pack(*head) + encode_sparse(residual))


def decode_v(stored: bytes | memoryview, m: Floats, old_m: Floats, old_v: Floats) -> Bytes1d:
    """Undo ``encode_v``; the bytes of the second moments.

    Raises:
        Corrupt: The blob is malformed.
    """
    _, scalars, rest = _split(stored)
    return _decoded(rest, replayed_v(m, old_m, old_v, scalars))


def decode_w(stored: bytes | memoryview, m: Floats, v: Floats, old_w: Floats) -> Bytes1d:
    """Undo ``encode_w``; the bytes of the weights.

    Raises:
        Corrupt: The blob is malformed.
    """
    order, scalars, rest = _split(stored)
    return _decoded(rest, replayed_w(m, v, old_w, scalars, order))


def _split(stored: bytes | memoryview) -> tuple[int, Scalars, memoryview]:
    if len(stored) < _SCALARS.size or stored[0] not in ORDERS:
        raise Corrupt("a replayed chunk is malformed; use another step or update cloudshift-lab")
    order, a, b, c, d = _SCALARS.unpack_from(stored)
    return order, (a, b, c, d), memoryview(stored)[_SCALARS.size :]


def _decoded(rest: memoryview, replayed: Floats) -> Bytes1d:
    words = decode_sparse(rest, 4, replayed.nbytes)
    words ^= replayed.view("<u4")
    return words.view(np.uint8)


def replayed_v(m: Floats, old_m: Floats, old_v: Floats, scalars: Scalars) -> Floats:
    """The gradient from the change of the first moments (in double), then ``addcmul``."""
    one_minus_beta1, beta2, one_minus_beta2, _ = map(np.float32, scalars)
    with np.errstate(all="ignore"):
        grad = np.subtract(m, old_m, dtype=np.float64)
        grad /= np.float64(one_minus_beta1)
        grad += old_m
        g = grad.astype(np.float32)
        added = g * one_minus_beta2
        added *= g
        found = old_v * beta2
        found += added
    return found


def replayed_w(m: Floats, v: Floats, old_w: Floats, scalars: Scalars, order: int) -> Floats:
    """``mul``, ``sqrt``, ``div``, ``add``, ``addcdiv``: each rounded to float32."""
    decay, root, eps, negative_size = map(np.float32, scalars)
    with np.errstate(all="ignore"):
        denominator = np.sqrt(v)
        denominator /= root
        denominator += eps
        if order == 0:
            change = m * negative_size
            change /= denominator
        else:
            change = m / denominator
            change *= negative_size
        change += old_w * decay
    return change
