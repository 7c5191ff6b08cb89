"""A run out of a Lightning ``Trainer``: one callback more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.callbacks.frameworks import bare, load
from cloudshift_lab.training.callbacks.resuming import Randomness
from cloudshift_lab.training.callbacks.timing import loss_of
from cloudshift_lab.training.cursor import Cursor
from cloudshift_lab.training.session import Session
from cloudshift_lab.training.state import Stateful

_lightning = load("lightning.pytorch", "lightning")


class CursorBatches:
    """A batch sampler that deals from where its cursor is, whenever a loader begins anew.

    Args:
        cursor: Of the data set.
        global_batch: Samples of all ranks together in one batch.
    """

    def __init__(self, cursor: Cursor, global_batch: int) -> None:
        self.cursor = cursor
        self.global_batch = global_batch

    def __iter__(self) -> Iterator[list[int]]:
        return self.cursor.batches(self.global_batch)

    def advance(self, num_batches: int) -> None:
        """So many batches were trained on."""
        self.cursor.advance(num_batches * self.global_batch)


class CloudshiftCallback(_lightning.Callback):  # type: ignore[misc, name-defined]
    """Makes the steps of a Trainer steps of a run that is saved, moved and resumed exactly. ::

        cursor = Cursor(len(dataset), rank=rank, world_size=world_size)
        batches = CursorBatches(cursor, 64)
        loader = DataLoader(dataset, batch_sampler=batches)
        run = CloudshiftCallback(batches)
        Trainer(max_steps=1000, callbacks=[run], use_distributed_sampler=False).fit(module, loader)

    Optimizers and schedulers of the Trainer are saved with the module. Lightning cannot begin in
    the middle of an epoch, a ``Cursor`` can: with another loader a resumed run begins an epoch.
    The parts of a step are timed.

    Args:
        batches: What the data loader deals by; saved with the state.
        warm_up: As of ``Session``.
        extra: As of ``Session``.
        strict: As of ``Session``.

    ``session`` is there once training has begun.
    """

    def __init__(
        self,
        batches: CursorBatches | None = None,
        *,
        warm_up: Callable[[], torch.Tensor] | None = None,
        extra: Mapping[str, Stateful] | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        self._warm_up = warm_up
        dealt = {} if batches is None else {"cursor": batches.cursor}
        self._extra: dict[str, Stateful] = {**dealt, **(extra or {})}
        self._batches = batches
        self._strict = strict
        self.session: Session | None = None
        self._randomness: Randomness | None = None
        self._steps: Iterator[int] = iter(())
        self._is_open = False
        self._total = self._num_done = self._num_seen = 0

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """Wait until the attempt may train and put the saved state back.

        Raises:
            UsageError: As ``Session``; or nobody said how long the run is.
        """
        self._total = _num_steps(trainer)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        named = {f"lr_scheduler-{number}": each for number, each in enumerate(schedulers)}
        optimizers = [bare(optimizer) for optimizer in trainer.optimizers]
        self.session = Session(
            model=trainer.model, optimizer=optimizers[0] if len(optimizers) == 1 else optimizers,
            warm_up=self._warm_up, extra={**named, **self._extra}, strict=self._strict,
        )  # fmt: skip
        if self.session.start_step:
            self._randomness = Randomness()
            iter(trainer.fit_loop._data_fetcher)  # what it has fetched is from the beginning
        _count_from(trainer, self.session.start_step)
        self._num_seen = trainer.global_step
        self._num_done = self.session.start_step
        self._steps = self.session.steps(self._total)
        self._end_if_done(trainer)
        self._phase("data")

    def on_train_batch_start(self, *_event: Any) -> int | None:
        """A batch is there."""
        if not self._is_open and next(self._steps, None) is None:
            return -1
        self._is_open = True
        if self._randomness is not None:
            self._randomness.put_back()
            self._randomness = None
        self._phase("forward")
        return None

    def on_before_backward(self, *_event: Any) -> None:
        """Forward is over."""
        self._phase("backward")

    def on_before_optimizer_step(self, *_event: Any) -> None:
        """The gradients are there."""
        self._phase("optimizer")

    def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, *_batch: Any) -> None:
        """The state is whole if an optimizer has stepped: it may be saved.

        Raises:
            Drained: The run goes on elsewhere; the process ends with code 0.
        """
        assert self.session is not None, "training has begun"
        if trainer.global_step > self._num_seen:
            self._num_seen = trainer.global_step
            if self._batches is not None:
                self._batches.advance(trainer.accumulate_grad_batches)
            self._is_open = False
            self._num_done += 1
            self.session.step(loss=loss_of(outputs))
            self._end_if_done(trainer)
        self._phase("data")

    def on_validation_start(self, *_event: Any) -> None:
        """What comes is not training."""
        self._phase("evaluate")

    def on_validation_end(self, *_event: Any) -> None:
        """Training goes on."""
        self._phase("data")

    def on_train_end(self, *_event: Any) -> None:
        """The loop is over, perhaps early."""
        self._phase(None)
        self._steps.close()  # type: ignore[attr-defined]

    def _end_if_done(self, trainer: Any) -> None:
        if self._num_done >= self._total:
            next(self._steps, None)
            trainer.should_stop = True

    def _phase(self, name: str | None) -> None:
        if self.session is not None:
            self.session.sections.phase(name)


def _num_steps(trainer: Any) -> int:
    """Optimizer steps of the whole run."""
    total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    if not math.isfinite(total):
        raise UsageError("nobody said how many steps the run has; give the Trainer max_steps")
    return int(total)


def _count_from(trainer: Any, step: int) -> None:
    """Let the Trainer's own count of optimizer steps go on after ``step``."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    loop.manual_optimization.optim_step_progress.total.completed = step
