"""Where a run is in its data, counted for all ranks together, so that any world size goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from cloudshift_lab.core.errors import UsageError

_VERSION = 1
_SEED_STRIDE = 1_000_003


class Cursor(Sampler[list[int]]):
    """Deals every sample of an epoch exactly once, whatever world sizes share the epoch.

    It holds no order and no place of one rank, only the epoch, the seed and how many samples all
    ranks together have consumed. Each epoch's order follows from seed and epoch; a rank takes its
    slice of the next global batch. ::

        cursor = Cursor(len(dataset), seed=0, rank=rank, world_size=world_size)
        session = Session(..., extra={"cursor": cursor})
        for step in session.steps(total):
            batch = collate([dataset[i] for i in cursor.take(GLOBAL_BATCH)])

    With a ``DataLoader`` pass ``batch_sampler=cursor.batches(GLOBAL_BATCH)`` and call
    ``cursor.advance(GLOBAL_BATCH)`` once per step: workers fetch ahead, and only what was trained
    on counts as consumed.

    Args:
        num_samples: Length of the data set.
        seed: Of the order; the same on every rank.
        rank: Of this process.
        world_size: Ranks of the job now.
        shuffle: False keeps the data set's own order.

    Raises:
        UsageError: No sample, or a rank that is not one of the world's.
    """

    def __init__(
        self, num_samples: int, *, seed: int = 0, rank: int = 0, world_size: int = 1,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        if num_samples < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"a cursor over {num_samples} samples for rank {rank} of {world_size} deals "
                "nothing; pass at least one sample and 0 <= rank < world size"
            )
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self.consumed = 0
        self._order: tuple[int, int, torch.Tensor] | None = None

    def take(self, global_batch: int) -> list[int]:
        """This rank's samples of the next global batch; every rank must call it.

        The last batch of an epoch is smaller when ``global_batch`` does not divide it, so a rank
        may get fewer samples, or none.

        Args:
            global_batch: Samples of all ranks together, >= 1.
        """
        mine = self._slice(self.epoch, self.consumed, global_batch)
        self.advance(global_batch)
        return mine

    def batches(self, global_batch: int) -> Iterator[list[int]]:
        """This rank's batches from here to the end of the epoch; consumes nothing by itself."""
        for start in range(self.consumed, self.num_samples, self._checked(global_batch)):
            yield self._slice(self.epoch, start, global_batch)

    def advance(self, global_batch: int) -> None:
        """One global batch was trained on; after the last one the next epoch begins."""
        self.consumed += self._checked(global_batch)
        if self.consumed >= self.num_samples:
            self.epoch, self.consumed = self.epoch + 1, 0

    def __iter__(self) -> Iterator[list[int]]:
        """One sample per rank at a time, to the end of the epoch."""
        return self.batches(self.world_size)

    def __len__(self) -> int:
        return (self.num_samples - self.consumed + self.world_size - 1) // self.world_size

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank and for every world size."""
        return {
            "version": _VERSION,
            "epoch": self.epoch,
            "consumed": self.consumed,
            "seed": self.seed,
            "num_samples": self.num_samples,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another world size stopped; the saved seed and order are kept.

        Raises:
            UsageError: The data set has another length now, or the state is of another version.
        """
        if state_dict.get("version") != _VERSION:
            raise UsageError(
                f"a data cursor of version {state_dict.get('version')} is not known here; "
                "install the release that saved it"
            )
        if state_dict["num_samples"] != self.num_samples:
            raise UsageError(
                f"the saved run had {state_dict['num_samples']} samples and this data set has "
                f"{self.num_samples}, so the order cannot go on; use the same data, or leave the "
                "cursor out of the extras to start a new epoch"
            )
        self.epoch = int(state_dict["epoch"])
        self.consumed = int(state_dict["consumed"])
        self.seed = int(state_dict["seed"])
        self.shuffle = bool(state_dict["shuffle"])

    def _slice(self, epoch: int, start: int, global_batch: int) -> list[int]:
        """What this rank takes of samples ``start`` to ``start + global_batch`` of an epoch."""
        stop = min(start + self._checked(global_batch), self.num_samples)
        size, larger = divmod(stop - start, self.world_size)
        first = start + self.rank * size + min(self.rank, larger)
        last = first + size + (self.rank < larger)
        if not self.shuffle:
            return list(range(first, last))
        mine: list[int] = self._shuffled(epoch)[first:last].tolist()
        return mine

    def _shuffled(self, epoch: int) -> torch.Tensor:
        """The epoch's order, drawn once."""
        if self._order is None or self._order[:2] != (self.seed, epoch):
            draw = torch.Generator().manual_seed(self.seed * _SEED_STRIDE + epoch)
            order = torch.randperm(self.num_samples, generator=draw)
            self._order = (self.seed, epoch, order)
        return self._order[2]

    def _checked(self, global_batch: int) -> int:
        if global_batch < 1:
            raise UsageError(f"a global batch of {global_batch} samples; pass at least 1")
        return global_batch
