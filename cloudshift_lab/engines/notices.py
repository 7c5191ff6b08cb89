"""What a machine can hear of its own end, and what every provider's way of saying it must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Notice:
    """Word that this machine will be taken away, or may be.

    ``notice_id`` is the same however often the same word is read. ``left_s``: seconds from
    ``heard_at`` (monotonic) until it goes; None of a hint, which names no time. ``says`` is who
    said what, for people. ``simulated``: an emulator said it.
    """

    notice_id: str
    heard_at: float
    left_s: float | None
    says: str
    simulated: bool = False

    @property
    def is_hint(self) -> bool:
        """It may go, and nobody says when: a reason to think of a move, not to stop."""
        return self.left_s is None

    def within_s(self, now: float) -> float:
        """Seconds that are left, >= 0, at ``now`` (monotonic)."""
        return max(0.0, (self.left_s or 0.0) - (now - self.heard_at))


class Dialect(Protocol):
    """One provider's way of saying it. Used by one thread; calls may wait, with a limit."""

    every_s: float
    """Seconds between two looks."""

    def look(self) -> tuple[Notice, ...]:
        """All that is said now; a dialect with long polls waits for news first.

        Raises:
            Unavailable: The service did not answer, or not as it should.
            Denied: It refused us.
        """

    def acknowledge(self, notice: Notice) -> None:
        """Tell the provider that we are ready; one that wants no answer is told nothing.

        Raises:
            Unavailable: It was not told; to be tried again.
        """

    def close(self) -> None:
        """End a call that waits; it may be in another thread."""
