"""Our own processes: what they inherit, which is which, and whether one still runs."""

from __future__ import annotations

import os
import site
import subprocess
from pathlib import Path


def environment() -> dict[str, str]:
    """Ours, for a child; with the package's own place when it runs from a checkout, uninstalled."""
    root = str(Path(__file__).parents[2])
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def process_start_time(pid: int) -> str | None:
    """When a process started, as an opaque text; None when no such process runs."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else f"ticks:{fields[19]}"
    asked = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = asked.stdout.strip().partition(" ")
    return started.strip() if asked.returncode == 0 and not state.startswith("Z") else None


def has_ended(pid: int, start_time: str) -> bool:
    """Whether the process that had this pid at that time is gone."""
    return process_start_time(pid) != start_time


def reap(pid: int) -> int | None:
    """Collect an ended child so that it does not stay a zombie; its exit code, if it was ours."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if found else None
