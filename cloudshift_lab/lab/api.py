"""The Python API: ``import cloudshift_lab as cs; run = cs.train("script.py", on="gcp-sim")``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from cloudshift_lab.core.asks import Carrier, ClosingWish, Noticed
from cloudshift_lab.core.money import to_micro_usd
from cloudshift_lab.core.plan import MissingNodesPolicy
from cloudshift_lab.core.run import Restart, RunSpec
from cloudshift_lab.core.steps import RestoreFormat
from cloudshift_lab.core.views import Target
from cloudshift_lab.lab import machines, stored
from cloudshift_lab.lab.desk import Desk
from cloudshift_lab.lab.objects import Migration, Report, Run, ScriptFailed
from cloudshift_lab.lab.render import card
from cloudshift_lab.lab.render.standing import awaits_decision
from cloudshift_lab.lab.source import (
    check_script,
    name_of,
    script_of_file,
    with_modules_here,
)

__all__ = [
    "Migration",
    "Run",
    "ScriptFailed",
    "approve",
    "branch",
    "cost",
    "diff",
    "du",
    "forget",
    "gc",
    "goodput",
    "jobs",
    "log",
    "maintenance",
    "migrate",
    "move",
    "notice",
    "pin",
    "receipts",
    "reject",
    "repair",
    "restore",
    "resume",
    "run",
    "runs",
    "status",
    "stop",
    "targets",
    "train",
    "unpin",
    "verify",
]


def _desk() -> Desk:
    return Desk("Python", "cloudshift")


def train(
    script: str,
    *,
    name: str | None = None,
    on: str = "local",
    ranks: int = 2,
    nodes: int = 1,
    checkpoint_every: int | str = "auto",
    keep: int | str = 5,
    seed: int = 0,
    env: Mapping[str, str] | None = None,
    budget_usd: float | None = None,
    approve: str = "ask",
    restart: Restart = "auto",
) -> Run:
    """Start a run and return at once.

    Args:
        script: Path of a script, or its source when it holds a line break.
        on: ``cloud`` or ``cloud:region``.
        ranks: Processes of each node, >= 1.
        nodes: Machines, >= 1.
        checkpoint_every: Steps between checkpoints, or a time (``"30s"``, ``"5m"``), or ``"auto"``:
            the interval that loses least to saves and failures, from what a save of this run costs.
        keep: Which checkpoints stay: the newest N, ``"5,every=1000"``, or ``"all"``.
        env: Environment of the script; kept in private files of this machine, so pass a secret by
            reference (the path of the file that holds it).
        budget_usd: Most it may spend.
        approve: Who approves its moves: ``"ask"``, ``"auto"``, ``"never"``, or a rule such as
            ``"auto if price < 2.5/h and at 22:00-06:00 quiet 23:00-07:00"``.
        restart: Whether it goes on by itself when ranks fail or its machine is gone: ``"never"``.

    Raises:
        UsageError: Syntax error, unknown target or policy; nothing was started.
    """
    source = "\n" in script
    if source:
        check_script(script, where="the script")
    desk = _desk()
    spec = RunSpec(
        name=name or desk.free_name("train" if source else name_of(script)),
        script=script if source else script_of_file(script),
        target=on,
        ranks_per_node=ranks,
        save_policy=str(checkpoint_every),
        keep=str(keep),
        seed=seed,
        env=with_modules_here(env or {}) if source else dict(env or {}),
        budget_micro_usd=None if budget_usd is None else to_micro_usd(budget_usd),
        approve=approve,
        python=sys.executable,
        nodes=nodes,
        restart=restart,
    )
    return Run(desk, desk.client().train(spec))


def run(name: str | None = None) -> Run:
    """A run by id or name; without, the only active one, else the newest.

    Raises:
        NotFound: No such run.
    """
    desk = _desk()
    return Run(desk, desk.find_run(name))


def runs() -> tuple[Run, ...]:
    """All runs, newest first."""
    desk = _desk()
    return tuple(Run(desk, view) for view in desk.client().runs())


def status() -> Report:
    """Every run and what waits for a decision, as a table."""
    client = _desk().client()
    views = client.runs()
    waiting = [move for move in client.migrations() if awaits_decision(move)]
    return Report(
        views, card.runs_text(views, waiting, "cloudshift"), card.runs_html(views, waiting)
    )


def maintenance() -> Report:
    """What is to be done to machines, those requests that wait for somebody first."""
    return machines.maintenance(_desk())


def migrate(
    name: str | None = None,
    *,
    to: str,
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
    """Propose a move of a run; nothing happens before it is approved.

    The arguments are those of :meth:`Run.migrate`.

    Raises:
        UsageError: Unknown target. Conflict: another move of this run is open.
    """
    return run(name).migrate(
        to,
        elsewhere=elsewhere,
        closing=closing,
        rehearse=rehearse,
        missing_nodes=missing_nodes,
        min_nodes=min_nodes,
        approvals=approvals,
        limit_usd=limit_usd,
        tolerance=tolerance,
        carrier=carrier,
        expires_s=expires_s,
    )


def receipts(name: str | None = None) -> Report:
    """What a run's moves were to cost and take, and did; ``report.data`` are the receipts.

    Raises:
        Corrupt: One was altered, or left out of the middle.
    """
    return run(name).receipts()


def notice(name: str | None = None, *, within_s: float, side: Noticed = "source") -> Report:
    """Behave as if a machine were taken away in ``within_s`` seconds; a simulated notice."""
    return run(name).notice(within_s, side=side)


def move(name: str | None = None) -> Migration:
    """A move by its id or its run; without, the only one that waits for a decision."""
    desk = _desk()
    return Migration(desk, desk.find_migration(name))


def approve(name: str | None = None) -> Migration:
    """Approve a proposed move.

    Raises:
        StaleDecision: It expired or was decided otherwise.
    """
    return move(name).approve()


def reject(name: str | None = None) -> Migration:
    """Reject a proposed move. Raises StaleDecision as :func:`approve`."""
    return move(name).reject()


def stop(name: str | None = None) -> Run:
    """Checkpoint and stop a run."""
    return run(name).stop()


def resume(name: str | None = None) -> Run:
    """Continue a stopped, failed or lost run from its last checkpoint."""
    return run(name).resume()


def cost(name: str | None = None, *, until: int | None = None) -> Report:
    """What a run has cost so far, what that went into, and what other ways would have cost.

    Args:
        name: Name or id; the only run by default.
        until: The step that it is to reach, for a forecast of the whole.
    """
    return run(name).cost(until)


def goodput(name: str | None = None) -> Report:
    """What a run's time went into, by cause, and what is to be expected.

    Raises:
        UsageError: It has not trained yet.
    """
    return run(name).goodput()


def log(name: str | None = None, *, last: int = 20) -> Report:
    """The newest ``last`` stored steps of a run (0: all), also those in clouds it has left.

    ``report.data`` is a ``core.steps.History``; likewise below.
    """
    return stored.log(_desk(), name, last=last)


def diff(before: str, after: str, *, top: int = 15) -> Report:
    """What changed between two stored steps: ``cs.diff("gpt@100", "gpt@200")``.

    Waits; Ctrl-C leaves the work to the conductor (see :func:`jobs`).

    Raises:
        NotFound: No such run or step.
    """
    return stored.diff(_desk(), [before, after], _silent, top=top)


def branch(
    step: str, *, name: str | None = None, seed: int | None = None, on: str | None = None
) -> Run:
    """A new run from a stored step (``"gpt@400"``); it shares all stored chunks.

    Raises:
        NotFound: No such run or step.
        UsageError: The name is taken, or ``on`` keeps its state in another store.
    """
    return stored.branch(_desk(), step, name=name, seed=seed, on=on)


def restore(step: str, to: str, *, format: RestoreFormat | None = None) -> Report:  # noqa: A002
    """Write a stored step to a file or folder; the format is by the file's ending, if not given.

    Raises:
        UsageError: Something is there already.
        NotFound: No such run or step.
    """
    return stored.restore(_desk(), step, _silent, to=to, format_=format)


def verify(step: str | None = None, *, quick: bool = False) -> Report:
    """Prove that a stored step, or every step of a run, is whole; ``quick`` decodes nothing."""
    return stored.verify(_desk(), step, _silent, is_quick=quick)


def du(name: str | None = None) -> Report:
    """What one run takes up, step by step, or everything in every store."""
    return stored.du(_desk(), name, _silent)


def gc(
    name: str | None = None, *, dry_run: bool = False, now: bool = False,
    without: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Collect what no stored step needs: marked first, deleted an hour later, or at once.

    A step that cannot be read stops it, unless its run has ended and is named in ``without``: of
    such a step only what its records name is kept.
    """
    return stored.gc(_desk(), name, _silent, is_dry_run=dry_run, is_now=now, without=without)


def pin(step: str, *, name: str | None = None) -> Report:
    """Keep a stored step (``"gpt@400"``) until it is unpinned, whatever ``keep`` says.

    Raises:
        NotFound: No such run or step.
        Conflict: The name is another pin's.
    """
    return stored.pin(_desk(), step, _silent, name=name)


def unpin(step: str, *, name: str | None = None) -> Report:
    """Take out the pins of a stored step, or only the one of that name.

    Raises:
        NotFound: There is none.
    """
    return stored.unpin(_desk(), step, _silent, name=name)


def forget(step: str) -> Report:
    """Drop a stored step; a collection takes what only it needs. There is no way back.

    Raises:
        NotFound: No such run or step.
        Conflict: It is pinned, or the run's newest.
    """
    return stored.forget(_desk(), step, _silent)


def repair(name: str | None = None, *, dry_run: bool = False) -> Report:
    """Heal what can be healed of a run's damaged steps, and say what is lost."""
    return stored.repair(_desk(), name, _silent, is_dry_run=dry_run)


def jobs(job: str | None = None, *, cancel: bool = False) -> Report:
    """The conductor's long jobs; or the result of one; or cancel it."""
    return stored.jobs(_desk(), job, _silent, is_cancel=cancel)


def _silent(_line: str | None) -> None:
    """A program's wait is not shown."""


def targets() -> tuple[Target, ...]:
    """The places that can be named in ``on`` and ``to``."""
    return _desk().client().targets()
