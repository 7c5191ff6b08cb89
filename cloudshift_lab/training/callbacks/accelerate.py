"""A run out of a loop of one's own on Hugging Face Accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.callbacks.frameworks import bare, load
from cloudshift_lab.training.callbacks.resuming import Resumption
from cloudshift_lab.training.callbacks.timing import Timing
from cloudshift_lab.training.session import Session
from cloudshift_lab.training.state import Stateful

load("accelerate", "accelerate")


class AcceleratedSession(Session):
    """A session whose data and steps follow an ``Accelerator``. ::

        model, optimizer, loader, scheduler = accelerator.prepare(...)
        session = AcceleratedSession(
            accelerator, model=model, optimizer=optimizer, scheduler=scheduler
        )
        for batch in session.batches(loader, total_steps):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step(); scheduler.step(); optimizer.zero_grad()
            session.end_batch(loss)

    Saved are model, optimizer, scheduler, the gradient scaler if there is one, and what else is
    given. The parts of a step are timed.

    Args:
        accelerator: The script's.
        model: As prepared.
        optimizer: As prepared.
        scheduler: As prepared.
        warm_up: As of ``Session``.
        extra: As of ``Session``.
        strict: As of ``Session``.
    """

    def __init__(
        self,
        accelerator: Any,
        *,
        model: torch.nn.Module,
        optimizer: Any,
        scheduler: Stateful | None = None,
        warm_up: Callable[[], torch.Tensor] | None = None,
        extra: Mapping[str, Stateful] | None = None,
        strict: bool = True,
    ) -> None:
        known = {"lr_scheduler": scheduler, "scaler": accelerator.scaler}
        saved = {name: part for name, part in known.items() if part is not None}
        super().__init__(
            model=model, optimizer=bare(optimizer), warm_up=warm_up,
            extra={**saved, **(extra or {})}, strict=strict,
        )  # fmt: skip
        self._accelerator = accelerator
        self._timing = Timing(self.sections, model, bare(optimizer))
        self._is_open = False

    def batches(self, loader: Any, total: int) -> Iterator[Any]:
        """Batches of epoch after epoch, from where the restored step was, until the run is done.

        Args:
            loader: As prepared, with a sampler whose order can be repeated.
            total: Optimizer steps of the whole run, counted from its very beginning.

        Raises:
            UsageError: The loader cannot repeat its order, or has no batch.
        """
        place = Resumption(
            loader, start_step=self.start_step, total=total,
            accumulate=self._accelerator.gradient_accumulation_steps,
        )  # fmt: skip
        steps = self.steps(total)
        step = next(steps, None)
        while step is not None:
            place.begin_epoch()
            self._timing.begin()
            is_empty = True
            for batch in loader:
                is_empty = False
                place.begin_step()
                self._is_open = True
                yield batch
                if not self._is_open:
                    step = next(steps, None)
                    if step is None:
                        return
            if is_empty:
                raise UsageError("the data loader gives no batch; give it data")

    def end_batch(self, loss: torch.Tensor | None = None, *, tokens: int | None = None) -> None:
        """A batch was trained on; with the one that ends an optimizer step the state is whole.

        Args:
            loss: Of this rank's batch; left out, it is what the model returned, over the batches
                of the step.
            tokens: Of this rank, of the step; left out, the step's ``input_ids`` are counted.

        Raises:
            Drained: The run is to move or to stop; let it pass, it ends the process with code 0.
        """
        if not self._accelerator.sync_gradients:
            return
        self._is_open = False
        self.step(
            loss=self._timing.loss() if loss is None else loss,
            tokens=self._timing.tokens if tokens is None else tokens,
        )
        self._timing.begin()
