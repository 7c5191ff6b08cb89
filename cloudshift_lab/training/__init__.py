"""Inside the worker: an ordinary training script becomes a run that can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudshift_lab.training.cursor import Cursor
from cloudshift_lab.training.session import Drained, Session

if TYPE_CHECKING:
    from cloudshift_lab.training.checkpoints import CheckpointManager

__all__ = ["CheckpointManager", "Cursor", "Drained", "Session"]


def __getattr__(name: str) -> object:
    """Import the manager only when asked: a session does without DCP."""
    if name == "CheckpointManager":
        from cloudshift_lab.training.checkpoints import CheckpointManager

        return CheckpointManager
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
