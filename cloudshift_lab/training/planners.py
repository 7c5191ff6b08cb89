"""DCP planners without pickle: values become typed JSON, mismatches are named before loading."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    Metadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.training.values import from_bytes, to_bytes

_SHOWN = 4


class SafeSavePlanner(DefaultSavePlanner):
    """DCP's own planner, except that what is not a tensor becomes typed JSON instead of a pickle.

    Works with every DCP storage writer; a value that JSON cannot hold is refused with its key.
    """

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:  # noqa: A002 - DCP's name
        """Give the writer a tensor as it is, and anything else as bytes."""
        if write_item.type is not WriteItemType.BYTE_IO:
            return object
        return io.BytesIO(to_bytes(object, write_item.index.fqn))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Keep what the storage writer said about *this* save when a cached plan is used again."""
        finished = super().finish_plan(new_plan)
        self.plan = dataclasses.replace(finished, storage_data=new_plan.storage_data)
        return self.plan


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How a checkpoint and the state that wants it differ; names are flat keys.

    ``missing`` is wanted and not stored, ``unexpected`` stored and not wanted; ``differing`` gives
    per name what both sides say of its shape, dtype or kind.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    differing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_exact(self) -> bool:
        """Whether everything wanted is there as wanted; more than that may be stored."""
        return not (self.missing or self.differing)

    def __str__(self) -> str:
        differing = tuple(f"{name}: {what}" for name, what in self.differing.items())
        parts = [
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (
                ("not in the checkpoint", self.missing),
                ("different", differing),
                ("only in the checkpoint", self.unexpected),
            )
            if names
        ]
        return ", ".join(parts) or "everything matches"


class SafeLoadPlanner(DefaultLoadPlanner):
    """DCP's own planner without pickle, and with all that does not match named at once.

    Args:
        strict: False: load what matches, leave the rest as it is, and say so in ``report``.
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__(allow_partial_load=True)
        self._strict = strict
        self.report = LoadReport()

    def create_local_plan(self) -> LoadPlan:
        """Plan what fits.

        Raises:
            UsageError: Something does not, and ``strict`` was asked for.
        """
        assert self.metadata is not None
        self.report = compare(self.state_dict, self.metadata)
        if not self.report.is_exact and self._strict:
            raise UsageError(
                f"the checkpoint does not fit this state: {self.report}; build the model that was "
                "saved, or load with strict=False to take what fits"
            )
        odd = self.report.differing
        self.state_dict = {name: v for name, v in self.state_dict.items() if name not in odd}
        return create_default_local_load_plan(self.state_dict, self.metadata, strict=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that a safe planner saved back to its place."""
        self.load_value(read_item, from_bytes(value.getvalue()))

    def load_value(self, read_item: ReadItem, value: object) -> None:
        """Put a decoded value back to its place."""
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            put_at(self.original_state_dict, self.mappings[name], value)
        else:
            self.state_dict[name] = value


def compare(wanted: Mapping[str, Any], metadata: Metadata) -> LoadReport:
    """Compare flat names, shapes and dtypes. Pure."""
    stored = metadata.state_dict_metadata
    differing = {
        name: what
        for name in sorted(wanted.keys() & stored.keys())
        if (what := _difference(wanted[name], stored[name])) is not None
    }
    return LoadReport(
        missing=tuple(sorted(wanted.keys() - stored.keys())),
        unexpected=tuple(sorted(stored.keys() - wanted.keys())),
        differing=differing,
    )


def _difference(wanted: object, stored: STORAGE_TYPES) -> str | None:
    if isinstance(stored, BytesStorageMetadata):
        is_tensor = isinstance(wanted, torch.Tensor)
        return "a tensor here, a value in the checkpoint" if is_tensor else None
    if not isinstance(wanted, torch.Tensor):
        return "a value here, a tensor in the checkpoint"
    here = (wanted.dtype, tuple(wanted.size()))
    there = (stored.properties.dtype, tuple(stored.size))
    return None if here == there else f"{_shown(*here)} here, {_shown(*there)} in the checkpoint"


def _shown(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def put_at(root: dict[str, Any], path: Iterable[str | int], value: object) -> None:
    """Set a value in nested dictionaries and lists, making the containers that are missing.

    Args:
        root: Outermost dictionary.
        path: Keys; an integer is a place in a list.
        value: What to put there.

    Raises:
        Corrupt: The path leads through something that is no such container.
    """
    keys = list(path)
    try:
        _put_at(root, keys, value)
    except (TypeError, IndexError, AttributeError) as error:
        raise Corrupt(
            f"{keys} cannot be a path in this state, where another value stands on it; "
            "use another step"
        ) from error


def _put_at(root: dict[str, Any], keys: list[str | int], value: object) -> None:
    container: Any = root
    for key, following in itertools.pairwise(keys):
        _make_room(container, key)
        found = container.get(key) if isinstance(container, dict) else container[cast(int, key)]
        if found is None:
            found = container[key] = {} if isinstance(following, str) else []
        container = found
    _make_room(container, keys[-1])
    container[keys[-1]] = value


def raw_value(planner: SavePlanner, item: WriteItem) -> object:
    """The value behind a byte item, before any planner has made a stream of it.

    Raises:
        UsageError: The planner gives pickled streams only, which our stores do not take.
    """
    is_ours = isinstance(planner, SafeSavePlanner)
    transform = getattr(type(planner), "transform_object", None)
    if is_ours or transform is DefaultSavePlanner.transform_object:
        return cast(DefaultSavePlanner, planner).lookup_object(item.index)
    raise UsageError(
        f"{type(planner).__name__} makes its own byte stream of '{item.index.fqn}', and a "
        "checkpoint holds no pickle; pass planner=SafeSavePlanner()"
    )


def _make_room(container: Any, key: str | int) -> None:
    if isinstance(container, list) and isinstance(key, int):
        container.extend([None] * (key + 1 - len(container)))


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
