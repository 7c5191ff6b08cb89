"""What people use today, called as its documentation says, in a process group of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import (
    AsyncCheckpointerType,
    AsyncSaveResponse,
    async_save,
    save,
)
from torch.distributed.checkpoint.storage import StorageReader

__all__ = ["CheckpointException", "FileSystemReader", "FsspecReader", "StorageReader"]


@contextmanager
def group_of_one() -> Iterator[None]:
    """A gloo process group with only this process, which DCP wants; no-op inside another."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def dcp_save(state: Mapping[str, Any], folder: Path) -> None:
    """``dcp.save`` into a folder, with its default writer (which flushes its files)."""
    with group_of_one():
        save(dict(state), checkpoint_id=folder)


def dcp_load(state: Mapping[str, Any], reader: StorageReader) -> None:
    """``dcp.load`` into tensors that are there."""
    with group_of_one():
        load(dict(state), storage_reader=reader)  # tensors are filled in place


class TorchSave:
    """``torch.save`` into one file, flushed to the disk."""

    name = "torch.save + fsync"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._newest = folder

    def forget(self) -> None:
        """Remove what was saved; not timed."""
        for path in self._folder.iterdir():
            shutil.rmtree(path)

    def _new_folder(self, step: int) -> Path:
        self._newest = self._folder / str(step)
        self._newest.mkdir()
        return self._newest

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write it; training waits."""
        with (self._new_folder(step) / "state.pt").open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())

    def between_steps(self) -> None:
        """Nothing is left to do."""

    @property
    def is_done(self) -> bool:
        return True

    @property
    def stored_bytes(self) -> int:
        """Bytes of the newest save's files."""
        return sum(path.stat().st_size for path in self._newest.iterdir())

    def close(self) -> None:
        """Nothing to end."""


class DcpSave(TorchSave):
    """``dcp.save`` with its default writer, which flushes its files."""

    name = "dcp.save"

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Write it; training waits."""
        save(dict(state), checkpoint_id=self._new_folder(step))


class DcpAsyncSave(DcpSave):
    """``dcp.async_save`` in a thread, as it is by default."""

    name = "dcp.async_save"
    _kind = AsyncCheckpointerType.THREAD

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stager: DefaultStager | None = None
        self._future: Future[Any] | None = None

    def save(self, state: Mapping[str, Any], step: int) -> None:
        """Stage it; the rest goes on beside training."""
        answer = async_save(
            dict(state), checkpoint_id=self._new_folder(step), async_stager=self._stager,
            async_checkpointer_type=self._kind,
        )  # fmt: skip
        self._future = answer.upload_completion if isinstance(answer, AsyncSaveResponse) else answer

    @property
    def is_done(self) -> bool:
        """Whether the newest save is on the disk.

        Raises:
            CheckpointException: It failed.
        """
        if self._future is None or not self._future.done():
            return self._future is None
        self._future.result()
        return True


class DcpProcessSave(DcpAsyncSave):
    """``dcp.async_save`` with its process; the first save starts it and takes seconds longer."""

    name = "dcp.async_save in a process"
    _kind = AsyncCheckpointerType.PROCESS


class DcpSharedStager(DcpAsyncSave):
    """The same with a ``DefaultStager`` whose memory is shared and used again."""

    name = "dcp.async_save, DefaultStager(shared)"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stager = DefaultStager(StagingOptions(False, True, False, False))  # noqa: FBT003

    def close(self) -> None:
        """Let go of the staging memory."""
        assert self._stager is not None
        self._stager.close()
