"""Figures as plain dictionaries, made anew from a ``Series``: pure, and bounded in size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloudshift_lab.core.views import Move, Series

Figure = dict[str, Any]

_PLACE_COLOURS = ("#1f77b4", "#e8710a", "#2ca02c", "#9467bd", "#d62728", "#8c564b")
_FILL = "rgba(31,119,180,0.15)"
_MARGIN = {"l": 56, "r": 16, "t": 36, "b": 40}


@dataclass(frozen=True)
class Look:
    """Colours of one theme."""

    text: str
    grid: str
    mark: str
    page: str
    card: str


LIGHT = Look(text="#212121", grid="#e3e3e3", mark="#616161", page="#ffffff", card="#f5f5f5")
DARK = Look(text="#e6e6e6", grid="#3a3a3a", mark="#bdbdbd", page="#111111", card="#1e1e1e")


def clock(at: float) -> str:
    """Wall-clock seconds as plotly's local time text."""
    return datetime.fromtimestamp(at).isoformat(timespec="milliseconds")


def place_at(at: float, moves: Sequence[Move], here: str) -> str:
    """Where the run was at a moment, from its moves in order of time.

    Args:
        at: Wall-clock seconds.
        moves: The run's moves.
        here: Where it is now; what holds when it never moved.
    """
    ordered = sorted(moves, key=lambda move: move.at)
    place = ordered[0].source if ordered else here
    for move in ordered:
        if move.at <= at:
            place = move.target
    return place


def loss_figure(series: Series, here: str, look: Look) -> Figure:
    """Loss over steps, one colour per place, each move a vertical line."""
    marks = [
        (move.step, f"→ {move.target}") for move in series.moves if move.step is not None
    ]  # fmt: skip
    traces = _by_place(series, here, x=series.step, y=series.loss, hover="step %{x}: %{y:.4f}")
    figure = _figure("Loss", look, traces=traces, x_title="step", marks=marks)
    for text in figure["layout"]["annotations"]:
        text |= {"y": 1, "yanchor": "top"}  # losses end low
    return figure


def throughput_figure(series: Series, here: str, look: Look) -> Figure:
    """Tokens per second over time, one colour per place."""
    times = [clock(at) for at in series.at]
    traces = _by_place(series, here, x=times, y=series.tokens_per_s, hover="%{y:,.0f} tokens/s")
    figure = _figure("Throughput, tokens/s", look, traces=traces, marks=_time_marks(series))
    figure["layout"]["yaxis"] |= {"rangemode": "tozero"}
    figure["layout"] |= {"showlegend": False}  # the colours are those of the loss chart
    return figure


def spent_figure(series: Series, look: Look) -> Figure:
    """Dollars spent so far over time."""
    trace = _cost_trace(series, series.cost_usd, hover="$%{y:,.4f}", fill=True)
    return _figure("Cost so far, $", look, traces=[trace], marks=_time_marks(series))


def rate_figure(series: Series, look: Look) -> Figure:
    """Dollars per hour over time, as steps."""
    trace = _cost_trace(series, series.usd_per_h, hover="$%{y:,.2f}/h", fill=False)
    trace["line"] |= {"shape": "hv"}
    figure = _figure("Price, $/h", look, traces=[trace], marks=_time_marks(series))
    figure["layout"]["yaxis"] |= {"rangemode": "tozero"}
    return figure


def _time_marks(series: Series) -> list[tuple[Any, str]]:
    return [(clock(move.at), f"→ {move.target}") for move in series.moves]


def _by_place(
    series: Series, here: str, *, x: Sequence[Any], y: Sequence[Any], hover: str
) -> list[Figure]:
    """One trace per stay; returning to a place takes its colour again and no second legend."""
    places = [place_at(at, series.moves, here) for at in series.at]
    colours = _colours(places)
    traces: list[Figure] = []
    for first, last in _stays(places):
        place = places[first]
        known = any(trace["name"] == place for trace in traces)
        traces.append(
            _line(x[first:last], y[first:last], colours[place], hover)
            | {"name": place, "legendgroup": place, "showlegend": not known}
        )
    return traces


def _stays(places: Sequence[str]) -> list[tuple[int, int]]:
    """Half-open index ranges of equal neighbours."""
    cuts = [0, *(i for i in range(1, len(places)) if places[i] != places[i - 1]), len(places)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def _colours(places: Sequence[str]) -> dict[str, str]:
    names = dict.fromkeys(places)
    return {name: _PLACE_COLOURS[i % len(_PLACE_COLOURS)] for i, name in enumerate(names)}


def _cost_trace(series: Series, y: Sequence[float], *, hover: str, fill: bool) -> Figure:
    x = [clock(at) for at in series.cost_at]
    trace = _line(x, y, _PLACE_COLOURS[0], hover) | {"showlegend": False, "name": ""}
    return trace | {"fill": "tozeroy", "fillcolor": _FILL} if fill else trace


def _line(x: Sequence[Any], y: Sequence[Any], colour: str, hover: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2},
        "hovertemplate": hover,
    }


def _figure(
    title: str,
    look: Look,
    *,
    traces: list[Figure],
    marks: Sequence[tuple[Any, str]],
    x_title: str = "",
) -> Figure:
    axis = {"gridcolor": look.grid, "linecolor": look.grid, "zeroline": False, "automargin": True}
    return {
        "data": traces,
        "layout": {
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 14}},
            "font": {"color": look.text, "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": _MARGIN,
            "height": 280,
            "uirevision": "keep",
            "hovermode": "x",
            "xaxis": axis | {"title": {"text": x_title}},
            "yaxis": axis,
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
            "showlegend": any(trace.get("showlegend") for trace in traces),
            "shapes": [_mark_line(x, look) for x, _ in marks],
            "annotations": [_mark_text(x, text, look) for x, text in marks],
        },
    }


def _mark_line(x: Any, look: Look) -> Figure:
    return {
        "type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1,
        "line": {"color": look.mark, "width": 1.5, "dash": "dash"},
    }  # fmt: skip


def _mark_text(x: Any, text: str, look: Look) -> Figure:
    return {
        "x": x, "y": 0, "xref": "x", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
        "text": text, "showarrow": False, "font": {"size": 11, "color": look.mark},
    }  # fmt: skip
