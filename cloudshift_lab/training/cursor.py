"""Where a run is in its data, counted for all ranks together, so that any world size goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cloudshift_lab.core.errors import UsageError

_VERSION = 1
_SEED_STRIDE = 1_000_003
_KEPT_ORDERS = 2


class Cursor:
    """Deals every sample of an epoch exactly once, whatever world sizes share the epoch.

    The epochs' orders, each a permutation that follows from seed and epoch, make one endless row;
    the cursor is the number of samples that all ranks together have taken of it. The next global
    batch is the next piece of the row, cut evenly between the ranks, so that the same batch is
    trained on at every world size and no batch is ragged: one that reaches the end of an epoch
    goes on in the next. ::

        cursor = Cursor(len(dataset), seed=0, rank=rank, world_size=world_size)
        session = Session(..., extra={"cursor": cursor})
        for step in session.steps(total):
            batch = collate([dataset[i] for i in cursor.take(GLOBAL_BATCH)])

    With a ``DataLoader`` pass ``batch_sampler=cursor.batches(GLOBAL_BATCH)`` and call
    ``cursor.advance(GLOBAL_BATCH)`` once per step: workers fetch ahead, and only what was trained
    on counts.

    Args:
        num_samples: Length of the data set; two permutations of it are held in memory.
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
        self.consumed = 0
        self._orders: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def epoch(self) -> int:
        """The epoch that the next sample belongs to, from 0."""
        return self.consumed // self.num_samples

    def take(self, global_batch: int) -> list[int]:
        """This rank's samples of the next global batch; every rank must call it.

        Ranks get equally many, or one more or less if their number does not divide the batch.

        Args:
            global_batch: Samples of all ranks together, at least one per rank.

        Raises:
            UsageError: A rank would get no sample.
        """
        mine = self._slice(self.consumed, global_batch)
        self.advance(global_batch)
        return mine

    def batches(self, global_batch: int) -> Iterator[list[int]]:
        """This rank's batches from here on, without end; takes nothing by itself."""
        start = self.consumed
        while True:
            yield self._slice(start, global_batch)
            start += global_batch

    def advance(self, global_batch: int) -> None:
        """One global batch was trained on."""
        self.consumed += global_batch

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank and for every world size."""
        return {
            "version": _VERSION,
            "consumed": self.consumed,
            "epoch": self.epoch,
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
                "cursor out of the extras to begin anew"
            )
        self.consumed = int(state_dict["consumed"])
        self.seed = int(state_dict["seed"])
        self.shuffle = bool(state_dict["shuffle"])

    def _slice(self, start: int, global_batch: int) -> list[int]:
        """What this rank gets of the row's samples ``start`` to ``start + global_batch``."""
        if global_batch < self.world_size:
            raise UsageError(
                f"a global batch of {global_batch} leaves some of {self.world_size} ranks without "
                "a sample; pass at least one per rank"
            )
        size, larger = divmod(global_batch, self.world_size)
        first = start + self.rank * size + min(self.rank, larger)
        return self._row(first, first + size + (self.rank < larger))

    def _row(self, first: int, last: int) -> list[int]:
        """Samples at these places of the endless row."""
        samples: list[int] = []
        while first < last:
            epoch, inside = divmod(first, self.num_samples)
            count = min(last - first, self.num_samples - inside)
            samples += self._epoch(epoch, inside, inside + count)
            first += count
        return samples

    def _epoch(self, epoch: int, first: int, last: int) -> list[int]:
        if not self.shuffle:
            return list(range(first, last))
        samples: list[int] = self._order(epoch)[first:last].tolist()
        return samples

    def _order(self, epoch: int) -> torch.Tensor:
        """The epoch's order, drawn once; the one before it is kept, for who is still there."""
        found = self._orders.get((self.seed, epoch))
        if found is None:
            draw = torch.Generator().manual_seed((self.seed * _SEED_STRIDE + epoch) % 2**63)
            found = torch.randperm(self.num_samples, generator=draw)
            kept = list(self._orders.items())[1 - _KEPT_ORDERS :]
            self._orders = {**dict(kept), (self.seed, epoch): found}
        return found
