"""The card of one run, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.plan import MigrationView
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.lab.render.figures import (
    age,
    clock,
    number,
    rate,
    sparkline_svg,
    sparkline_text,
)
from cloudshift_lab.lab.render.markup import (
    BOX,
    DIM,
    ERROR,
    MONO,
    SIMULATED,
    Markup,
    box,
    code,
    dim,
    next_command,
    simulated_badge,
    table,
    tag,
    text_table,
)
from cloudshift_lab.lab.render.move import timeline_html
from cloudshift_lab.lab.render.saves import saves_lines
from cloudshift_lab.lab.render.standing import standing_lines, state_line

GLYPHS = {
    "starting": "…", "running": "●", "migrating": "◐", "stopping": "◌", "stopped": "■",
    "finished": "✓", "failed": "✗", "lost": "?",
}  # fmt: skip
HEAD = ("run", "id", "state", "where", "step", "loss", "tokens/s", "$/h", "spent", "checkpoint")
NUMERIC = frozenset({4, 5, 6, 7, 8})


def run_text(view: RunView, prompt: str, move: MigrationView | None = None) -> str:
    """The card as lines of text, with the open move if there is one."""
    losses = sparkline_text([loss for _, loss in view.losses])
    lines = [
        f"{view.name} ({view.run_id})  {_state(view)} on {view.placement.target}{_mark(view)}",
        f"  step {_count(view.step)}   loss {number(view.loss, 4)} {losses}".rstrip()
        + f"   {number(view.tokens_per_s, 0)} tokens/s",
        f"  {rate(_price(view))}{_price_note(view)}   spent {format_usd(view.spent_micro_usd)}"
        f"   checkpoint {_checkpoint(view)}",
        *(f"  {line}" for line in saves_lines(view.saves)),
        f"  {_as_of(view)}",
        *([f"  {_notice(view)}"] if view.notice_until is not None else []),
        *(f"  {line}" for line in (*_restarted(view), *_budget(view))),
    ]
    if move is not None:
        lines += [f"  move to {move.plan.target.target}: {state_line(move)}"]
        lines += [f"    {line}" for line in _moment(view, move)]
    if view.error:
        lines += [f"  {_failure(view)}"]
    if view.traceback:
        lines += [view.traceback.rstrip()]
    return "\n".join([*lines, *(f"  next: {line}" for line in _next(view, prompt))])


def run_html(view: RunView, move: MigrationView | None = None) -> str:
    """The card as HTML that stays readable in a saved notebook, with the open move if any."""
    losses = [loss for _, loss in view.losses]
    shown = [
        ("step", _count(view.step)),
        ("loss", number(view.loss, 4)),
        ("", sparkline_svg(losses, f"loss over {len(losses)} points")),
        ("tokens/s", number(view.tokens_per_s, 0)),
        ("price", rate(_price(view)) + _price_note(view)),
        ("spent", format_usd(view.spent_micro_usd)),
        ("checkpoint", _checkpoint(view)),
    ]
    facts = tag(
        "div", *(_fact(label, value) for label, value in shown if value),
        style="display:flex;flex-wrap:wrap;gap:4px 22px;align-items:flex-end;margin:6px 0",
    )  # fmt: skip
    return box(
        f"run {view.name}", _headline(view), facts,
        tag("div", _notice(view), role="alert") if view.notice_until is not None else None,
        _move_html(view, move), _trouble_html(view),
        *(dim(line) for line in (*saves_lines(view.saves), *_restarted(view), *_budget(view))),
        dim(_as_of(view)),
        *(next_command(line) for line in _next(view, "%cloudshift")),
    )  # fmt: skip


def run_line_html(view: RunView) -> str:
    """One line about a run, to stand above its live card."""
    return tag("div", _headline(view), dim(_as_of(view)), style=BOX)


def runs_text(views: Sequence[RunView], open_moves: Sequence[MigrationView], prompt: str) -> str:
    """All runs as a text table, then what waits for a decision."""
    if not views:
        return f"no runs yet; start one with: {_start_hint(prompt)}"
    rows = [_row(view) for view in views]
    lines = text_table(HEAD, rows, NUMERIC)
    for move in open_moves:
        lines += [f"waiting for you: {_waiting(move)}: {prompt} approve {move.migration_id}"]
    return "\n".join(lines)


def runs_html(views: Sequence[RunView], open_moves: Sequence[MigrationView]) -> str:
    """All runs as an HTML table, then what waits for a decision."""
    if not views:
        return box("runs", "No runs yet. Start one with a cell that begins with ",
                   code("%%cloudshift train"))  # fmt: skip
    waiting = (
        tag("div", f"⚠ waiting for you: {_waiting(move)}: ",
            code(f"%cloudshift approve {move.migration_id}"))
        for move in open_moves
    )  # fmt: skip
    return box("runs", table(HEAD, [_row(view) for view in views], NUMERIC), *waiting)


def _headline(view: RunView) -> Markup:
    return tag(
        "div", tag("strong", view.name), f" ({view.run_id})  {_state(view)} on ",
        tag("strong", view.placement.target), simulated_badge(simulated=view.simulated),
    )  # fmt: skip


def _trouble_html(view: RunView) -> Markup | None:
    if not view.error and not view.traceback:
        return None
    style = f"{MONO}white-space:pre-wrap;max-height:360px;overflow:auto;margin:6px 0"
    return tag(
        "div",
        tag("div", _failure(view), style=ERROR, role="alert"),
        tag("pre", view.traceback.rstrip(), style=style) if view.traceback else None,
    )


def _moment(view: RunView, move: MigrationView) -> list[str]:
    """What is to be said of the run's move; the run's own notice counts its time down already."""
    return standing_lines(move, counts_down=view.notice_until is None)


def _move_html(view: RunView, move: MigrationView | None) -> Markup | None:
    if move is None:
        return None
    told = tag("div", f"move to {move.plan.target.target}: {state_line(move)}", role="status")
    more = (tag("div", line) for line in _moment(view, move))
    return tag("div", told, *more, None if move.phase == "proposed" else timeline_html(move))


def _notice(view: RunView) -> str:
    """How long the machine stays, and what will be saved by then."""
    left_s = max(0.0, (view.notice_until or 0.0) - _now(view))
    gone = "this machine is taken away"
    when = f"{gone} in {format_duration(left_s)}" if left_s else f"{gone} now"
    return f"notice: {when}" + (f": {view.notice}" if view.notice else "")


def _restarted(view: RunView) -> list[str]:
    """That it went on by itself, when last, and why."""
    if view.restarted_at is None:
        return []
    times = "once" if view.restarts == 1 else f"{view.restarts} times"
    last = f"{clock(view.restarted_at)}: {view.restarted}"
    return [f"restarted {times}, {'at' if view.restarts == 1 else 'last at'} {last}"]


def _budget(view: RunView) -> list[str]:
    """How it stands with its budget; marked once half of it is spent."""
    return [f"{'! ' if view.budget_alarm else ''}{view.budget}"] if view.budget else []


def _failure(view: RunView) -> str:
    rank = "" if view.error_rank is None else f"rank {view.error_rank}: "
    return f"{rank}{view.error or 'the script raised'}"


def _fact(label: str, value: str) -> Markup:
    return tag("span", tag("div", label, style=f"font-size:11px;{DIM}") if label else None, value)


def _state(view: RunView) -> str:
    return f"{GLYPHS[view.state]} {view.state}"


def _mark(view: RunView) -> str:
    return f"  [{SIMULATED}]" if view.simulated else ""


def _price(view: RunView) -> int:
    return 0 if view.state in FINAL_STATES else view.price_micro_usd_per_h


def _price_note(view: RunView) -> str:
    mark = SIMULATED if view.simulated and SIMULATED not in view.price_source.lower() else ""
    words = ", ".join(word for word in (view.price_source, mark) if word)
    return f" ({words})" if words else ""


def _now(view: RunView) -> float:
    return view.as_of or view.progress_at or view.created_at


def _checkpoint(view: RunView) -> str:
    if view.checkpoint_step is None:
        return "none yet"
    if view.checkpoint_at is None:
        return f"step {view.checkpoint_step}"
    return f"step {view.checkpoint_step}, {age(view.checkpoint_at, _now(view))}"


def _as_of(view: RunView) -> str:
    newest = age(view.progress_at, _now(view))
    origin = f"branched from {view.origin}; " if view.origin else ""
    return f"{origin}as of {clock(_now(view))}, newest step {newest}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _next(view: RunView, prompt: str) -> list[str]:
    """What a person would do next."""
    if view.state == "failed":
        rank = "" if view.error_rank is None else f" --rank {view.error_rank}"
        return [f"{prompt} logs {view.name}{rank}", f"{prompt} resume {view.name}"]
    if view.state in ("stopped", "lost"):
        return [f"{prompt} resume {view.name}", f"{prompt} cost {view.name}"]
    if view.state in FINAL_STATES:
        return [f"{prompt} cost {view.name}"]
    return [f"{prompt} watch {view.name}"]


def _row(view: RunView) -> tuple[str, ...]:
    return (
        view.name, view.run_id, _state(view), view.placement.target + _mark(view),
        _count(view.step), number(view.loss, 4), number(view.tokens_per_s, 0), rate(_price(view)),
        format_usd(view.spent_micro_usd), _checkpoint(view),
    )  # fmt: skip


def _waiting(move: MigrationView) -> str:
    plan = move.plan
    return f"{move.run_name} to {plan.target.target} (until {clock(plan.expires_at)})"


def _start_hint(prompt: str) -> str:
    return "%%cloudshift train" if prompt.startswith("%") else f"{prompt} train script.py"
