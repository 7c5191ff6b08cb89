"""A run out of a Hugging Face ``Trainer``: one callback more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cloudshift_lab.training.callbacks.frameworks import bare, load
from cloudshift_lab.training.callbacks.resuming import Resumption
from cloudshift_lab.training.callbacks.timing import Timing
from cloudshift_lab.training.session import Session
from cloudshift_lab.training.state import Stateful

_transformers = load("transformers", "huggingface")


class CloudshiftCallback(_transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Makes the steps of a Trainer steps of a run that is saved, moved and resumed exactly. ::

        trainer = Trainer(..., callbacks=[CloudshiftCallback()])
        trainer.train()

    Model, optimizer and scheduler of the Trainer are saved; its data loader goes on where the saved
    step was (exactly, if the batches of an epoch make whole steps). The parts of a step are timed.
    The Trainer's own checkpoints are not needed.

    Args:
        warm_up: One forward pass to a scalar loss through ``trainer.model_wrapped``; needed for
            bitwise equal resumes on several ranks (see ``Session``).
        extra: Further objects with ``state_dict``/``load_state_dict``.
        strict: As of ``Session``.

    ``session`` is there once training has begun.
    """

    def __init__(
        self,
        *,
        warm_up: Callable[[], torch.Tensor] | None = None,
        extra: Mapping[str, Stateful] | None = None,
        strict: bool = True,
    ) -> None:
        self._warm_up = warm_up
        self._extra = dict(extra or {})
        self._strict = strict
        self.session: Session | None = None
        self._steps: Iterator[int] = iter(())

    def on_train_begin(
        self, args: Any, state: Any, _control: Any, *, model: Any, optimizer: Any,
        lr_scheduler: Any, train_dataloader: Any, **_rest: Any,
    ) -> None:  # fmt: skip
        """Wait until the attempt may train, put the saved state back, find the place in the data.

        Raises:
            UsageError: As ``Session`` and ``Resumption``.
        """
        self.session = Session(
            model=model, optimizer=bare(optimizer), warm_up=self._warm_up,
            extra={"lr_scheduler": lr_scheduler, **self._extra}, strict=self._strict,
        )  # fmt: skip
        state.global_step = self.session.start_step
        self._resumption = Resumption(
            train_dataloader, start_step=self.session.start_step, total=state.max_steps,
            accumulate=args.gradient_accumulation_steps,
        )  # fmt: skip
        if self._resumption.is_ragged and self.session.start_step:
            print(
                "cloudshift: the batches of an epoch do not make whole steps, which a Trainer that "
                "goes on within an epoch cuts anew; choose gradient_accumulation_steps that "
                "divide them for an exact resume",
                file=sys.stderr,
            )
        self._timing = Timing(self.session.sections, model, bare(optimizer))
        self._steps = self.session.steps(state.max_steps)

    def on_epoch_begin(self, *_event: Any, **_rest: Any) -> None:
        """Lead the loader into the epoch."""
        self._resumption.begin_epoch()
        self._timing.begin()

    def on_step_begin(self, *_event: Any, **_rest: Any) -> None:
        """The step's first batch is there."""
        self._resumption.begin_step()
        next(self._steps)

    def on_step_end(self, _args: Any, state: Any, *_event: Any, **_rest: Any) -> None:
        """The state is whole: it may be saved.

        Raises:
            Drained: The run goes on elsewhere; the process ends with code 0.
        """
        assert self.session is not None, "training has begun"
        self.session.step(loss=self._timing.loss(), tokens=self._timing.tokens)
        self._timing.begin()
        if state.global_step >= state.max_steps:
            next(self._steps, None)  # before the best model takes the last one's place

    def on_train_end(self, _args: Any, state: Any, *_event: Any, **_rest: Any) -> None:
        """The loop is over, perhaps early."""
        self._timing.close()
        if state.global_step >= state.max_steps:
            next(self._steps, None)
        else:
            self._steps.close()  # type: ignore[attr-defined]
