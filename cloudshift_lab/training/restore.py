"""Puts stored boxes into the tensors that a script has built, at any world size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cloudshift_lab.checkpoint.boxes import TensorSpec
from cloudshift_lab.checkpoint.reader import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.sharding import (
    LocalBox,
    boxes_of_rank,
    is_sharded,
    layout_of,
    local_of,
    whole_box,
)
from cloudshift_lab.training.tree import dtype_name, to_torch

_SHOWN = 3
_COUNTERS = ("step", "mu_product")


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did with a state that may not fit the script.

    ``missing``: the script has it, the checkpoint does not; ``mismatched``: both have it, with
    another shape or dtype; these keep the values that the script built. ``unexpected``: only the
    checkpoint has it; it was not used. ``randomness``: the saved generators, or new ones derived
    from the run's seed, the step and the rank, as at another world size.
    """

    step: int
    num_restored: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    randomness: Literal["exact", "derived"] = "exact"

    @property
    def fits(self) -> bool:
        """Whether the checkpoint and the script have the very same state."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        if self.fits:
            return f"all {self.num_restored} tensors of step {self.step} restored"
        return f"{self.num_restored} tensors of step {self.step} restored; {self._differences()}"

    def _differences(self) -> str:
        kinds = {
            "only in the script": self.missing,
            "only in the checkpoint": self.unexpected,
            "different": self.mismatched,
        }
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)

    def check(self) -> None:
        """Refuse a state that does not fit.

        Raises:
            UsageError: It does not; names some of the tensors.
        """
        if not self.fits:
            raise UsageError(
                f"step {self.step} does not fit the script's state; {self._differences()}; run the "
                "script that wrote it, or restore with strict=False to keep what differs as built",
                missing=len(self.missing), unexpected=len(self.unexpected),
                mismatched=len(self.mismatched),
            )  # fmt: skip


@dataclass
class Differences:
    """Gathers what does not fit before anything is changed."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def compare(self, saved: Iterable[str], built: Iterable[str]) -> None:
        """Note the names that only one side has."""
        theirs, ours = set(saved), set(built)
        self.missing += sorted(ours - theirs)
        self.unexpected += sorted(theirs - ours)

    def is_alike(self, name: str, spec: TensorSpec, tensor: torch.Tensor) -> bool:
        """Whether a tensor can take what was saved; noted if not."""
        if fits(spec, tensor):
            return True
        self.mismatched.append(
            f"{name} (saved {spec.dtype}{list(spec.global_shape)}, "
            f"built {dtype_name(tensor)}{list(tensor.shape)})"
        )
        return False

    def report(
        self, step: int, num_restored: int, randomness: Literal["exact", "derived"]
    ) -> RestoreReport:
        return RestoreReport(
            step,
            num_restored,
            tuple(self.missing),
            tuple(self.unexpected),
            tuple(self.mismatched),
            randomness,
        )


def fits(spec: TensorSpec, value: object) -> bool:
    """Whether a value is a tensor of the saved dtype and global shape."""
    return (
        isinstance(value, torch.Tensor)
        and dtype_name(value) == spec.dtype
        and tuple(value.shape) == tuple(spec.global_shape)
    )


class Wanted(NamedTuple):
    """A stored tensor and the one that takes its values, whole or this rank's part of it."""

    name: str
    target: torch.Tensor


class _Read(NamedTuple):
    request: BoxRequest
    place: torch.Tensor
    buffer: npt.NDArray[np.uint8]
    is_direct: bool


def read_into(checkpoint: Checkpoint, wanted: Sequence[Wanted], *, rank: int) -> None:
    """Fill tensors in place with this rank's boxes of them, in one plan.

    Host memory is written directly, so that nothing is held twice; after an error the targets
    hold neither the old nor the new state.

    Raises:
        Corrupt, NotFound, Unavailable: As the checkpoint's reader reported.
    """
    reads = [
        _read(name, target, box)
        for name, target in wanted
        for box in (
            boxes_of_rank(layout_of(target, 1), rank)
            if is_sharded(target)
            else [whole_box(tuple(target.shape))]
        )
        if box.region.num_elements
    ]
    arrays = checkpoint.read_many([r.request for r in reads], out=[r.buffer for r in reads])
    with torch.no_grad():
        for read, array in zip(reads, arrays, strict=True):
            if not read.is_direct:
                read.place.copy_(to_torch(array, dtype_name(read.place)))


def read_new(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Whole tensors in new host memory."""
    specs = [checkpoint.spec(name) for name in names]
    made = {s.name: torch.empty(s.global_shape, dtype=getattr(torch, s.dtype)) for s in specs}
    read_into(checkpoint, [Wanted(name, tensor) for name, tensor in made.items()], rank=0)
    return made


def like_state(
    key: str, spec: TensorSpec, param: torch.Tensor, group: Mapping[str, object]
) -> torch.Tensor:
    """A tensor for an optimizer's state as the optimizer itself would have made it.

    One of the parameter's shape lies as the parameter does; step counters stay on the host unless
    the optimizer's kernels count them; others are made as ``grad.new_zeros`` makes them.
    """
    dtype: torch.dtype = getattr(torch, spec.dtype)
    shape = tuple(spec.global_shape)
    if key in _COUNTERS and not shape:
        return torch.zeros((), dtype=dtype, device=_counter_device(param, group))
    if shape == tuple(param.shape):
        return torch.zeros_like(param.detach(), dtype=dtype)
    return param.detach().new_zeros(shape, dtype=dtype)


def lies_elsewhere(
    key: str, value: torch.Tensor, param: torch.Tensor, group: Mapping[str, object]
) -> bool:
    """Whether a step counter is not where the optimizer with these settings expects it."""
    is_counter = key in _COUNTERS and value.dim() == 0
    return is_counter and value.device != _counter_device(param, group)


def _counter_device(param: torch.Tensor, group: Mapping[str, object]) -> torch.device:
    is_on_device = group.get("fused") or group.get("capturable")
    return param.device if is_on_device else torch.device("cpu")


def _read(name: str, target: torch.Tensor, box: LocalBox) -> _Read:
    place = local_of(target).detach()[box.slices]
    is_direct = place.device.type == "cpu" and place.is_contiguous()
    buffer = (
        place.reshape(-1).view(torch.uint8).numpy()
        if is_direct
        else np.empty(place.nbytes, dtype=np.uint8)
    )
    return _Read(BoxRequest(name, box.region.offset, box.region.shape), place, buffer, is_direct)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
