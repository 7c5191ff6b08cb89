"""DCP's storage writer on our store: one rank's share each, one commit of all."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from cloudshift_lab.checkpoint.boxes import TensorBox
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.tombs import tombstoned
from cloudshift_lab.checkpoint.write import Staged, WrittenRank, write_rank
from cloudshift_lab.core.errors import Unsupported, UsageError
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.storage.store import Store, open_store
from cloudshift_lab.training.flat import FlatState
from cloudshift_lab.training.memory import Bytes, bytes_of
from cloudshift_lab.training.ownership import Ownership, new_owner
from cloudshift_lab.training.planners import raw_value
from cloudshift_lab.training.tree import dtype_name
from cloudshift_lab.training.values import to_plain

_STEP = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})/?")
_RECORD = MetadataIndex("cloudshift:record")
_last_ticket = ""


@dataclass(frozen=True)
class _Ticket:
    """What the coordinator tells each rank of one save.

    ``base`` is the newest committed step; ``dead_packs`` are about to be deleted, and ``since`` is
    where the log stood before they were read.
    """

    id: str
    rank: int
    world_size: int
    step: int
    generation: int
    since: int
    base: tuple[str, str] | None
    dead_packs: frozenset[str]


class CasStorageWriter(StorageWriter):
    """Writes a DCP save as a step of a run: hashed, compressed, only what changed, one commit.

    The process that saves owns the run from then on, and whoever saved it before is fenced. With
    several ranks, rank 0 commits after all have written; a rank that fails leaves no step behind.

    Args:
        url: The store, ``file://``, ``s3://``, ``gs://`` or ``az://``; every rank must reach it.
        run_id: Whose step it becomes.
        step: Its number. None: the number at the end of ``checkpoint_id``, or the newest
            committed step + 1.
        store_options: fsspec options of the store, credentials for example.
        threads: Threads that hash and compress.
    """

    def __init__(
        self, url: str, run_id: str, *, step: int | None = None,
        store_options: Mapping[str, object] | None = None, threads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self._url = url
        self._run_id = run_id
        self._fixed_step = step
        self._named_step: int | None = None
        self._options = dict(store_options or {})
        self._threads = threads
        self._owner = new_owner(run_id)
        self._opened: tuple[Store, Ownership] | None = None
        self._ticket: _Ticket | None = None
        self.saved_step: int | None = None

    def __getstate__(self) -> dict[str, object]:
        """For the process checkpointer: all but what is open."""
        return {**self.__dict__, "_opened": None, "_ticket": None}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new save; ``checkpoint_id`` may end in the step's number, as in ``step-100``.

        Raises:
            UsageError: It does not end in a number.
        """
        self._ticket = None
        if checkpoint_id is not None:
            self._named_step = step_in(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a step's number can be read from it."""
        return names_step(checkpoint_id)

    def storage_meta(self) -> StorageMeta | None:
        """What DCP may log of this save."""
        return StorageMeta(checkpoint_id=f"{self._url}/runs/{self._run_id}")

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002, FBT001 - DCP's signature
        """Refuse what would leave ranks without a common step.

        Raises:
            Unsupported: Ranks are to save without knowing of each other.
        """
        if not kwargs.get("use_collectives", True):
            raise Unsupported(
                "use_collectives=False gives every rank a checkpoint of its own; leave it out, or "
                "use CheckpointManager, which needs no collective to write"
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing of a plan is ours to change."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0: own the run, choose the step, tell every rank.

        Raises:
            Fenced, Conflict: The run is somebody else's.
            UsageError: The run has such a step or a later one already.
        """
        store, owned = self._open()
        state = owned.hold()
        since, dead_packs = state.next_seq, tombstoned(store)
        last = state.last_commit
        step = self._step(None if last is None else last.step)
        owned.check_step(state, step)
        base = None
        if last is not None and last.manifest_key and last.manifest_digest:
            base = (last.manifest_key, last.manifest_digest)
        tickets = [
            _Ticket(
                REAL_WORLD.new_id("save"), rank, len(plans), step, state.generation, since, base,
                dead_packs,
            )
            for rank in range(len(plans))
        ]  # fmt: skip
        self._ticket = tickets[0]
        return [
            dataclasses.replace(plan, storage_data=ticket)
            for plan, ticket in zip(plans, tickets, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share: packs, index, record.

        Raises:
            UsageError: A value that a checkpoint cannot hold, by its key; or a plan of an earlier
                save.
        """
        ticket = _punch(plan.storage_data)
        store, _ = self._open()
        known, base = None, None
        if ticket.base is not None:
            key, digest = ticket.base
            base = open_checkpoint(store, self._run_id, key, digest=digest)
            known = KnownChunks.from_checkpoint(base)
        written = write_rank(
            store, self._run_id, _stage(plan, planner, ticket), generation=ticket.generation,
            known=known, base=base, dead_packs=ticket.dead_packs, threads=self._threads,
        )  # fmt: skip
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(_RECORD, written.new_bytes, written)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0: check that all is stored, then commit the step.

        Raises:
            Fenced: Another process took the run over meanwhile; nothing was published.
            Conflict: A collection swept the store meanwhile; nothing was published, save again.
        """
        ticket = self._ticket
        assert ticket is not None, "DCP plans before it finishes"
        store, owned = self._open()
        sealed = seal(
            store, self._run_id, ticket.step, generation=ticket.generation,
            world_size=ticket.world_size,
            written=[cast(WrittenRank, result.storage_data) for part in results for result in part],
        )  # fmt: skip
        owned.commit(sealed, ticket.generation, since=ticket.since)
        self.saved_step = ticket.step
        metadata.storage_meta = self.storage_meta()

    def _open(self) -> tuple[Store, Ownership]:
        if self._opened is None:
            store = open_store(self._url, self._options)
            self._opened = store, Ownership(store, self._run_id, self._owner)
        return self._opened

    def _step(self, last: int | None) -> int:
        if self._named_step is not None:
            return self._named_step
        if self._fixed_step is not None:
            return self._fixed_step
        return 0 if last is None else last + 1


def names_step(checkpoint_id: str | os.PathLike[str]) -> bool:
    """Whether a DCP checkpoint id ends in a number."""
    return _STEP.fullmatch(os.fspath(checkpoint_id)) is not None


def step_in(checkpoint_id: str | os.PathLike[str]) -> int:
    """The step that a DCP checkpoint id names by the number at its end.

    Raises:
        UsageError: There is none.
    """
    match = _STEP.fullmatch(os.fspath(checkpoint_id))
    if match is None:
        raise UsageError(
            f"checkpoint_id '{os.fspath(checkpoint_id)}' does not end in a step's number; "
            "use for example 'step-100', or pass step="
        )
    return int(match[1])


def _punch(ticket: object) -> _Ticket:
    """Take a ticket once.

    Raises:
        UsageError: It is that of an earlier save, which DCP's plan cache keeps.
    """
    global _last_ticket
    if not isinstance(ticket, _Ticket) or ticket.id == _last_ticket:
        raise UsageError(
            "DCP's planner reused the plan of an earlier save; pass "
            "planner=SafeSavePlanner(enable_plan_caching=True)"
        )
    _last_ticket = ticket.id
    return ticket


def _stage(plan: SavePlan, planner: SavePlanner, ticket: _Ticket) -> Staged:
    """This rank's items as boxes with their bytes, and the values as leaves."""
    boxes: list[TensorBox] = []
    buffers: list[Bytes] = []
    values: dict[str, object] = {}
    inner: dict[str, torch.Tensor] = {}
    for item in plan.items:
        name = item.index.fqn
        if item.type is WriteItemType.BYTE_IO:
            values[name] = to_plain(raw_value(planner, item), name, inner)
        else:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor), "only byte items are streams"
            boxes.append(_box_of(item, tensor))
            buffers.append(bytes_of(tensor, name))
    for name, tensor in inner.items():
        shape = tuple(tensor.shape)
        boxes.append(TensorBox(name, dtype_name(tensor), shape, (0,) * len(shape), shape))
        buffers.append(bytes_of(tensor, name))
    paths = plan.planner_data if isinstance(plan.planner_data, dict) else {}
    names = {item.index.fqn for item in plan.items}
    state = FlatState(values, {n: p for n, p in paths.items() if n in names}, frozenset(inner))
    return Staged(
        ticket.step, ticket.rank, ticket.world_size, tuple(boxes), tuple(buffers), state.leaves()
    )


def _box_of(item: WriteItem, tensor: torch.Tensor) -> TensorBox:
    data = item.tensor_data
    assert data is not None, "DCP describes every tensor it plans"
    offset, shape = tuple(data.chunk.offsets), tuple(data.chunk.sizes)
    if tuple(tensor.shape) != shape:
        raise UsageError(
            f"'{item.index.fqn}' changed its shape from {shape} to {tuple(tensor.shape)} while it "
            "was saved; stage the state before saving it asynchronously"
        )
    return TensorBox(item.index.fqn, dtype_name(tensor), tuple(data.size), offset, shape)
