"""Where runs execute: an engine starts, observes and stops one agent per attempt."""

from cloudshift_lab.engines.engine import Engine, Handle, Observation
from cloudshift_lab.engines.local import LocalEngine

__all__ = ["Engine", "Handle", "LocalEngine", "Observation"]
