"""The rank's half of staging: one slot in shared memory, taken once and filled again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.core.errors import Conflict, Exhausted
from cloudshift_lab.core.staging import (
    NUM_SLOTS,
    StagedRank,
    replace_file,
    slot_file,
    staged_file,
)
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.training.copying import Copying
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.slot import Slot, explained

POLL_S = 0.05
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Opened:
    """A slot that is being filled with one step; nobody is told of it before ``announce``."""

    slot: Slot
    number: int
    staged: StagedRank
    steady: Copying
    volatile: Copying


class Arena:
    """Holds a step from its capture until it is committed.

    One slot is enough for that: a step is captured only when the one before is released. A second
    slot is made when a last step has to be captured earlier, and given back afterwards.

    Invariant: a slot that holds an announced step is written again only after its release.

    Args:
        node_dir: The agent's shared directory.
        rank: Of this process.
        world_size: Ranks of the job.
        released: Tells the newest step that needs no slot any more.
        say: Told what a long wait is for.
    """

    def __init__(
        self,
        node_dir: Path,
        rank: int,
        world_size: int,
        *,
        released: Callable[[], int] = lambda: -1,
        say: Callable[[str], None] = print,
    ) -> None:
        self._node_dir = node_dir
        self._rank = rank
        self._world_size = world_size
        self._released = released
        self._say = say
        self._slots = [Slot(slot_file(node_dir, rank, k)) for k in range(NUM_SLOTS)]
        self.staged_step: int | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an announced step is not released yet."""
        return any(not self._is_free(number) for number in range(NUM_SLOTS))

    def reserve(self, share: Share) -> None:
        """Take the memory for captures of this share now, so that the first finds it warm.

        Raises:
            Exhausted: The shared memory is full.
            UsageError: A leaf that a checkpoint cannot hold: better now than at the first save.
        """
        _encoded(share.leaves)
        if self._is_free(0):
            self._withdraw(0)
            self._slots[0].arrange(share.steady, share.volatile)

    def stage(self, step: int, share: Share, *, is_last: bool) -> None:
        """Copy a share now and announce it.

        Raises:
            Conflict, Exhausted, UsageError: As ``open``.
        """
        opened = self.open(step, share, is_last=is_last)
        fill(opened)
        self.announce(opened)

    def open(self, step: int, share: Share, *, is_last: bool) -> Opened:
        """A slot for this step, with the leaves as they are now.

        Args:
            step: Optimizer step after which the state is.
            share: This rank's share.
            is_last: No further step follows; then an older step that is not released is waited
                for when there is no memory for both.

        Raises:
            Conflict: The slot holds a step that is not released, and this is not the last one.
            Exhausted: The shared memory is full.
            UsageError: A leaf that a checkpoint cannot hold.
        """
        leaves = _encoded(share.leaves)
        number = self._choose(share, is_last=is_last)
        slot = self._slots[number]
        staged = StagedRank(
            step=step,
            is_last=is_last,
            rank=self._rank,
            world_size=self._world_size,
            slot_file=slot_file(self._node_dir, self._rank, number).name,
            boxes=slot.boxes,
            leaves=leaves,
            catalog=share.catalog,
        )
        return Opened(
            slot,
            number,
            staged,
            steady=slot.plan("steady", [part.tensor for part in share.steady]),
            volatile=slot.plan(
                "volatile", [part.tensor for part in share.volatile], first=len(share.steady)
            ),
        )

    def announce(self, opened: Opened) -> None:
        """Say that the opened slot is complete.

        Raises:
            Exhausted: The shared memory is full.
        """
        path = staged_file(self._node_dir, self._rank, opened.number)
        data = to_json(opened.staged)
        try:
            replace_file(path, data)
        except OSError as error:
            raise explained(error, path.parent, len(data)) from error
        opened.slot.step = self.staged_step = opened.staged.step

    def drop(self) -> None:
        """Forget what is staged: another rank lost its part, so that nobody can save it."""
        for number in range(NUM_SLOTS):
            self._withdraw(number)
        self.staged_step = None

    # -- slots ------------------------------------------------------------------------------------

    def _is_free(self, number: int) -> bool:
        step = self._slots[number].step
        return step is None or step <= self._released()

    def _withdraw(self, number: int) -> None:
        staged_file(self._node_dir, self._rank, number).unlink(missing_ok=True)
        self._slots[number].step = None

    def _choose(self, share: Share, *, is_last: bool) -> int:
        """The number of a free slot with places for this share."""
        if self._is_free(0):
            if self._is_free(1):
                self._withdraw(1)
                self._slots[1].give_back()
            return self._take(0, share)
        if not is_last:
            raise Conflict(f"step {self._slots[0].step} is not saved yet; capture again when it is")
        if self._is_free(1):
            try:
                return self._take(1, share)
            except Exhausted as error:
                self._say(f"{error.message}; meanwhile waiting for the save before")
        return self._take(self._wait_for_release(), share)

    def _take(self, number: int, share: Share) -> int:
        self._withdraw(number)
        self._slots[number].arrange(share.steady, share.volatile)
        return number

    def _wait_for_release(self) -> int:
        """The first slot to become free; for as long as it takes, since the state is the last."""
        began = told = time.monotonic()
        while True:
            for number in range(NUM_SLOTS):
                if self._slots[number].boxes and self._is_free(number):
                    return number
            now = time.monotonic()
            if now - told >= SAY_EVERY_S:
                told = now
                self._say(
                    f"waiting since {now - began:.0f} s for step {self.staged_step} to be saved, "
                    "which makes room for the last one"
                )
            time.sleep(POLL_S)


def _encoded(leaves: object) -> msgspec.Raw:
    return leaves if isinstance(leaves, msgspec.Raw) else msgspec.Raw(encode_leaves(leaves))


def fill(opened: Opened) -> None:
    """Copy everything now, on this thread."""
    for plan in (opened.volatile, opened.steady):
        plan.begin()
        plan.read()
        plan.complete()
