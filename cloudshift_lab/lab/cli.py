"""``python -m cloudshift_lab VERB ...``: the same verbs in a terminal.

Exit status: 0 done, 1 our error, 2 the call was wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.plan import MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.lab.desk import Desk, open_move
from cloudshift_lab.lab.grammar import parse_words
from cloudshift_lab.lab.objects import Migration, Run, ScriptFailed, Shown, note
from cloudshift_lab.lab.render.card import run_text
from cloudshift_lab.lab.render.figures import number
from cloudshift_lab.lab.render.move import move_text, timeline_text
from cloudshift_lab.lab.render.standing import going_line
from cloudshift_lab.lab.request import Request
from cloudshift_lab.lab.verbs import perform
from cloudshift_lab.lab.waiting import Waiting

PROMPT = "cloudshift"


def main(argv: Sequence[str], *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Do what the words ask; print to ``out``, complain to ``err``; return the exit status."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        _respond(argv, out)
    except UsageError as error:
        print(error.message, file=err)
        return 2
    except ScriptFailed as error:
        print("\n".join(error.report()), file=err)
        return 1
    except CloudshiftError as error:
        print(error.message, file=err)
        return 1
    except BrokenPipeError:  # the reader (``| head``) has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 0
    except KeyboardInterrupt:
        print("interrupted; whatever was started goes on", file=err)
        return 130
    return 0


def _respond(argv: Sequence[str], out: TextIO) -> None:
    call = parse_words(argv, surface="terminal")
    desk = Desk("terminal", PROMPT)
    with desk.one_line_errors():
        shown = perform(Request(call, desk, TerminalStage(desk, out)))
        if shown is None:
            return
        as_json = getattr(call.args, "json", False)
        text = to_json(shown.as_data()).decode() if as_json else shown.as_text()
        print(text, file=out, flush=True)


class TerminalStage:
    """A terminal, or a file or pipe, where nothing is ever overwritten."""

    def __init__(self, desk: Desk, out: TextIO) -> None:
        self._desk = desk
        self._out = out

    def say(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def waiting(self, what: str) -> Waiting:
        return Waiting(what, _Spoken(sys.stderr))

    def progress(self) -> Callable[[str | None], None]:
        return _Spoken(sys.stderr)

    def watch_run(self, run: Run) -> Shown | None:
        if run.wait(self.follow_run()):
            return run
        return note(f"left; {run.name} goes on: {PROMPT} watch {run.name}")

    def follow_run(self) -> Callable[[RunView], None]:
        if not self._out.isatty():
            return _Lines(self._out)
        client = self._desk.client()
        return _Redrawn(self._out, lambda view: run_text(view, PROMPT, open_move(client, view)))

    def follow_move(self, migration: Migration) -> Callable[[MigrationView], None]:
        print(migration.as_text(), file=self._out, flush=True)
        return _Phases(self._out, self._desk.remember_plan)

    def open_dashboard(self, run_id: str | None) -> Shown | None:
        import webbrowser

        from cloudshift_lab.lab.dashboard.launch import ensure_dashboard

        address = ensure_dashboard(self._desk.root).url
        address += f"?run={run_id}" if run_id else ""
        if self._out.isatty():
            webbrowser.open(address)
        return note(f"dashboard (this machine only): {address}")


class _Redrawn:
    """A card drawn over itself."""

    def __init__(self, out: TextIO, render: Callable[[RunView], str]) -> None:
        self._out = out
        self._render = render
        self._lines = 0

    def __call__(self, view: RunView) -> None:
        if self._lines:
            self._out.write(f"\x1b[{self._lines}F\x1b[J")
        self._lines = 0
        if view.state not in FINAL_STATES:
            text = self._render(view)
            self._lines = text.count("\n") + 1
            print(text, file=self._out, flush=True)


class _Lines:
    """A line whenever something has changed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last: tuple[str, int | None] | None = None

    def __call__(self, view: RunView) -> None:
        seen = (view.state, view.step)
        if seen != self._last:
            self._last = seen
            step = "-" if view.step is None else view.step
            line = f"{view.name} {view.state} on {view.placement.target} step {step}"
            print(f"{line} loss {number(view.loss, 4)}", file=self._out, flush=True)


class _Phases:
    """A line per phase entered, and in a terminal below it how far that is, redrawn.

    Args:
        out: Where to.
        shown: Called with each view whose plan was printed: when it is asked again.
    """

    def __init__(self, out: TextIO, shown: Callable[[MigrationView], None]) -> None:
        self._out = out
        self._shown = shown
        self._entered = 0
        self._asked = ""
        self._redrawn = False

    def __call__(self, view: MigrationView) -> None:
        if len(view.timeline) > self._entered:
            self._entered = len(view.timeline)
            self._clear()
            print(timeline_text(view)[-1], file=self._out, flush=True)
        if view.phase == "asking" and view.plan.digest != self._asked:
            self._asked = view.plan.digest
            print(move_text(view, PROMPT), file=self._out, flush=True)
            self._shown(view)
        elif self._out.isatty():
            self._clear()
            line = going_line(view)
            print(line, end="", file=self._out, flush=True)
            self._redrawn = bool(line)

    def _clear(self) -> None:
        """Take away the line that is redrawn."""
        if self._redrawn:
            print("\r\x1b[K", end="", file=self._out)
        self._redrawn = False


class _Spoken:
    """One line about a wait: redrawn in a terminal, said once in a file or pipe."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self._shown = False

    def __call__(self, line: str | None) -> None:
        if self._err.isatty():
            print("\r\x1b[K" + (line or ""), end="", file=self._err, flush=True)
        elif line is not None and not self._shown:
            print(line, file=self._err, flush=True)
        self._shown = True
