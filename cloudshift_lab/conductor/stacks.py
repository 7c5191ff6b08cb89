"""What the ranks of an attempt on this machine execute, by py-spy where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cloudshift_lab.core.staging import JOB_ENV

_DUMP_S = 5.0
_MOST_RANKS = 8
_PROC = Path("/proc")


def find_py_spy() -> str | None:
    """Where py-spy is: beside this interpreter or on the path; None where it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


def rank_stacks(workdir: Path, py_spy: str) -> dict[int, str]:
    """The main thread of each rank, newest call first; ranks that cannot be looked at are left out.

    Args:
        workdir: Of the attempt; those of its further nodes are below it.
        py_spy: The program.
    """
    found = {}
    for rank, pid in sorted(rank_pids(workdir).items())[:_MOST_RANKS]:
        stack = _dump(pid, py_spy)
        if stack:
            found[rank] = stack
    return found


def rank_pids(workdir: Path) -> dict[int, int]:
    """Processes of this machine that are ranks of an attempt, by rank; none where /proc is not.

    A rank's own children (data loaders) have its environment too; the oldest of them is the rank.
    """
    ranks: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        pid = int(folder.name)
        rank = _rank_of(folder, workdir)
        if rank is not None and pid < ranks.get(rank, pid + 1):
            ranks[rank] = pid
    return ranks


def _rank_of(folder: Path, workdir: Path) -> int | None:
    try:
        words = (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or is somebody else's
        return None
    told = dict(word.split(b"=", 1) for word in words if b"=" in word)
    job, rank = told.get(JOB_ENV.encode(), b"").decode(errors="replace"), told.get(b"RANK", b"")
    return int(rank) if job.startswith(f"{workdir}/") and rank.isdigit() else None


def _dump(pid: int, py_spy: str) -> str:
    try:
        done = subprocess.run(
            [py_spy, "dump", "--pid", str(pid)], capture_output=True, text=True,
            timeout=_DUMP_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return main_thread(done.stdout) if done.returncode == 0 else ""


def main_thread(dump: str) -> str:
    """The frames of the main thread alone; of the first one where none is called so."""
    threads: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith("Thread "):
            threads.append([line])
        elif threads and line.strip():
            threads[-1].append(line)
    main = [lines for lines in threads if '"MainThread"' in lines[0]] or threads
    return "\n".join(main[0][1:]) if main else ""
