"""Interpreters that have imported everything and wait to be ranks: a restart without imports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cloudshift_lab.agent.ports import PortClaim
from cloudshift_lab.checkpoint.fetch import usable_cpus
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import replace_file

WARM_AFTER_STEPS = 2
_BYTES_PER_RANK = 512 << 20


@dataclass(frozen=True)
class Spare:
    """A launcher whose ranks wait before the script until ``gate`` is there.

    ``ports`` holds its port, at which it listens already: its ranks will meet there and nowhere
    else, so that they never find the addresses of those before them.
    """

    process: subprocess.Popen[bytes]
    gate: Path
    ports: PortClaim

    @property
    def is_alive(self) -> bool:
        """Whether it still waits."""
        return self.process.poll() is None

    def open(self) -> None:
        """Let the ranks begin."""
        replace_file(self.gate, b"")

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def may_keep_spare(job: JobSpec) -> bool:
    """Whether interpreters may wait: as the job says, or where memory and processors allow."""
    if job.restarts == 0 or job.placement.nodes > 1 or job.spare == "off":
        return False
    num_ranks = job.placement.ranks_per_node
    has_room = _available_bytes() >= (num_ranks + 1) * _BYTES_PER_RANK
    return job.spare == "on" or (has_room and usable_cpus() >= 2 * num_ranks)


def _available_bytes() -> int:
    """Memory that could be had without swapping; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
