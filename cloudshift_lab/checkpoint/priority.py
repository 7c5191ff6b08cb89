"""Work in the background comes after training: for the processor, and when memory runs out."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cloudshift_lab.core.world import REAL_WORLD

NICENESS = 10
_KILL_ME_FIRST = 500
_TRIES = 10
_AGAIN_S = 0.1


def step_back(process: Path = Path("/proc/self")) -> None:
    """Let this process count less than the ranks.

    A container may forbid any of it. Saves then cost training more, which is no reason not to
    save.

    Args:
        process: Where Linux tells of it.
    """
    with contextlib.suppress(OSError):
        os.nice(max(0, NICENESS - os.nice(0)))
    _step_back_as_session(process / "autogroup")
    victim = process / "oom_score_adj"
    with contextlib.suppress(OSError):  # lowering what the container set is forbidden, too
        victim.write_text(str(max(_KILL_ME_FIRST, int(victim.read_text()))))


def _step_back_as_session(weight: Path) -> None:
    """Let this session count less than the ranks': niceness alone only counts within one.

    Linux shares the processor out between sessions first (``sched_autogroup_enabled``, on by
    default). It takes one such word in 100 ms from all unprivileged processes together.
    """
    for _ in range(_TRIES if weight.exists() else 0):
        try:
            weight.write_text(str(NICENESS))
        except BlockingIOError:
            REAL_WORLD.sleep(_AGAIN_S)
        except OSError:
            return
        else:
            return
