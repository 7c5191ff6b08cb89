"""Maintenance requests, and the passports of the machines they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloudshift_lab.core.maintenance import Exhibit, MaintenanceView, Passport
from cloudshift_lab.core.money import format_duration
from cloudshift_lab.lab.render.figures import ago, clock
from cloudshift_lab.lab.render.sheet import Sheet, Table

LIST_HEAD = ("request", "state", "machine", "asked for", "since", "why")
EXHIBIT_HEAD = ("seen", "value", "limit", "when")
PASSPORT_HEAD = ("when", "what", "in words", "run", "request")


def requests_sheet(views: Sequence[MaintenanceView], now: float, prompt: str) -> Sheet:
    """All requests, those that wait for somebody first."""
    waiting = [view for view in views if view.state != "resolved"]
    if not views:
        return Sheet(
            "maintenance", "no maintenance is asked for",
            following=(f"{prompt} maintenance ask MACHINE --do drain --words 'what happened'",),
        )  # fmt: skip
    count = "1 request waits" if len(waiting) == 1 else f"{len(waiting)} requests wait"
    following = []
    if waiting:
        newest = waiting[0].request.request_id
        following = [f"{prompt} maintenance show {newest}", f"{prompt} maintenance take {newest}"]
    return Sheet(
        "maintenance",
        f"maintenance: {count}, {len(views) - len(waiting)} resolved",
        (Table(LIST_HEAD, [_row(view, now) for view in views]),),
        troubles=tuple(_troubles(views)),
        following=tuple(following),
    )


def request_sheet(view: MaintenanceView, now: float, prompt: str) -> Sheet:
    """One request with its evidence, who did what, and where it was sent."""
    request = view.request
    left = ""
    if request.deadline is not None and view.state != "resolved":
        rest_s = request.deadline - now
        left = f", due in {format_duration(rest_s)}" if rest_s > 0 else ", overdue"
    following = {
        "open": (f"maintenance take {request.request_id}",),
        "acknowledged": (f"maintenance done {request.request_id} --words 'what was done'",),
        "resolved": (f"maintenance machine {request.node}",),
    }
    return Sheet(
        "maintenance",
        f"{request.request_id} ({view.state}{left}): {request.action} {request.node}",
        (
            Table(EXHIBIT_HEAD, [_exhibit(each) for each in request.evidence], frozenset({1, 2}),
                  title="Evidence" if request.evidence else ""),
        ),
        notes=(request.words, *_history(view)),
        troubles=tuple(_troubles([view])),
        following=tuple(f"{prompt} {line}" for line in following[view.state]),
    )  # fmt: skip


def passport_sheet(passport: Passport, now: float, prompt: str) -> Sheet:
    """Everything that happened to a machine, oldest first."""
    use = "nothing new is started there" if passport.is_cordoned else "in use"
    rows = [
        (ago(each.at, now), each.what, each.words, each.run_id, each.request_id)
        for each in passport.entries
    ]
    return Sheet(
        "machine", f"{passport.node}: {use}", (Table(PASSPORT_HEAD, rows),),
        following=(f"{prompt} maintenance",),
    )  # fmt: skip


def _row(view: MaintenanceView, now: float) -> tuple[str, ...]:
    request = view.request
    times = f" (seen {view.times_seen} times)" if view.times_seen > 1 else ""
    return (
        request.request_id, view.state, request.node, request.action,
        ago(request.opened_at, now), f"{request.words}{times}",
    )  # fmt: skip


def _exhibit(each: Exhibit) -> tuple[str, ...]:
    when = "" if each.at is None else clock(each.at) if each.at > 1e9 else f"step {each.at:.0f}"
    return each.what, each.value, each.limit, when


def _history(view: MaintenanceView) -> Iterable[str]:
    request = view.request
    about = f" about {request.run_id}" if request.run_id else ""
    yield f"opened by {request.by}{about} at {clock(request.opened_at)}"
    for mark in view.marks:
        words = f": {mark.words}" if mark.words else ""
        yield f"{mark.state} by {mark.by} at {clock(mark.at)}{words}"
    sent = [each.sink for each in view.deliveries if each.is_there]
    if sent:
        yield f"its newest state is at: {', '.join(sent)}"


def _troubles(views: Sequence[MaintenanceView]) -> Iterable[str]:
    for view in views:
        for each in view.deliveries:
            if each.trouble:
                yield f"{view.request.request_id} is not at {each.sink} yet: {each.trouble}"
