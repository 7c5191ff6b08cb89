"""What a request gives back: runs, moves and reports that show themselves in text and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudshift_lab.core.asks import Carrier, ClosingWish, Noticed, refuse_unused_places
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.money import to_micro_usd
from cloudshift_lab.core.plan import FINAL_PHASES, MigrationView, MissingNodesPolicy
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.lab.desk import Desk, open_move
from cloudshift_lab.lab.render import card, move
from cloudshift_lab.lab.render.cost import cost_sheet
from cloudshift_lab.lab.render.markup import MONO, box, tag
from cloudshift_lab.lab.render.records import notice_sheet, receipts_sheet
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text
from cloudshift_lab.lab.render.wellbeing import goodput_sheet, health_sheet


class Shown(Protocol):
    """Anything that can be shown on every surface."""

    def as_text(self) -> str:
        """For a terminal and ``text/plain``."""

    def as_html(self) -> str:
        """For a notebook, also when it is saved and opened elsewhere."""

    def as_data(self) -> object:
        """For ``--json``."""


class Displayed:
    """Lets IPython show a :class:`Shown`."""

    def _repr_mimebundle_(
        self: Shown, include: object = None, exclude: object = None
    ) -> dict[str, str]:
        del include, exclude
        return {"text/plain": self.as_text(), "text/html": self.as_html()}


@dataclass(frozen=True, repr=False)
class Report(Displayed):
    """Something rendered already."""

    data: object
    text: str
    html: str

    def as_text(self) -> str:
        return self.text

    def as_html(self) -> str:
        return self.html

    def as_data(self) -> object:
        return self.data

    def __repr__(self) -> str:
        return self.text


def note(text: str) -> Report:
    """A plain message."""
    return Report(text, text, tag("div", text, role="status"))


def printed(text: str, label: str) -> Report:
    """Output of a program, kept as it was."""
    style = f"{MONO}white-space:pre-wrap;max-height:480px;overflow:auto;margin:0"
    return Report(text, text, box(label, tag("pre", text, style=style)))


def run_report(view: RunView, prompt: str, open_one: MigrationView | None = None) -> Report:
    """The card of a run, with its open move, as it was at one moment."""
    return Report(view, card.run_text(view, prompt, open_one), card.run_html(view, open_one))


def move_report(view: MigrationView, prompt: str) -> Report:
    """A plan with its bill and progress as they were at one moment."""
    return Report(view, move.move_text(view, prompt), move.move_html(view))


class ScriptFailed(CloudshiftError):
    """The training script raised; the message is the failing rank's own traceback."""

    action = "fix"

    def __init__(self, view: RunView) -> None:
        rank = "a rank" if view.error_rank is None else f"rank {view.error_rank}"
        super().__init__(
            f"{rank} of {view.name} failed: {view.error or 'see its logs'}; "
            "mend the script and start it again",
            run_id=view.run_id,
            rank=view.error_rank,
        )
        self._traceback = view.traceback

    def report(self) -> list[str]:
        """The failing rank's traceback, then what to do."""
        return [*(self._traceback or "").rstrip().splitlines(), self.message]

    def _render_traceback_(self) -> list[str]:
        return self.report()


class Run(Displayed):
    """A run, bound to the conductor that drives it. Every property asks anew."""

    def __init__(self, desk: Desk, view: RunView) -> None:
        self._desk = desk
        self._last = view
        self.run_id = view.run_id
        self.name = view.name

    @property
    def view(self) -> RunView:
        """The newest state (as a frozen struct)."""
        self._last = self._desk.client().run(self.run_id)
        return self._last

    @property
    def state(self) -> str:
        return self.view.state

    def stop(self) -> Run:
        """Checkpoint and stop."""
        self._last = self._desk.client().stop(self.run_id)
        return self

    def resume(self) -> Run:
        """Continue from the last checkpoint after a stop, a failure or a loss."""
        self._last = self._desk.client().resume(self.run_id)
        return self

    def logs(self, rank: int | None = None, tail: int = 40) -> str:
        """The newest lines a rank printed."""
        return self._desk.client().logs(self.run_id, rank=rank, tail=tail)

    def cost(self, until: int | None = None) -> Report:
        """What it has cost so far, what that went into, and what other ways would have cost.

        Args:
            until: The step that it is to reach, for a forecast of the whole.

        Raises:
            UsageError: It is past that step.
        """
        view = self._desk.client().cost(self.run_id, until=until)
        sheet = cost_sheet(view, self.name, self._desk.prompt)
        return Report(view, sheet_text(sheet), sheet_html(sheet))

    def health(self) -> Report:
        """What its detectors find, with evidence; ``report.data`` is a ``HealthReport``."""
        found = self._desk.client().run_health(self.run_id)
        sheet = health_sheet(found, self._desk.prompt)
        return Report(found, sheet_text(sheet), sheet_html(sheet))

    def goodput(self) -> Report:
        """What its time went into, by cause; ``report.data`` is a ``GoodputReport``.

        Raises:
            UsageError: It has not trained yet.
        """
        found = self._desk.client().run_goodput(self.run_id)
        sheet = goodput_sheet(found, self._desk.prompt)
        return Report(found, sheet_text(sheet), sheet_html(sheet))

    def migrate(
        self,
        to: str,
        *,
        elsewhere: Sequence[str] = (),
        closing: ClosingWish = "auto",
        rehearse: int | None = None,
        missing_nodes: MissingNodesPolicy | None = None,
        min_nodes: int = 1,
        approvals: int | None = None,
        limit_usd: float | None = None,
        tolerance: float | None = None,
        carrier: Carrier = "pull",
        expires_s: float | None = None,
    ) -> Migration:
        """Propose a move; nothing happens before it is approved.

        Args:
            to: ``cloud`` or ``cloud:region``.
            elsewhere: Other places, tried in order when ``to`` does not come up; only with
                ``missing_nodes="elsewhere"``, which is then the default.
            closing: How the last gap is closed: ``"copy"`` of bytes, ``"replay"`` of steps, or
                ``"auto"``, the way in which the run stands still less by estimate, unless its
                first new step would come more than twice as late.
            rehearse: Steps that the target computes, and compares, before the commit.
            missing_nodes: ``"roll-back"``, ``"wait"``, ``"shrink"`` or ``"elsewhere"``, the last
                by default where other places are given.
            min_nodes: With ``"shrink"``: how few are enough.
            approvals: How many different people or policies must approve.
            limit_usd: What the move itself may cost before it is undone.
            tolerance: How far a rehearsed loss may be from the source's, relative to the larger;
                0.001 by default, 0 is bit by bit. Near losses are closed by ``"copy"``.
            carrier: ``"pull"`` by the target or ``"push"`` by the source.
            expires_s: How long it may be approved, seconds.

        Raises:
            UsageError: Unknown target, the place it is at, other places with a policy that would
                never try them, or something else that cannot be.
            Conflict: Another move of this run is open.
        """
        refuse_unused_places(to, tuple(elsewhere), missing_nodes)
        view = self._desk.client().migrate(
            self.run_id,
            to,
            expires_s=expires_s,
            closing=closing,
            rehearse=rehearse,
            missing_nodes=missing_nodes or ("elsewhere" if elsewhere else "roll-back"),
            min_nodes=min_nodes,
            elsewhere=tuple(elsewhere),
            approvals=approvals,
            limit_micro_usd=None if limit_usd is None else to_micro_usd(limit_usd),
            tolerance=tolerance,
            carrier=carrier,
        )
        return Migration(self._desk, view)

    def receipts(self) -> Report:
        """What its moves were to cost and take, and did; ``report.data`` are the receipts.

        Raises:
            Corrupt: One was altered, or left out of the middle.
        """
        found = self._desk.client().receipts(self.run_id)
        sheet = receipts_sheet(self.name, found, self._desk.prompt)
        return Report(found, sheet_text(sheet), sheet_html(sheet))

    def notice(self, within_s: float, *, side: Noticed = "source") -> Report:
        """Behave as if a machine were taken away in ``within_s`` seconds; a simulated notice.

        Raises:
            UsageError: Out of range, or the run does not run.
        """
        view = self._desk.client().notice(self.run_id, within_s, side=side)
        sheet = notice_sheet(self.name, view, self._desk.by(), self._desk.prompt)
        return Report(view, sheet_text(sheet), sheet_html(sheet))

    def wait(
        self, show: Callable[[RunView], None] | None = None, *, until_step: int | None = None
    ) -> bool:
        """Stay until it has ended or reached ``until_step``; False after Ctrl-C (it goes on).

        Raises:
            ScriptFailed: The training script raised.
        """

        def seen(view: object) -> None:
            assert isinstance(view, RunView)
            self._last = view
            if show is not None:
                show(view)

        def enough(_: object) -> bool:
            far = until_step is not None and (self._last.step or 0) >= until_step
            return far or self._last.state in FINAL_STATES

        client = self._desk.client()
        done = self._desk.wait(lambda: client.run(self.run_id), enough, seen)
        if done and self._last.state == "failed":
            raise ScriptFailed(self._last)
        return done

    def as_text(self) -> str:
        return self._report().text

    def as_html(self) -> str:
        return self._report().html

    def as_data(self) -> object:
        return self._report().data

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, name={self.name!r}, state={self._last.state!r})"

    def report(self) -> Report:
        """The newest card.

        Raises:
            Unavailable: The conductor does not answer.
        """
        view = self.view
        return run_report(view, self._desk.prompt, open_move(self._desk.client(), view))

    def _report(self) -> Report:
        """The newest card that can be had: showing a run must not fail."""
        try:
            return self.report()
        except CloudshiftError:
            return run_report(self._last, self._desk.prompt)


class Migration(Displayed):
    """A proposed or running move, bound to the conductor that drives it."""

    def __init__(self, desk: Desk, view: MigrationView) -> None:
        self._desk = desk
        self._last = view
        self.migration_id = view.migration_id
        desk.remember_plan(view)

    @property
    def view(self) -> MigrationView:
        """The newest state (as a frozen struct)."""
        self._last = self._desk.client().migration(self.migration_id)
        return self._last

    @property
    def phase(self) -> str:
        return self.view.phase

    def approve(self) -> Migration:
        """Approve the plan that was shown.

        Raises:
            StaleDecision: It expired, was decided otherwise, or has changed.
        """
        self._last = self._desk.decide(self._last, "approve")
        return self

    def reject(self) -> Migration:
        """Reject the plan that was shown. Raises StaleDecision as :meth:`approve`."""
        self._last = self._desk.decide(self._last, "reject")
        return self

    def wait(self, show: Callable[[MigrationView], None] | None = None) -> bool:
        """Stay until it has ended; True then, False after Ctrl-C (the move goes on)."""

        def seen(view: object) -> None:
            assert isinstance(view, MigrationView)
            self._last = view
            if show is not None:
                show(view)

        client = self._desk.client()
        return self._desk.wait(
            lambda: client.migration(self.migration_id),
            lambda _: self._last.phase in FINAL_PHASES,
            seen,
        )

    def _ipython_display_(self) -> None:
        """In a notebook: the plan, kept when it is saved, and below it the live approval."""
        from cloudshift_lab.lab.notebook import present_move

        present_move(self, self._desk)

    def as_text(self) -> str:
        return move.move_text(self._newest(), self._desk.prompt)

    def as_html(self) -> str:
        return move.move_html(self._newest())

    def as_data(self) -> object:
        return self._newest()

    def __repr__(self) -> str:
        target = self._last.plan.target.target
        return f"Migration({self.migration_id!r}, to={target!r}, phase={self._last.phase!r})"

    def _newest(self) -> MigrationView:
        try:
            return self.view
        except CloudshiftError:
            return self._last
