"""All ranks act on the same word at the same step: flags reduced one step ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from cloudshift_lab.training.flight import Lost

_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Flags:
    """What at least one rank had heard when it sent this, usually one step ago.

    ``drain``: stop after this step. ``is_busy``: the last staged step is not committed yet.
    ``capture``: how many saves the agent has asked for. ``lost``: the worst that became of the
    newest capture on any rank. ``limit``: the latest step after which to hold that any rank has
    heard; None: one has heard of none. ``serial``: of the agent's words, the last one that *every*
    rank has heard.
    """

    drain: bool = False
    is_busy: bool = False
    capture: int = 0
    lost: Lost = Lost.NOTHING
    limit: int | None = None
    serial: int = 0

    def holds(self, step: int) -> bool:
        """Whether the ranks hold after ``step``."""
        return self.limit is not None and self.limit <= step


class Agreement:
    """Sends each rank's flags at one boundary and reads what all sent at the next.

    The reduction runs during the step, so nobody waits for it. It needs a group of its own: its
    collectives must not mix with the gradients'.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        self._flags = torch.zeros(6, dtype=torch.int32)
        self._is_sent = False
        self._work: dist.Work | None = None
        self._limit: int | None = None
        self._serial = 0

    @property
    def limit(self) -> int | None:
        """The limit that was agreed upon last."""
        return self._limit

    def agree(self, flags: Flags) -> Flags:
        """Send and read at once; every rank must do so, and waits for the others."""
        self.send(flags)
        return self.read()

    def send(self, flags: Flags) -> None:
        """Say at this boundary what this rank knows; every rank must do so."""
        assert not self._is_sent, "the flags sent before were never read"
        self._is_sent = True
        limit = _NO_LIMIT if flags.limit is None else flags.limit
        lost = int(flags.lost)
        values = (int(flags.drain), int(flags.is_busy), flags.capture, lost, limit, -flags.serial)
        for place, value in enumerate(values):
            self._flags[place] = value
        if self._group is not None:
            self._work = dist.all_reduce(
                self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def read(self) -> Flags:
        """What was sent one boundary ago, the same on every rank."""
        if self._work is not None:
            self._work.wait()
        if not self._is_sent:
            return Flags(limit=self._limit, serial=self._serial)
        self._is_sent, self._work = False, None
        drain, is_busy, capture, lost, limit, serial = self._flags.tolist()
        self._limit = None if limit == _NO_LIMIT else limit
        self._serial = -serial
        return Flags(bool(drain), bool(is_busy), capture, Lost(lost), self._limit, self._serial)
