"""The ranks that save together without an agent, and how their first one takes the run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from blake3 import blake3

from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    NotFound,
    UsageError,
    error_from_wire,
)
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.lease import TTL_S, heartbeat_key
from cloudshift_lab.storage.log import LogState
from cloudshift_lab.storage.store import Store
from cloudshift_lab.training.ownership import Ownership, is_of_this_machine, new_owner

_LOOK_EVERY_S = 0.5


class Ranks:
    """This process among the ranks of its job; alone where torch.distributed is not initialised.

    All ranks make it at the same place, and call its methods together.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1
        self._group = None
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def same(self, value: int) -> int:
        """Rank 0's value, on all ranks."""
        if self._group is None:
            return value
        told = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(told, src=0, group=self._group)
        return int(told.item())

    def fail_together(self, failure: CloudshiftError | None, *, skip: bool = False) -> bool:
        """Come to one decision: every rank fails if one does, with the words of that one.

        Args:
            failure: Why this rank refuses; None if it does not.
            skip: This rank wants all to leave it, although none refuses.

        Returns:
            Whether any rank wants to skip.

        Raises:
            CloudshiftError: Of the refusing rank's kind, on all ranks.
        """
        mine = self.rank + 2 if failure is not None else int(skip)
        worst = self._largest(mine)
        if worst < 2:
            return worst == 1
        told = self._told_by(worst - 2, failure)
        if failure is not None:
            raise failure
        kind, _, message = told.partition("\n")
        raise error_from_wire(
            kind, f"rank {worst - 2} cannot go on, and so no rank does: {message}"
        )

    def _largest(self, value: int) -> int:
        if self._group is None:
            return value
        told = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        return int(told.item())

    def _told_by(self, rank: int, failure: CloudshiftError | None) -> str:
        """What one rank has to say about its failure, on all ranks."""
        if self._group is None:
            return ""
        words = b"" if failure is None else f"{type(failure).__name__}\n{failure.message}".encode()
        size = torch.tensor([len(words)], dtype=torch.int64)
        dist.broadcast(size, src=rank, group=self._group)
        text = torch.zeros(int(size.item()), dtype=torch.uint8)
        if rank == self.rank:
            text = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        dist.broadcast(text, src=rank, group=self._group)
        return bytes(text.tolist()).decode()

    def check_same(self, names: Iterable[str]) -> None:
        """Make sure that all ranks give a state of the same tensors.

        Raises:
            UsageError: They do not.
        """
        if self._group is None:
            return
        digest = blake3("\n".join(names).encode()).digest()[:7]
        mine = torch.tensor([int.from_bytes(digest, "little")], dtype=torch.int64)
        everyone = [torch.zeros_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self._group)
        odd = [rank for rank, theirs in enumerate(everyone) if not torch.equal(theirs, everyone[0])]
        if odd:
            raise UsageError(
                f"rank {odd[0]} gives other tensors to save than rank 0; wrap what each rank has "
                "its own of in PerRank(...)"
            )


@dataclass(frozen=True)
class Tenancy:
    """A run that is ours: ``owned`` on rank 0 only; ``last_step`` is -1 before the first."""

    owned: Ownership | None
    generation: int
    incarnation: str
    last_step: int


def take_run(store: Store, run_id: str, ranks: Ranks, world: World = REAL_WORLD) -> Tenancy:
    """Rank 0 takes the run; all ranks learn of it, or why it could not.

    Raises:
        Conflict: Another process saves this run.
    """
    owned: Ownership | None = None
    failure: CloudshiftError | None = None
    generation, last_step = -1, -1
    if ranks.rank == 0:
        try:
            owned, state = _take(store, run_id, world)
            generation = state.generation
            last = state.last_commit
            last_step = -1 if last is None or last.step is None else last.step
        except CloudshiftError as error:
            failure = error
    ranks.fail_together(failure)
    generation = ranks.same(generation)
    return Tenancy(owned, generation, f"g{generation}", ranks.same(last_step))


def _take(store: Store, run_id: str, world: World) -> tuple[Ownership, LogState]:
    owned = Ownership(store, run_id, new_owner(run_id, world), world)
    state = owned.look()
    # One of this machine is dead: we hold the lock that it would hold.
    if state.owner is not None and not is_of_this_machine(state.owner):
        _wait_for_silence(store, run_id, state, world)
    return owned, owned.hold()


def _wait_for_silence(store: Store, run_id: str, state: LogState, world: World) -> None:
    """Watch the last owner's heartbeat for a whole lease.

    Raises:
        Conflict: It beats.
    """
    first = _heartbeat(store, run_id, state.generation)
    if first is None:
        return
    print(
        f"cloudshift: looking for up to {TTL_S:.0f} s whether the process that saved run "
        f"'{run_id}' before is alive",
        file=sys.stderr,
    )
    until = world.monotonic() + TTL_S
    while world.monotonic() < until:
        world.sleep(_LOOK_EVERY_S)
        if _heartbeat(store, run_id, state.generation) != first:
            raise Conflict(
                f"run '{run_id}' in {store.url} is being saved by another process (generation "
                f"{state.generation}); stop it, or save under another run id"
            )


def _heartbeat(store: Store, run_id: str, generation: int) -> bytes | None:
    try:
        return store.get(heartbeat_key(run_id, generation))
    except NotFound:
        return None
