"""All ranks act on the same word at the same step: flags reduced one step ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from cloudshift_lab.training.flight import Lost


@dataclass(frozen=True)
class Flags:
    """What at least one rank had heard one step ago.

    ``drain``: stop after this step. ``is_busy``: the last staged step is not committed yet.
    ``capture``: how many saves the agent has asked for. ``lost``: the worst that became of the
    newest capture on any rank.
    """

    drain: bool = False
    is_busy: bool = False
    capture: int = 0
    lost: Lost = Lost.NOTHING


class Agreement:
    """Sends each rank's flags at one boundary and reads what all sent at the next.

    The reduction runs during the step, so nobody waits for it. It needs a group of its own: its
    collectives must not mix with the gradients'.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        self._flags = torch.zeros(4, dtype=torch.int32)
        self._is_sent = False
        self._work: dist.Work | None = None

    def send(self, flags: Flags) -> None:
        """Say at this boundary what this rank knows; every rank must do so."""
        assert not self._is_sent, "the flags sent before were never read"
        self._is_sent = True
        values = (int(flags.drain), int(flags.is_busy), flags.capture, int(flags.lost))
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
            return Flags()
        self._is_sent, self._work = False, None
        drain, is_busy, capture, lost = self._flags.tolist()
        return Flags(bool(drain), bool(is_busy), capture, Lost(lost))
