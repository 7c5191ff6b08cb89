"""What a training state consists of: sharing it out for a capture, putting it back on restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, cast

import msgspec
import torch
from torch import nn

from cloudshift_lab.checkpoint.leaves import decode_leaves, encode_leaves
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.training import randomness
from cloudshift_lab.training.inventory import (
    Leaves,
    ModelTensors,
    Optimizers,
    OptimizerTensors,
    unwrap,
)
from cloudshift_lab.training.matching import ModelRestore, OptimizerRestore, SavedState
from cloudshift_lab.training.own import Owned
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.plan import SharePlan, whole_part
from cloudshift_lab.training.restore import Differences, RestoreReport, read_into, read_new
from cloudshift_lab.training.sharding import is_sharded
from cloudshift_lab.training.tree import pull_tensors

LAYOUT = 2
_NO_EXTRAS = encode_leaves({})
__all__ = ["RestoreReport", "Stateful", "TrainingState", "unwrap"]


class Stateful(Protocol):
    """A scheduler, sampler, scaler or anything else that keeps state between steps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class TrainingState:
    """The model, the optimizer and the extras of one rank, by name.

    Args:
        model: May be wrapped in DistributedDataParallel, sharded or compiled; the names are the
            inner ones.
        optimizer: Over parameters of the model (others are named by their place); or several, in
            a sequence or by name.
        extra: Further objects with ``state_dict`` and ``load_state_dict``.
        rank: Of this process.
        world_size: Ranks of the job.

    Raises:
        UsageError: A parameter belongs to two optimizers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        extra: Mapping[str, Stateful],
        *,
        rank: int,
        world_size: int,
    ) -> None:
        self._extra = dict(extra)
        self._rank = rank
        self._world_size = world_size
        self._model = ModelTensors(model)
        self._optimizer = OptimizerTensors(optimizer, self._model)
        self._plan: SharePlan | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole state, of all ranks together."""
        own: dict[str, torch.Tensor] = {}
        self._own_leaves(own)
        return self._current_plan().num_bytes + self._world_size * sum(
            tensor.nbytes for tensor in own.values()
        )

    def share(self, step: int) -> Share:
        """This rank's share of the state after ``step``, by reference.

        Which parts these are is worked out again only when other tensors take the place of those
        found before; every rank comes to the same answer without asking another. Nothing in
        ``leaves`` changes later.

        Raises:
            UsageError: A parameter belongs to two optimizers.
            Unsupported: A tensor whose parts are not boxes, or a sharded one among the extras.
        """
        plan = self._current_plan()
        own: dict[str, torch.Tensor] = {}
        leaves = {**self._common_leaves(step), **self._own_leaves(own)}
        volatile = plan.volatile(self._volatile())
        mine = tuple(whole_part(name, tensor) for name, tensor in own.items())
        return Share(plan.steady, (*volatile, *mine), leaves, plan.catalog)

    def _current_plan(self) -> SharePlan:
        """The plan, made again if it is no longer of these tensors."""
        is_renamed = self._model.refresh()
        is_changed = self._optimizer.refresh(is_renamed=is_renamed) or is_renamed
        if self._plan is None or is_changed or not self._plan.fits(self._volatile()):
            self._plan = SharePlan(
                self._steady(), self._volatile(), rank=self._rank, world_size=self._world_size
            )
        return self._plan

    def _steady(self) -> dict[str, torch.Tensor]:
        return {**self._model.steady, **self._optimizer.steady}

    def _volatile(self) -> dict[str, torch.Tensor]:
        return {**self._model.volatile, **self._optimizer.volatile}

    # -- for a rescue -----------------------------------------------------------------------------

    def extras(self) -> bytes:
        """This rank's extras as JSON.

        Raises:
            UsageError: A leaf that a checkpoint cannot hold.
            Unsupported: An extra has tensors, of which only captures take a copy.
        """
        if not self._extra:
            return _NO_EXTRAS
        tensors: dict[str, torch.Tensor] = {}
        states = {name: part.state_dict() for name, part in self._extra.items()}
        leaves = pull_tensors(states, "extra", tensors)
        if tensors:
            raise Unsupported("an extra has tensors")
        return encode_leaves(leaves)

    def buffers(self) -> dict[str, torch.Tensor]:
        """What may change at any moment, by name."""
        return self._volatile()

    def steady_tensors(self) -> dict[str, torch.Tensor]:
        """What only an optimizer's step changes, by name."""
        self._current_plan()
        return self._steady()

    def share_of(
        self, step: int, rank: int, own: Owned, buffers: Mapping[str, torch.Tensor]
    ) -> Share:
        """A rank's share of the state after ``step``; what it alone has is given.

        Args:
            step: Optimizer step.
            rank: Whose share; this rank must hold its part of every tensor.
            own: What that rank alone has.
            buffers: As ``buffers`` were after that step.
        """
        self._current_plan()
        plan = SharePlan(self._steady(), buffers, rank=rank, world_size=self._world_size)
        leaves = {
            **self._common_leaves(step),
            "extra": decode_leaves(msgspec.Raw(own.extras)),
            "rng": own.rng,
        }
        mine = tuple(whole_part(name, tensor) for name, tensor in own.tensors.items())
        return Share(plan.steady, (*plan.volatile(buffers), *mine), leaves, plan.catalog)

    def _common_leaves(self, step: int) -> Leaves:
        return {
            "layout": LAYOUT,
            "step": step,
            "world_size": self._world_size,
            "model": self._model.leaves,
            "optimizer": self._optimizer.leaves,
        }

    def _own_leaves(self, own: dict[str, torch.Tensor]) -> Leaves:
        """What this rank alone has: extras and randomness; their tensors go into ``own``."""
        states = {name: part.state_dict() for name, part in self._extra.items()}
        extra = pull_tensors(states, f"extra/{self._rank}", own)
        for name, tensor in own.items():
            if is_sharded(tensor):
                raise Unsupported(
                    f"'{name}' is a sharded tensor, and extras belong to one rank each; make it a "
                    "parameter or buffer of the model that the session gets"
                )
        return {"extra": extra, "rng": randomness.gather(f"rng/{self._rank}", own)}

    # -- restore ----------------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint, *, strict: bool = True) -> RestoreReport:
        """Put a committed state back, in place, so that what refers to the tensors stays valid.

        Each rank reads the boxes that it needs, whatever the world size and mesh that saved.

        Args:
            checkpoint: An open step.
            strict: Refuse a checkpoint that does not fit, before anything is changed; else what
                does not fit keeps the values that the script built.

        Raises:
            UsageError: The script builds another model or optimizer than the one that was saved.
            Corrupt, NotFound, Unavailable: As the checkpoint's reader reported; the state is then
                neither the old nor the new one, and must be restored again.
        """
        self._current_plan()
        saved = SavedState(checkpoint, rank=self._rank, world_size=self._world_size)
        differences = Differences()
        model = ModelRestore(self._model, saved, differences)
        optimizer = OptimizerRestore(self._optimizer, saved, differences, model.odd)
        extras: Leaves = saved.leaves["extra"]
        differences.compare([f"extra/{n}" for n in extras], [f"extra/{n}" for n in self._extra])
        if strict:
            differences.report(saved.step, 0, "exact").check()
        wanted = [*model.wanted, *optimizer.prepare()]
        read_into(checkpoint, wanted, rank=self._rank)
        model.finish()
        optimizer.finish()
        for name in extras.keys() & self._extra.keys():
            self._extra[name].load_state_dict(cast(Leaves, saved.whole(extras[name])))
        return differences.report(saved.step, len(wanted), self._restore_randomness(saved))

    def _restore_randomness(self, saved: SavedState) -> Literal["exact", "derived"]:
        leaves: Leaves = saved.leaves["rng"]
        if not saved.is_same_world:
            randomness.derive(leaves, step=saved.step, rank=self._rank, world_size=self._world_size)
            return "derived"
        place = f"rng/{self._rank}"
        names = [name for name in saved.names if f"{name}/".startswith(f"{place}/")]
        randomness.put_back(leaves, read_new(saved.checkpoint, names), place)
        return "exact"
