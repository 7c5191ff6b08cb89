"""Processes that must not outlive the one that started them; the standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

NOTICES_ENV = "CLOUDSHIFT_NOTICE_SIGNALS"
"""Names the signals by which an agent hears that its machine goes."""
_PR_SET_PDEATHSIG = 1
_WATCH_S = 0.5


def die_with_parent(parent_pid: int) -> None:
    """End this process when its parent ends, however that happens; at once if it has already.

    A signal that is a notice is left to the agent: Slurm sends it to all processes of a step, and
    what they would do by themselves is end. SIGTERM stays what it is, torchrun ends ranks with it.
    """
    for name in os.environ.get(NOTICES_ENV, "").split():
        if name != "SIGTERM":
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_WATCH_S)
    os._exit(1)
