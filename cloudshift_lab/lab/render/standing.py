"""Where a move stands: who approved, how far it is, what was rehearsed, what a notice leaves."""

from __future__ import annotations

from cloudshift_lab.core.money import format_bytes, format_duration
from cloudshift_lab.core.plan import Decision, Going, MigrationView
from cloudshift_lab.lab.render.figures import clock

WAITING_PHASES: frozenset[str] = frozenset({"proposed", "asking"})
"""Phases in which nothing happens before somebody decides."""


def awaits_decision(view: MigrationView) -> bool:
    """Whether somebody is asked now."""
    return view.phase in WAITING_PHASES


def phase_title(phase: str) -> str:
    """A phase as people read it: ``source retired``."""
    return phase.replace("_", " ")


def state_line(view: MigrationView) -> str:
    """Where the move stands and who decided, in one sentence."""
    words = [f"state: {phase_title(view.phase)}", *_deciders(view)]
    if awaits_decision(view):
        words += [_deadline(view), *([waiting] if (waiting := _waiting(view)) else [])]
    if view.sealed_step is not None:
        words.append(f"moved at step {view.sealed_step}")
    if view.pause_s is not None:
        words.append(_pause(view.pause_s, view.still_s))
    if view.bytes_moved:
        expected = format_bytes(view.plan.bill.transfer_bytes)
        words.append(f"{format_bytes(view.bytes_moved)} moved ({expected} expected)")
    if view.error:
        words.append(view.error)
    return " · ".join(words)


def standing_lines(view: MigrationView, *, counts_down: bool = True) -> list[str]:
    """What else is to be said of this moment, a line each.

    Without ``counts_down`` a notice says only what becomes of the step: its time stands elsewhere.
    """
    return [
        line
        for line in (
            _asked_again(view),
            _notice(view, counts_down=counts_down),
            _rehearsed(view),
            going_line(view),
            f"not moved: {view.partial}" if view.partial else "",
        )
        if line
    ]


def going_line(view: MigrationView) -> str:
    """How far the pending effect is: bytes, speed, time left; empty when nothing is known."""
    going = view.going
    if going is None or going == Going():
        return ""
    words = [going.detail] if going.detail else []
    if going.total_bytes:
        done = f"{format_bytes(going.done_bytes)} of {format_bytes(going.total_bytes)}"
        words.append(f"{done} ({min(1.0, going.done_bytes / going.total_bytes):.0%})")
    elif going.done_bytes:
        words.append(format_bytes(going.done_bytes))
    if going.bytes_per_s:
        words.append(f"{format_bytes(round(going.bytes_per_s))}/s")
    if going.eta_s is not None:
        words.append(f"{format_duration(going.eta_s)} left")
    return f"{phase_title(view.phase)}: {' · '.join(words)}" if words else ""


def _deciders(view: MigrationView) -> list[str]:
    """Everybody who counts, and how many are still to come."""
    if view.decision is not None and view.decision.verdict == "reject":
        return [_decided(view.decision)]
    who = view.approvals or ((view.decision,) if view.decision is not None else ())
    words = [_decided(each) for each in who]
    left = view.plan.approvals_needed - len(who)
    if awaits_decision(view) and who and left > 0:
        words.append(f"{left} more {'approval is' if left == 1 else 'approvals are'} needed")
    return words


def _decided(decision: Decision) -> str:
    verb = "approved" if decision.verdict == "approve" else "rejected"
    return f"{verb} by {decision.by}" + (f" at {clock(decision.at)}" if decision.at else "")


def _waiting(view: MigrationView) -> str:
    """What kept the run's own rule from deciding; empty where it has nothing to say."""
    return f"its rule: {view.waiting}" if view.waiting else ""


def _deadline(view: MigrationView) -> str:
    expires = f"expires at {clock(view.plan.expires_at)}"
    if view.phase == "asking":
        return f"nothing goes on without another approval; {expires}, then it is rolled back"
    return f"nothing happens without approval; {expires}"


def _pause(pause_s: float, still_s: float | None) -> str:
    words = f"pause {format_duration(pause_s)}"
    if still_s is None or abs(pause_s - still_s) < 0.05:
        return words
    return f"{words} ({format_duration(still_s)} of it nothing was computed)"


def _asked_again(view: MigrationView) -> str:
    """What got worse since the plan was approved."""
    if view.phase != "asking" or not view.timeline:
        return ""
    return f"asked again: {view.timeline[-1].detail or 'the bill is worse than approved'}"


def _notice(view: MigrationView, *, counts_down: bool) -> str:
    if view.notice_s is None:
        return ""
    goes = f"notice: the source's machine goes in {format_duration(view.notice_s)}; "
    is_sealed = view.sealed_step is not None
    saved = f"step {view.sealed_step} is saved" if is_sealed else "its newest step is saved first"
    return f"{goes if counts_down else ''}{saved}, the rest needs only the source's store"


def _rehearsed(view: MigrationView) -> str:
    """What the rehearsal found: told by the phase that was entered after it."""
    phases = [entry.phase for entry in view.timeline]
    if "rehearsing" not in phases:
        return ""
    after = view.timeline[len(phases) - phases[::-1].index("rehearsing") :]
    passed = after and after[0].phase in ("draining", "asking")
    if not passed or not after[0].detail or after[0].phase == "asking":
        return ""
    return f"rehearsed: {after[0].detail}"
