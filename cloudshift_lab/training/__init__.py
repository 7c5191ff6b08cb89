"""Inside the worker: an ordinary training script becomes a run that can be moved."""

from cloudshift_lab.training.session import Drained, Session

__all__ = ["Drained", "Session"]
