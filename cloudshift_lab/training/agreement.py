"""All ranks act on the same word at the same step: flags reduced one step ahead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Flags:
    """What at least one rank had heard one step ago.

    ``drain``: stop after this step. ``is_busy``: the last staged step is not committed yet.
    """

    drain: bool = False
    is_busy: bool = False


class Agreement:
    """Sends each rank's flags at one boundary and reads what all sent at the next.

    The reduction runs during the step, so nobody waits for it. It needs a group of its own: its
    collectives must not mix with the gradients'.
    """

    def __init__(self) -> None:
        self._group = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        self._sent: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def send(self, flags: Flags) -> None:
        """Say at this boundary what this rank knows; every rank must do so."""
        assert self._sent is None, "the flags sent before were never read"
        self._sent = torch.tensor([flags.drain, flags.is_busy], dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(
                self._sent, op=dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def read(self) -> Flags:
        """What was sent one boundary ago, the same on every rank."""
        if self._work is not None:
            self._work.wait()
        if self._sent is None:
            return Flags()
        drain, is_busy = (bool(value) for value in self._sent.tolist())
        self._sent, self._work = None, None
        return Flags(drain, is_busy)
