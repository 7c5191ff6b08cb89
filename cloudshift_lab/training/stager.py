"""DCP's stager with one preallocated copy of the state, filled while training goes on."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

from cloudshift_lab.core.errors import Conflict
from cloudshift_lab.training.watching import Watch

Path = tuple[tuple[int, str], ...]
_PLAIN = (bool, int, float, str, bytes, type(None))


class _Lent(dict[str, Any]):
    """A staged state that a save holds; a dictionary that can be watched."""

    is_torn = False


class _Torn(Mapping[str, object]):
    """Part of a staged state that fails whoever reads it, which DCP does where all ranks hear it.

    A staging that failed on one rank would leave the others waiting for it.
    """

    def __init__(self, error: Conflict) -> None:
        self._error = error

    def __getitem__(self, key: str) -> object:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        raise self._error

    def __len__(self) -> int:
        raise self._error

    def __reduce__(self) -> str:
        raise self._error


class _Copies:
    """The memory of one staged state: a place per tensor, by order of their appearance."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        # One storage each: several distributed tensors in one storage cannot be sent to the
        # process checkpointer (torch 2.13 crashes), which moves each to shared memory by itself.
        self.places = [torch.empty(t.shape, dtype=t.dtype) for t in tensors]
        self.layout = [(t.dtype, tuple(t.shape)) for t in self.places]

    def fits(self, tensors: Iterable[torch.Tensor]) -> bool:
        return self.layout == [(t.dtype, tuple(t.shape)) for t in tensors]


class ArenaStager(AsyncStager):
    """Copies a state for ``async_save`` into memory that is taken once and used for every save.

    ::

        stager = ArenaStager(optimizer)
        response = dcp.async_save(state, storage_writer=writer, async_stager=stager)

    Memory that an unfinished save still reads is never written: a second save then takes new
    memory for as long as that lasts.

    Args:
        optimizer: The tensors that only its step changes are copied by a thread while the next
            forward and backward pass runs, and the copy is joined before its next step. When they
            are seen to change earlier, that save fails and later copies are made at once. None:
            the whole copy is made at once.
    """

    _synchronize_after_execute = False

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._optimizer = optimizer
        self._copies: _Copies | None = None
        self._lent: weakref.ref[_Lent] | None = None
        self._staging: Future[dict[str, Any]] | None = None
        self._is_torn = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage") if optimizer else None
        self._hook = optimizer.register_step_pre_hook(self._join) if optimizer else None

    def stage(self, state_dict: dict[str, Any]) -> Future[dict[str, Any]] | dict[str, Any]:
        """A copy of the state that training no longer changes.

        Returns:
            The copy, or with an optimizer a future of it.
        """
        self._wait()
        named = dict(_tensors(state_dict))
        tensors = list(named.values())
        locals_ = [_local(tensor) for tensor in tensors]
        places = self._take(locals_)
        steady = self._steady()
        later = [i for i, t in enumerate(locals_) if _address(t) in steady]
        now = sorted(set(range(len(locals_))) - set(later))
        _copy(places, locals_, now)
        staged = _Lent(_rebuild(state_dict, iter(_like(tensors, places))))
        self._lent = weakref.ref(staged)
        if self._thread is None or not later:
            return staged
        paths = list(named)
        watch = Watch([_dotted(paths[i]) for i in later], [locals_[i] for i in later])
        watch.begin()
        self._staging = self._thread.submit(
            _copy_and_give, places, locals_, later, staged, watch
        )  # fmt: skip
        return self._staging

    def synchronize_staging(self) -> None:
        """Wait until the copy is whole."""
        self._wait()

    def close(self) -> None:
        """Give the memory back, once the last save has finished."""
        self._wait()
        if self._hook is not None:
            self._hook.remove()
        if self._thread is not None:
            self._thread.shutdown()
        self._copies = None

    def _take(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        is_free = self._lent is None or self._lent() is None
        if self._copies is None or not is_free or not self._copies.fits(tensors):
            self._copies = _Copies(tensors)
        return self._copies.places

    def _steady(self) -> set[tuple[int, int]]:
        """Where the tensors lie that only the optimizer changes: its parameters and its state."""
        if self._optimizer is None or self._is_torn:
            return set()
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        state = [
            value
            for entries in self._optimizer.state.values()
            for value in entries.values()
            if isinstance(value, torch.Tensor)
        ]
        return {_address(_local(tensor)) for tensor in (*params, *state)}

    def _join(self, *_: object) -> None:
        self._wait()

    def _wait(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            error = staging.exception()
            self._is_torn |= isinstance(error, Conflict)
            if error is not None and not isinstance(error, Conflict):
                raise error  # a torn copy is for the save that waits for it, not for training
            self._is_torn |= error is None and cast(_Lent, staging.result()).is_torn


def _tensors(value: object, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """Every tensor of a state with its path, in a fixed order."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for number, (key, item) in enumerate(value.items()):
            yield from _tensors(item, (*path, (number, str(key))))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, (*path, (number, str(number))))


def _dotted(path: Path) -> str:
    return ".".join(key for _, key in path)


def _rebuild(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The same tree with other tensors, and nothing in it that training could still change."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: _rebuild(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_rebuild(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.ndarray):
        return value.copy()
    return value if isinstance(value, _PLAIN) else copy.deepcopy(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _address(tensor: torch.Tensor) -> tuple[int, int]:
    return (tensor.data_ptr(), tensor.nbytes)


def _like(tensors: Iterable[torch.Tensor], places: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [
        DTensor.from_local(
            place, tensor.device_mesh, tensor.placements, run_check=False,
            shape=tensor.shape, stride=tensor.stride(),
        )
        if isinstance(tensor, DTensor)
        else place
        for tensor, place in zip(tensors, places, strict=True)
    ]  # fmt: skip


@torch.no_grad()
def _copy(places: list[torch.Tensor], tensors: list[torch.Tensor], numbers: Iterable[int]) -> None:
    for i in numbers:
        places[i].copy_(tensors[i])


def _copy_and_give(
    places: list[torch.Tensor], tensors: list[torch.Tensor], numbers: list[int], staged: _Lent,
    watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    _copy(places, tensors, numbers)
    changed = watch.changed() or watch.torn_by([places[i] for i in numbers])
    if changed is not None:
        torn = Conflict(
            f"the state was not saved: '{changed}' changed while it was copied, before the "
            "optimizer's step; save again, later copies are made at once"
        )
        if not (dist.is_available() and dist.is_initialized()):
            raise torn
        staged["torn"], staged.is_torn = _Torn(torn), True
    return staged
