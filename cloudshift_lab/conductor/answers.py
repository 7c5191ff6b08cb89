"""What the conductor's answers mean to a client, and what its silence does."""

from __future__ import annotations

from cloudshift_lab.core.errors import Corrupt, Unavailable, error_from_wire
from cloudshift_lab.core.views import Problem
from cloudshift_lab.core.wire import from_json


def lost_message(method: str, error: Exception, timeout_s: float) -> str:
    """Why there is no answer, and what to do.

    Args:
        method: Of the request; GET changes nothing.
        error: What the connection said.
        timeout_s: How long was waited, seconds.
    """
    if isinstance(error, TimeoutError):
        return (
            f"the conductor did not answer within {timeout_s:.0f} s; "
            "check `cloudshift status`, then try again"
        )
    if isinstance(error, ConnectionRefusedError):
        return "the conductor is not running; run the command again to start it"
    if method == "GET":
        return "the conductor stopped while answering; run the command again"
    return (
        "the conductor stopped while answering, so whether it acted is unknown; "
        "check `cloudshift status` before trying again (runs go on without it)"
    )


def problem(status: int, data: bytes) -> Exception:
    """The error that an answer carries."""
    try:
        told = from_json(data, Problem, what="the conductor's answer")
    except Corrupt:
        return Unavailable(f"the conductor answered with HTTP {status}; see its conductor.log")
    return error_from_wire(told.kind, told.message)
