"""One open dashboard page: run picker, head line, charts and costs, refreshed once a second."""

from __future__ import annotations

import html
import time
from typing import Any

import panel
from panel.io.resources import LOCAL_DIST

from cloudshift_lab.core.money import format_duration, format_usd
from cloudshift_lab.core.run import FINAL_STATES, RunView
from cloudshift_lab.core.views import CostView, Series
from cloudshift_lab.lab.dashboard import charts, costs
from cloudshift_lab.lab.dashboard.feed import Feed, Snapshot

pn: Any = panel  # has no types

_PERIOD_MS = 1000
_STALE_S = 5.0
UNKNOWN = "\u2013"
_CONFIG = {"displaylogo": False, "responsive": True}


class Page:
    """The state of one browser session.

    Args:
        feed: Where data comes from, shared by all pages.
        wanted: Run id the address asked for, if any.
        dark: Whether the page is shown in a dark theme.
    """

    def __init__(self, feed: Feed, *, wanted: str | None, dark: bool) -> None:
        self._feed = feed
        self._wanted = wanted
        self._look = charts.DARK if dark else charts.LIGHT
        self._drawn: tuple[Series | None, str] = (None, "")
        self._picker = pn.widgets.Select(label="Run", options={}, width=320)
        self._head = _html_pane()
        self._status = _html_pane()
        self._charts = [self._empty_chart() for _ in range(4)]
        self._costed: tuple[CostView | None, str] = (None, "")
        self._ways, self._ledger = self._empty_chart(), _html_pane()

    def view(self) -> Any:
        """The page; starts its periodic refresh."""
        self.refresh()
        pn.state.add_periodic_callback(self.refresh, period=_PERIOD_MS)
        grid = pn.GridBox(*self._charts, ncols=2, sizing_mode="stretch_width")
        return pn.Column(
            pn.pane.HTML(f"<style>{_css(self._look)}</style>", height=0, margin=0),
            pn.Row(self._picker, self._status, sizing_mode="stretch_width"),
            self._head,
            grid,
            self._ways,
            self._ledger,
            sizing_mode="stretch_width",
            styles={"background": self._look.page, "color": self._look.text},
            margin=8,
        )

    def refresh(self) -> None:
        """Show what the feed knows now; draws only what changed."""
        snapshot, series = self._feed.look(self._picker.value)
        self._offer(snapshot.runs)
        run = next((r for r in snapshot.runs if r.run_id == self._picker.value), None)
        now = time.time()
        _set(self._status, status_html(snapshot, now))
        _set(self._head, head_html(run, snapshot, now))
        if run is not None and series is not None and series.run_id == run.run_id:
            self._draw(series, run.placement.target)
        if run is not None:
            self._account(self._feed.costs(run.run_id), run.name)

    def _offer(self, runs: tuple[RunView, ...]) -> None:
        options = {f"{run.name} · {run.state}": run.run_id for run in runs}
        if options != self._picker.options:
            chosen = self._picker.value or self._wanted
            if chosen not in options.values():
                chosen = next(iter(options.values()), None)
            self._picker.param.update(options=options, value=chosen)

    def _draw(self, series: Series, here: str) -> None:
        if self._drawn == (series, here):
            return
        self._drawn = (series, here)
        look = self._look
        figures = (
            charts.loss_figure(series, here, look),
            charts.throughput_figure(series, here, look),
            charts.spent_figure(series, look),
            charts.rate_figure(series, look),
        )
        for pane, figure in zip(self._charts, figures, strict=True):
            pane.param.update(object=figure, visible=True)

    def _account(self, view: CostView | None, name: str) -> None:
        if view is None or self._costed == (view, name):
            return
        self._costed = (view, name)
        figure = costs.ways_figure(view, self._look)
        self._ways.param.update(object=figure, visible=figure is not None)
        _set(self._ledger, costs.costs_html(view, name))

    def _empty_chart(self) -> Any:
        return pn.pane.Plotly(
            None, config=_CONFIG, sizing_mode="stretch_width", height=280, visible=False
        )


def session_page(feed: Feed) -> Any:
    """The page of the session that is being made, as its address asks (``run``, ``theme``).

    Names the local style sheets first: Panel does so only for sessions that start with a page, and
    a session that a late websocket makes anew would take them from the internet.
    """
    pn.state.curdoc.template_variables["dist_url"] = LOCAL_DIST
    given = {name: values[0].decode() for name, values in pn.state.session_args.items()}
    return Page(feed, wanted=given.get("run"), dark=given.get("theme") == "dark").view()


def _html_pane() -> Any:
    return pn.pane.HTML("", sizing_mode="stretch_width", stylesheets=[PANE_CSS])


def _set(pane: Any, text: str) -> None:
    if pane.object != text:
        pane.object = text


def status_html(snapshot: Snapshot, now: float) -> str:
    """The line that says how old the numbers are; grey and plain when the feed has stopped."""
    if snapshot.offline_since is not None:
        since = time.strftime("%H:%M:%S", time.localtime(snapshot.offline_since))
        why = html.escape(snapshot.problem)
        return (
            f'<div class="cs-status cs-away" role="status"><b>Conductor offline since {since}</b>, '
            f"retrying. Runs go on without it.<br><small>{why}</small></div>"
        )
    if snapshot.as_of is None:
        return '<div class="cs-status" role="status">Looking for the conductor…</div>'
    age_s = now - snapshot.as_of
    word = f"stale: {format_duration(age_s)} old" if age_s > _STALE_S else "live"
    return f'<div class="cs-status" role="status">{word}</div>'


def head_html(run: RunView | None, snapshot: Snapshot, now: float) -> str:
    """The chosen run in one row of labelled values."""
    if run is None:
        hint = "No runs yet. Start one in a notebook with <code>%%cloudshift train</code>."
        return f'<p class="cs-hint">{hint}</p>' if snapshot.as_of is not None else ""
    badge = ' <span class="cs-badge">simulated</span>' if run.simulated else ""
    facts = {
        "state": html.escape(run.state),
        "where": html.escape(run.placement.target) + badge,
        "step": UNKNOWN if run.step is None else f"{run.step:,}",
        "loss": UNKNOWN if run.loss is None else f"{run.loss:.4f}",
        "tokens/s": UNKNOWN if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
        "price": f"{format_usd(run.price_micro_usd_per_h)}/h",
        "spent": format_usd(run.spent_micro_usd),
        "checkpoint": _checkpoint(run, now),
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    stale = " cs-stale" if snapshot.offline_since is not None else ""
    error = f'<p class="cs-error">{html.escape(run.error)}</p>' if run.error else ""
    return f'<dl class="cs-head{stale}">{cells}</dl>{error}'


def _checkpoint(run: RunView, now: float) -> str:
    if run.checkpoint_step is None:
        return "none yet"
    if run.state in FINAL_STATES or run.checkpoint_at is None:
        return f"step {run.checkpoint_step:,}"
    return f"{format_duration(max(0, round(now - run.checkpoint_at)))} old"


def _css(look: charts.Look) -> str:
    return f"body {{ background: {look.page}; color: {look.text}; margin: 0; }}"


PANE_CSS = """
dl.cs-head { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 4px 0 8px; }
dl.cs-head dt { opacity: .7; font-size: 12px; }
dl.cs-head dd { margin: 0; font-size: 16px; font-variant-numeric: tabular-nums; }
.cs-badge { border: 1px dashed currentColor; border-radius: 8px; padding: 0 6px; font-size: 12px; }
.cs-status { margin-top: 22px; }
.cs-away { border-left: 3px solid #e8710a; padding-left: 8px; margin-top: 8px; }
.cs-stale { opacity: .55; }
.cs-error { border-left: 3px solid #d62728; padding-left: 8px; }
"""
