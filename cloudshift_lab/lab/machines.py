"""The verb about machines: ask for maintenance, take it on, say it is done, read a passport."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.maintenance import (
    MaintenanceAsk,
    MaintenanceMark,
    MaintenanceState,
    MaintenanceView,
    NodeAction,
)
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.objects import Report, Shown
from cloudshift_lab.lab.render.machines import passport_sheet, request_sheet, requests_sheet
from cloudshift_lab.lab.render.sheet import Sheet, sheet_html, sheet_text
from cloudshift_lab.lab.request import Request

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def maintenance(desk: Desk) -> Report:
    """All requests, those that wait for somebody first."""
    views = desk.client().maintenance()
    return _report(views, requests_sheet(views, desk.world.now(), desk.prompt))


def perform(request: Request) -> Shown:
    """What ``maintenance WHAT NAME`` asks for."""
    return _DOES[request.args.action](request)


def _list(request: Request) -> Report:
    return maintenance(request.desk)


def _ask(request: Request) -> Report:
    args, desk = request.args, request.desk
    node = _name(request, "the machine")
    if not args.words:
        raise UsageError(
            f"say why: {desk.prompt} maintenance ask {node} --do drain --words 'what happened'"
        )
    ask = MaintenanceAsk(
        node=node,
        action=cast("NodeAction", args.do.replace("-", " ")),
        words=args.words,
        by=desk.by(),
        run_id="" if args.run is None else desk.find_run(args.run).run_id,
        within_s=None if args.within is None else _seconds(args.within),
    )
    return _one(desk, desk.client().ask_maintenance(ask))


def _show(request: Request) -> Report:
    name, desk = _name(request, "the request"), request.desk
    views = desk.client().maintenance()
    found = [view for view in views if view.request.request_id == name]
    if not found:
        known = ", ".join(view.request.request_id for view in views) or "none yet"
        raise UsageError(f"no maintenance request called '{name}'; choose one of: {known}")
    return _one(desk, found[0])


def _take(request: Request) -> Report:
    return _mark(request, "acknowledged")


def _done(request: Request) -> Report:
    return _mark(request, "resolved")


def _mark(request: Request, state: MaintenanceState) -> Report:
    args, desk = request.args, request.desk
    mark = MaintenanceMark(state=state, by=desk.by(), words=args.words or "")
    return _one(desk, desk.client().mark_maintenance(_name(request, "the request"), mark))


def _machine(request: Request) -> Report:
    desk = request.desk
    passport = desk.client().passport(_name(request, "the machine"))
    return _report(passport, passport_sheet(passport, desk.world.now(), desk.prompt))


def _name(request: Request, what: str) -> str:
    name: str | None = request.args.name
    if name is None:
        raise UsageError(
            f"name {what}: {request.desk.prompt} maintenance {request.args.action} NAME; "
            f"to see what there is: {request.desk.prompt} maintenance"
        )
    return name


def _seconds(word: str) -> float:
    """A span of time as people type it: ``30m``, ``4h``, ``2d``."""
    number, unit = word[:-1], word[-1:]
    if unit not in _SECONDS or not number.replace(".", "", 1).isdigit():
        raise UsageError(f"'{word}' is no span of time; write 30m, 4h or 2d")
    return float(number) * _SECONDS[unit]


def _one(desk: Desk, view: MaintenanceView) -> Report:
    return _report(view, request_sheet(view, desk.world.now(), desk.prompt))


def _report(data: object, sheet: Sheet) -> Report:
    return Report(data, sheet_text(sheet), sheet_html(sheet))


_DOES: dict[str, Callable[[Request], Report]] = {
    "list": _list, "ask": _ask, "show": _show, "take": _take, "done": _done, "machine": _machine,
}  # fmt: skip
