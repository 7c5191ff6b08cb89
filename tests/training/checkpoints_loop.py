"""A training loop that saves every step until it is stopped: python checkpoints_loop.py URL."""

from __future__ import annotations

import signal
import sys
import time

import torch

from cloudshift_lab.training.checkpoints import CheckpointManager

if __name__ == "__main__":
    # A shell starts what runs in its background with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    manager = CheckpointManager(sys.argv[1], "loop", save_policy="1", keep="all")
    state = {"w": torch.zeros(10), "n": 0}
    for step in range(1, 100_000):
        state["n"] = step
        manager.save(step, state)
        print(f"step {step}", flush=True)
        time.sleep(0.02)
