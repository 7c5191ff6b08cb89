"""The last lines of what an attempt's processes printed, however much that was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

AGENT_LOG = "agent.log"
_LARGEST_READ = 1 << 20


def last_lines(folders: Sequence[Path], rank: int | None, tail: int) -> str:
    """The last lines of one rank's output, or of everything an attempt printed.

    Args:
        folders: Where the logs of each node are.
        rank: Whose; None: all ranks', then the agents', each line with its name before it.
        tail: Most lines, together.
    """
    ranks = {number: path for folder in folders for number, path in _ranks(folder)}
    if rank is not None:
        return "\n".join(_share([_read_end(ranks[rank])] if rank in ranks else [[]], tail)[0])
    files = {f"rank {number}": ranks[number] for number in sorted(ranks)}
    for node, folder in enumerate(folders):
        files[f"agent {node}" if node else "agent"] = folder / AGENT_LOG
    shared = _share([_read_end(path) for path in files.values()], tail)
    return "\n".join(
        f"[{name}] {line}" for name, lines in zip(files, shared, strict=True) for line in lines
    )


def _ranks(folder: Path) -> list[tuple[int, Path]]:
    """Each rank that wrote a log there, with the log."""
    named = ((path.stem.removeprefix("rank-"), path) for path in folder.glob("rank-*.log"))
    return [(int(name), path) for name, path in named if name.isdecimal()]


def _share(logs: Sequence[list[str]], tail: int) -> list[list[str]]:
    """The end of each, ``tail`` lines together; what a short one leaves goes to the longer."""
    shared, left = list(logs), tail
    by_length = sorted(range(len(logs)), key=lambda index: len(logs[index]))
    for num_done, index in enumerate(by_length):
        num = min(len(logs[index]), left // (len(logs) - num_done))
        shared[index] = logs[index][len(logs[index]) - num :]
        left -= num
    return shared


def _read_end(path: Path) -> list[str]:
    """The lines of a file's last mebibyte, the first one whole where that is possible."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _LARGEST_READ)
            file.seek(start)
            data = file.read(_LARGEST_READ)
    except FileNotFoundError:
        return []
    if start > 0:
        data = data[data.find(b"\n") + 1 :]
    return data.decode(errors="replace").splitlines()
