"""What people use today, called as its documentation says, in a process group of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
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
