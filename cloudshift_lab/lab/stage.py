"""What a surface can do beyond printing: follow something live, open a dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cloudshift_lab.core.plan import MigrationView
from cloudshift_lab.core.run import RunView
from cloudshift_lab.lab.objects import Migration, Run, Shown
from cloudshift_lab.lab.waiting import Waiting


class Stage(Protocol):
    """A notebook or a terminal."""

    def say(self, line: str) -> None:
        """Tell what is being done now, where that takes a while."""

    def waiting(self, what: str) -> Waiting:
        """A context that tells, after a second, what a call is waiting for."""

    def progress(self) -> Callable[[str | None], None]:
        """A place for the newest line about a wait; None ends it."""

    def watch_run(self, run: Run) -> Shown | None:
        """Follow a run live (a terminal stays, a notebook returns at once)."""

    def follow_run(self) -> Callable[[RunView], None]:
        """A place that shows the newest state of a run that is being waited for."""

    def follow_move(self, migration: Migration) -> Callable[[MigrationView], None]:
        """Show a plan now, and give a place for the newest state of the move."""

    def open_dashboard(self, run_id: str | None) -> Shown | None:
        """Show the live dashboard."""
