"""Every error a person or a program can meet, each with what to do about it.

    CloudshiftError
    ├── UsageError          fix: the call, the cell or the configuration is wrong
    ├── NotFound            fix: the named thing does not exist
    ├── Denied              fix: credentials or permissions
    ├── Unavailable         retry: until the caller's deadline
    ├── Conflict            ask: somebody else got there first
    │   ├── Fenced          stop: a newer generation owns the run
    │   └── StaleDecision   ask: what was approved is no longer what is proposed
    ├── Corrupt             stop: bytes differ from their hash; never retried
    ├── Mismatch            ask: the target computes something else than the source did
    ├── NodesMissing        ask: some nodes of an attempt did not come up, or died
    ├── Exhausted           ask: deadline, grace, budget, quota or space is used up
    └── Unsupported         fix: this part cannot do that

Messages are one line, understandable without the source, and end with what to do.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Action = Literal["fix", "retry", "stop", "ask"]


class CloudshiftError(Exception):
    """Base of all our errors.

    Args:
        message: One line for a researcher, ending with what to do.
        facts: Small typed details (ids, sizes); never a secret.
    """

    action: ClassVar[Action] = "stop"

    def __init__(self, message: str, **facts: str | int | float | bool | None) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback: the message is made to stand alone."""
        return [f"{type(self).__name__}: {self.message}"]


class UsageError(CloudshiftError, ValueError):
    """The call, the cell or the configuration is wrong; nothing was changed."""

    action: ClassVar[Action] = "fix"


class NotFound(CloudshiftError):
    """The named object, run, step or target does not exist."""

    action: ClassVar[Action] = "fix"


class Denied(CloudshiftError):
    """The store or service refused our credentials or permissions."""

    action: ClassVar[Action] = "fix"


class Unavailable(CloudshiftError):
    """A store or service did not answer in time; the outcome may be unknown."""

    action: ClassVar[Action] = "retry"


class Conflict(CloudshiftError):
    """Somebody else got there first."""

    action: ClassVar[Action] = "ask"


class Fenced(Conflict):
    """A newer generation owns the run: this owner must stop publishing at once."""

    action: ClassVar[Action] = "stop"


class StaleDecision(Conflict):
    """The decision was taken on a plan that has changed, expired or is decided already."""

    action: ClassVar[Action] = "ask"


class Corrupt(CloudshiftError):
    """Stored bytes differ from their hash or do not parse; never retried."""

    action: ClassVar[Action] = "stop"


class Mismatch(CloudshiftError):
    """A rehearsed loss or a replayed state differs from the source's; nothing was moved."""

    action: ClassVar[Action] = "ask"


class NodesMissing(CloudshiftError):
    """Some nodes of an attempt did not come up, or died; fact ``nodes_up``: how many are there."""

    action: ClassVar[Action] = "ask"


class Exhausted(CloudshiftError):
    """A deadline, grace period, budget, quota or disk is used up."""

    action: ClassVar[Action] = "ask"


class Unsupported(CloudshiftError):
    """This adapter cannot do what was asked."""

    action: ClassVar[Action] = "fix"


_BY_NAME: dict[str, type[CloudshiftError]] = {
    cls.__name__: cls
    for cls in (
        UsageError,
        NotFound,
        Denied,
        Unavailable,
        Conflict,
        Fenced,
        StaleDecision,
        Corrupt,
        Mismatch,
        NodesMissing,
        Exhausted,
        Unsupported,
        CloudshiftError,
    )
}


def error_from_wire(kind: str, message: str) -> CloudshiftError:
    """Rebuild an error that another process sent by class name and message."""
    return _BY_NAME.get(kind, CloudshiftError)(message)
