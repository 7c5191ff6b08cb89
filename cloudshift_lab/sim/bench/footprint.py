"""What a process costs: processor time and memory, as Linux counts them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used so far, its own and the system's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def private_bytes(pid: int) -> int:
    """Memory of a process besides shared memory: its own pages and the files it has mapped.

    One that has ended and is not buried yet has none.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(line.partition(":")[::2] for line in status.splitlines())
    sizes = (values.get(key, "0").split()[0] for key in ("RssAnon", "RssFile"))
    return 1024 * sum(map(int, sizes))


class PeakMemory:
    """Looks at a process's memory several times a second and keeps the largest value, bytes."""

    EVERY_S = 0.1

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self.peak_bytes = private_bytes(pid)
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.EVERY_S):
            try:
                self.peak_bytes = max(self.peak_bytes, private_bytes(self._pid))
            except (FileNotFoundError, ProcessLookupError):
                return  # it has ended: what it had is known


def children(pid: int) -> dict[int, tuple[str, ...]]:
    """Command lines of a process's children, by their process ids."""
    listed = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    found = {}
    for child in " ".join(listed).split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        found[int(child)] = tuple(words)
    return found
