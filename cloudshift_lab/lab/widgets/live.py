"""The widgets' Python halves: a view that threads may replace, and decisions sent by comm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import msgspec
import traitlets

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.plan import Decision, MigrationView
from cloudshift_lab.core.run import RunView

_HERE = Path(__file__).parent


def _script(*names: str) -> str:
    return "\n".join((_HERE / name).read_text() for name in ("page.js", *names))


class _Live(anywidget.AnyWidget):
    """A view as plain data, and one line about what went wrong (empty when nothing did)."""

    _css = (_HERE / "page.css").read_text()
    view = traitlets.Dict().tag(sync=True)
    problem = traitlets.Unicode("").tag(sync=True)

    def show(self, view: RunView | MigrationView) -> None:
        """Replace what is shown; may be called from any thread."""
        self.view = msgspec.to_builtins(view)
        self.problem = ""


class RunCard(_Live):
    """The live card of a run; ``move`` is its open or last move, empty when it never moved."""

    _esm = _script("move.js", "run_card.js")
    move = traitlets.Dict().tag(sync=True)

    def show_move(self, move: MigrationView | None) -> None:
        """Replace the move that is shown; None keeps the last one."""
        if move is not None:
            self.move = msgspec.to_builtins(move)


class Approval(_Live):
    """Approve and Reject for one plan, then its phases live.

    Args:
        view: The move as shown.
        by: Who decides, for the record.
        decide: Carries a decision that came through the kernel, where no server could take it.
    """

    _esm = _script("move.js", "approval.js")
    by = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        view: MigrationView,
        by: str,
        decide: Callable[[str, Decision], MigrationView],
    ) -> None:
        super().__init__(view=msgspec.to_builtins(view), by=by)
        self._migration_id = view.migration_id
        self._by = by
        self._decide = decide
        self.on_msg(self._receive)

    def _receive(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("type") != "decision":
            return
        try:
            decision = msgspec.convert(content.get("decision"), Decision)
            decision = msgspec.structs.replace(decision, by=self._by)
            self.show(self._decide(self._migration_id, decision))
        except (CloudshiftError, msgspec.ValidationError) as error:
            self.problem = str(error)


class DashboardFrame(anywidget.AnyWidget):
    """The dashboard, addressed from the page through its own Jupyter server."""

    _esm = _script("dashboard.js")
    _css = (_HERE / "page.css").read_text()
    run_id = traitlets.Unicode("").tag(sync=True)
