"""The notebook as a surface: a static output that is saved, and beside it a live widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from IPython.core.getipython import get_ipython
from IPython.display import display as ipython_display

from cloudshift_lab.core.plan import FINAL_PHASES, Decision, MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.lab.desk import Desk, open_move
from cloudshift_lab.lab.follow import Follower
from cloudshift_lab.lab.objects import Migration, Report, Run, Shown, move_report, note, run_report
from cloudshift_lab.lab.render.card import run_line_html
from cloudshift_lab.lab.waiting import Waiting

display: Callable[..., Any] = ipython_display
_FOLLOWERS: dict[str, Follower[Any]] = {}


class Output:
    """One saved output that is replaced as things go on; safe to use from any thread."""

    def __init__(self, shown: Shown) -> None:
        self._handle = display(_bundle(shown), raw=True, display_id=True)
        self._last = shown.as_html()

    def replace(self, shown: Shown) -> None:
        """Show something else in that place."""
        if shown.as_html() != self._last:
            self._last = shown.as_html()
            self._handle.update(_bundle(shown), raw=True)


class NotebookStage:
    """A Jupyter notebook, or IPython in a terminal (then nothing is live)."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def say(self, line: str) -> None:
        print(line)

    def waiting(self, what: str) -> Waiting:
        return Waiting(what, _WaitingLine())

    def progress(self) -> Callable[[str | None], None]:
        return _WaitingLine()

    def watch_run(self, run: Run) -> Shown | None:
        if not has_frontend():
            return run
        _watch_live(run, self._desk)
        return None

    def follow_run(self) -> Callable[[RunView], None]:
        def card(view: RunView) -> Report:
            brief = msgspec.structs.replace(view, traceback=None)  # the error below shows it
            return run_report(brief, self._desk.prompt)

        return _Place(card)

    def follow_move(self, migration: Migration) -> Callable[[MigrationView], None]:
        present_move(migration, self._desk)
        return _ignore

    def open_dashboard(self, run_id: str | None) -> Shown | None:
        if not has_frontend():
            return note("the dashboard needs a browser; in a terminal: cloudshift dashboard")
        from cloudshift_lab.lab.widgets.live import DashboardFrame

        display(DashboardFrame(run_id=run_id or ""))
        return None


class _WaitingLine:
    """An output that tells what is being waited for, and is emptied when that has come."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, line: str | None) -> None:
        shown = _bundle(note(line)) if line is not None else {"text/plain": "", "text/html": ""}
        if self._handle is None and line is None:
            return
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class _Place:
    """Makes its output at the first view and replaces it at every later one."""

    def __init__(self, render: Callable[[RunView], Report]) -> None:
        self._render = render
        self._output: Output | None = None

    def __call__(self, view: RunView) -> None:
        if self._output is None:
            self._output = Output(self._render(view))
        else:
            self._output.replace(self._render(view))


def has_frontend() -> bool:
    """Whether a notebook front end shows our output, so that widgets make sense."""
    return getattr(get_ipython(), "kernel", None) is not None


def present_move(migration: Migration, desk: Desk) -> None:
    """Show a plan with its bill and, in a notebook, Approve and Reject below it."""
    view = migration.view
    output = Output(move_report(view, desk.prompt))
    if not has_frontend() or view.phase in FINAL_PHASES:
        return
    from cloudshift_lab.lab.widgets.live import Approval

    widget = Approval(view, desk.by("approval widget"), _decider(desk))
    display(widget)

    def seen(newest: MigrationView) -> None:
        widget.show(newest)
        output.replace(move_report(newest, desk.prompt))
        desk.remember_plan(newest)

    def lost(message: str) -> None:
        widget.problem = message

    _follow(
        migration.migration_id,
        Follower(
            lambda: desk.peek().migration(migration.migration_id),
            seen,
            lambda newest: newest.phase in FINAL_PHASES,
            lost=lost,
        ),
    )


def stop_followers() -> None:
    """End all background updates of this kernel."""
    for follower in _FOLLOWERS.values():
        follower.stop()
    _FOLLOWERS.clear()


def _watch_live(run: Run, desk: Desk) -> None:
    from cloudshift_lab.lab.widgets.live import RunCard

    view = run.view
    ended = view.state in FINAL_STATES
    output = Output(run_report(view, desk.prompt) if ended else _line(view, desk.prompt))
    if ended:
        return
    widget = RunCard(view=msgspec.to_builtins(view))
    display(widget)

    def fetch() -> tuple[RunView, MigrationView | None]:
        client = desk.peek()
        newest = client.run(run.run_id)
        return newest, open_move(client, newest)

    def seen(newest: tuple[RunView, MigrationView | None]) -> None:
        widget.show(newest[0])
        widget.show_move(newest[1])
        if newest[0].state in FINAL_STATES:
            output.replace(run_report(newest[0], desk.prompt))

    def lost(message: str) -> None:
        widget.problem = message

    _follow(
        run.run_id,
        Follower(fetch, seen, lambda newest: newest[0].state in FINAL_STATES, lost=lost),
    )


def _line(view: RunView, prompt: str) -> Report:
    """A short saved output, since the live card below it says the rest."""
    return Report(view, run_report(view, prompt).text, run_line_html(view))


def _follow(key: str, follower: Follower[Any]) -> None:
    """Start a follower in place of an earlier one of the same thing."""
    earlier = _FOLLOWERS.pop(key, None)
    if earlier is not None:
        earlier.stop()
    _FOLLOWERS[key] = follower
    follower.start()


def _decider(desk: Desk) -> Callable[[str, Decision], MigrationView]:
    return lambda migration_id, decision: desk.client().decide(migration_id, decision)


def _bundle(shown: Shown) -> dict[str, str]:
    return {"text/plain": shown.as_text(), "text/html": shown.as_html()}


def _ignore(_view: MigrationView) -> None:
    """The widget and its follower show every phase already."""
