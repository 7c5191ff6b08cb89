"""The only door to time, randomness and sleep, so that a simulation can own all three."""

from __future__ import annotations

import random
import secrets
import time
from typing import Protocol


class World(Protocol):
    """Clock, randomness and sleep of one process, real or simulated."""

    def now(self) -> float:
        """Wall-clock seconds since the epoch, UTC. For people and records, never for safety."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back. For deadlines and expiry."""

    def sleep(self, seconds: float) -> None:
        """Wait; a simulated world moves its clock instead."""

    def random(self) -> float:
        """Uniform in [0, 1), for jitter."""

    def new_id(self, prefix: str) -> str:
        """A fresh identifier ``prefix-xxxxxxxxxxxx``; doubles as a nonce."""


class RealWorld:
    """The operating system's clock and entropy."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def random(self) -> float:
        return random.random()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{secrets.token_hex(6)}"


REAL_WORLD = RealWorld()
