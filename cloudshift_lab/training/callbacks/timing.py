"""The parts of a step of somebody else's loop: data, forward, backward, optimizer, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cloudshift_lab.training.sections import Sections

_WEIGHED = "num_items_in_batch"


class Timing:
    """Hooks of a model and its optimizer that name what a step is doing, and keep its loss.

    ``data`` begins when a step has ended, ``forward`` and ``backward`` with the model's call and
    its end, ``optimizer`` with the optimizer's step. Calls in evaluation mode are ``evaluate``.

    Args:
        sections: Where the times go.
        model: Called once per batch.
        optimizer: Stepped once per step.
    """

    def __init__(
        self, sections: Sections, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self._sections = sections
        self._losses: list[torch.Tensor] = []
        self._is_weighed = False
        self._num_tokens = 0
        self._handles = (
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def begin(self) -> None:
        """A step begins: what it had of a loss is forgotten."""
        self._losses.clear()
        self._num_tokens = 0
        self._sections.phase("data")

    def loss(self) -> torch.Tensor | None:
        """The step's loss, of the batches it gathered gradients of; None: the model tells none."""
        if not self._losses:
            return None
        together = torch.stack(self._losses)
        return together.sum() if self._is_weighed else together.mean()

    @property
    def tokens(self) -> int | None:
        """``input_ids`` of the step; None where batches have none."""
        return self._num_tokens or None

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._sections.phase(None)

    def _begin(self, model: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not model.training:
            self._sections.phase("evaluate")
            return
        ids = kwargs.get("input_ids")
        if isinstance(ids, torch.Tensor):
            self._num_tokens += ids.numel()
        self._sections.phase("forward")

    def _end(
        self, model: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object
    ) -> None:
        if not model.training:
            return
        loss = loss_of(output)
        if loss is not None:
            self._losses.append(loss)
            self._is_weighed = kwargs.get(_WEIGHED) is not None
        self._sections.phase("backward")

    def _before(self, *_step: object) -> None:
        self._sections.phase("optimizer")

    def _after(self, *_step: object) -> None:
        self._sections.phase(None)


def loss_of(output: object) -> torch.Tensor | None:
    """The loss in what a model or a training step returned, without its graph."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, tuple) and output:
        output = output[0]
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "loss", None)
    if isinstance(output, torch.Tensor) and output.numel() == 1:
        return output.detach().reshape(())
    return None
