"""Where a framework's data loader has to go on after a restore, and with which randomness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training import randomness

_PLACE = "rng"
_EVERYTHING = 2**62


class Randomness:
    """All generators as they are now, to be put back once."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._leaves: dict[str, Any] | None = randomness.gather(_PLACE, self._tensors)

    def put_back(self) -> None:
        """Undo what was drawn since; the second time nothing."""
        if self._leaves is not None:
            randomness.put_back(self._leaves, self._tensors, _PLACE)
            self._leaves = None


class Resumption:
    """Leads a loader of Accelerate through the epochs of a run that goes on after some step.

    What was trained on is read again and dropped. The generators are as they were saved when the
    first batch that counts is trained on. ``is_ragged``: the last step of an epoch has fewer
    batches than the others.

    Args:
        loader: As ``accelerator.prepare`` returns it.
        start_step: Steps that are done.
        total: Steps of the whole run.
        accumulate: Batches per step.

    Raises:
        UsageError: The loader cannot repeat the order of its epochs.
    """

    def __init__(self, loader: Any, *, start_step: int, total: int, accumulate: int) -> None:
        self._loader = loader
        self._randomness = Randomness()
        self._is_resumed = start_step > 0
        per_epoch = _num_batches(loader)
        steps_per_epoch = total if per_epoch is None else max(-(-per_epoch // accumulate), 1)
        self.is_ragged = per_epoch is not None and per_epoch % accumulate != 0
        epoch, num_steps = divmod(start_step, max(steps_per_epoch, 1))
        self._num_skipped = _EVERYTHING if start_step >= total else num_steps * accumulate
        if self._is_resumed:
            _check(loader)
            loader.set_sampler(_Later(loader.get_sampler(), epoch))

    def begin_epoch(self) -> None:
        """An epoch begins: the loader will leave out those batches that were trained on."""
        if self._is_resumed:
            self._loader.skip_batches = self._num_skipped
            if self._num_skipped == 0:
                self._randomness.put_back()
            self._num_skipped = 0

    def begin_step(self) -> None:
        """A batch was read and is trained on now."""
        if self._is_resumed:
            self._randomness.put_back()


class _Later(Sampler[Any]):
    """A sampler whose epochs are so many later than it is told.

    Whoever runs the loop counts the epochs of this process; those of the run are meant.
    """

    def __init__(self, sampler: Any, num_epochs: int) -> None:
        self._sampler = sampler
        self._num_epochs = num_epochs
        self.set_epoch(0)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """The process's epoch, from 0."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch + self._num_epochs)


def _num_batches(loader: Any) -> int | None:
    """Of an epoch; None where the loader does not know."""
    try:
        return len(loader)
    except TypeError:
        return None


def _check(loader: Any) -> None:
    """Only a loader that can be led goes on exactly."""
    if not (hasattr(loader, "set_sampler") and hasattr(loader, "skip_batches")):
        raise UsageError(
            f"a {type(loader).__name__} cannot go on in the middle; "
            "let accelerator.prepare make the data loader"
        )
    if type(loader.get_sampler()) is RandomSampler:
        raise UsageError(
            "the order of this data loader cannot be repeated; make the accelerator with "
            "DataLoaderConfiguration(use_seedable_sampler=True)"
        )
