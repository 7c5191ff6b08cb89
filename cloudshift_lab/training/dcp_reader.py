"""DCP's storage reader on our store: the whole plan at once, every byte checked."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from cloudshift_lab.checkpoint.reader import BoxRequest, Checkpoint, open_run
from cloudshift_lab.core.errors import Conflict
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.dcp_writer import names_step, step_in
from cloudshift_lab.training.flat import FlatState, read_flat
from cloudshift_lab.training.memory import Bytes, bytes_of, tensor_of, writable_bytes
from cloudshift_lab.training.planners import SafeLoadPlanner
from cloudshift_lab.training.values import from_plain


class CasStorageReader(StorageReader):
    """Reads a step of a run into a DCP load: whole plan at once, every byte checked.

    Any step can be read, at any world size; also one that a training session saved, under the
    names that it has there.

    Args:
        url: The store.
        run_id: Whose step.
        step: Its number, or the newest committed one.
        store_options: fsspec options of the store.
        threads: Threads that decode and check.
    """

    def __init__(
        self, url: str, run_id: str, *, step: int | Literal["latest"] = "latest",
        store_options: Mapping[str, object] | None = None, threads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self._url = url
        self._run_id = run_id
        self._step: int | Literal["latest"] = step
        self._options = dict(store_options or {})
        self._threads = threads
        self._checkpoint: Checkpoint | None = None
        self._state = FlatState()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load; ``checkpoint_id`` may end in the step's number.

        Raises:
            UsageError: It does not end in a number.
        """
        self._checkpoint = None
        if checkpoint_id is not None:
            self._step = step_in(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a step's number can be read from it."""
        return names_step(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - DCP's signature
        """What the step holds, each tensor as one whole.

        Raises:
            NotFound: No such step.
            Corrupt: Something differs from its hash.
        """
        store = open_store(self._url, self._options)
        self._checkpoint = open_run(store, self._run_id, self._step)
        self._state = read_flat(self._checkpoint) or FlatState()
        entries: dict[str, STORAGE_TYPES] = {
            name: _tensor_entry(self._checkpoint, name)
            for name in self._checkpoint.names()
            if name not in self._state.nested
        }
        entries.update({name: BytesStorageMetadata() for name in self._state.values})
        return Metadata(
            state_dict_metadata=entries,
            planner_data=dict(self._state.paths) or None,
            storage_data={},
            storage_meta=StorageMeta(checkpoint_id=f"{self._url}/runs/{self._run_id}"),
        )

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - DCP's signature
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Nothing to prepare: the step is open already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Say which manifest this rank has open."""
        return dataclasses.replace(plan, storage_data=self._opened().manifest_digest)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """On rank 0: make sure that all ranks read the same step.

        Raises:
            Conflict: A newer step was committed between two ranks' looks.
        """
        if len({plan.storage_data for plan in plans}) > 1:
            raise Conflict(
                f"run '{self._run_id}' got a new step while the ranks looked for the newest one; "
                "load again, or pass step="
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read all tensors with one plan, then put the values back.

        Raises:
            Corrupt: Stored bytes differ from their hash, also when read again.
        """
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        _read_tensors(self._opened(), tensors, planner, self._threads)
        self._read_values([i for i in plan.items if i.type is not LoadItemType.TENSOR], planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_values(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        wanted = {item.storage_index.fqn for item in items}
        prefixes = tuple(f"{name}/" for name in wanted)
        inner = [n for n in sorted(self._state.nested) if n.startswith(prefixes)]
        tensors = whole_tensors(self._opened(), inner, threads=self._threads)
        for item in items:
            value = from_plain(self._state.values[item.storage_index.fqn], tensors)
            if isinstance(planner, SafeLoadPlanner):
                planner.load_value(item, value)
            else:
                planner.load_bytes(item, _stream_for_dcp(value))

    def _opened(self) -> Checkpoint:
        if self._checkpoint is None:
            self.read_metadata()
        assert self._checkpoint is not None
        return self._checkpoint


def whole_tensors(
    checkpoint: Checkpoint, names: Sequence[str], *, threads: int = 1
) -> dict[str, torch.Tensor]:
    """Whole global tensors by name, read with one plan.

    Raises:
        Corrupt, NotFound: As the checkpoint's reader reported.
    """
    specs = [checkpoint.spec(name) for name in names]
    arrays = checkpoint.read_many(
        [BoxRequest(s.name, (0,) * len(s.global_shape), s.global_shape) for s in specs],
        threads=threads,
    )
    return {
        spec.name: tensor_of(cast(Bytes, array), spec.dtype, spec.global_shape)
        for spec, array in zip(specs, arrays, strict=True)
    }


def _tensor_entry(checkpoint: Checkpoint, name: str) -> TensorStorageMetadata:
    spec = checkpoint.spec(name)
    size = torch.Size(spec.global_shape)
    whole = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    kind: torch.dtype = getattr(torch, spec.dtype)
    return TensorStorageMetadata(TensorProperties(dtype=kind), size, [whole])


def _read_tensors(
    checkpoint: Checkpoint, items: Sequence[ReadItem], planner: LoadPlanner, threads: int
) -> None:
    """Fill what can be filled in place, and copy the rest."""
    targets = [planner.resolve_tensor(item).detach() for item in items]
    requests = [
        BoxRequest(i.storage_index.fqn, tuple(i.storage_offsets), tuple(i.lengths)) for i in items
    ]
    places: list[tuple[torch.Tensor, Bytes]] = []
    for item, target in zip(items, targets, strict=True):
        kind: torch.dtype = getattr(torch, checkpoint.spec(item.storage_index.fqn).dtype)
        view = writable_bytes(target) if target.dtype == kind else None
        if view is None:
            spare = torch.empty(tuple(item.lengths), dtype=kind)
            view = bytes_of(spare, item.storage_index.fqn)
            places.append((spare, view))
        else:
            places.append((target, view))
    checkpoint.read_many(requests, out=[view for _, view in places], threads=threads)
    for item, target, (place, _) in zip(items, targets, places, strict=True):
        if place is not target:
            target.copy_(place)
        planner.commit_tensor(item, target)


def _stream_for_dcp(value: object) -> io.BytesIO:
    """DCP's own planner unpickles what it gets: it gets a stream that we made this moment."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream
