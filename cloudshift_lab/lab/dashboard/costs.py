"""The cost panel: what a run's money went into, beside what other ways would have cost."""

from __future__ import annotations

from cloudshift_lab.core.costs import COST_KINDS
from cloudshift_lab.core.money import MICRO, format_usd
from cloudshift_lab.core.views import CostView
from cloudshift_lab.lab.dashboard.charts import Figure, Look
from cloudshift_lab.lab.render.cost import cost_sheet
from cloudshift_lab.lab.render.sheet import sheet_html

_COLOURS = {
    "compute": "#1f77b4", "overhead": "#e8710a", "idle": "#9e9e9e", "lost_work": "#d62728",
    "overlap": "#9467bd", "egress": "#2ca02c", "requests": "#8c564b",
}  # fmt: skip
_OTHERWISE = "#b0bec5"
_ACTUAL = "as it happened"


def ways_figure(view: CostView, look: Look) -> Figure | None:
    """One bar for the run, by what it went into, and one for each other way; None: no ledger."""
    account = view.account
    if account is None:
        return None
    spent = account.ledger.by_kind
    bars = [
        _bar([_ACTUAL], [spent[kind]], kind.replace("_", " "), _COLOURS[kind])
        for kind in COST_KINDS
        if spent.get(kind)
    ]
    names = [each.name for each in account.otherwise]
    amounts = [each.micro_usd for each in account.otherwise]
    if names:
        bars.append(_bar(names, amounts, "in other ways", _OTHERWISE))
    axis = {"gridcolor": look.grid, "linecolor": look.grid, "zeroline": False, "automargin": True}
    return {
        "data": bars,
        "layout": {
            "title": {"text": "Cost and what else it could have been, $", "x": 0, "xref": "paper",
                      "font": {"size": 14}},
            "barmode": "stack", "height": 280, "uirevision": "keep",
            "font": {"color": look.text, "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 120, "r": 16, "t": 36, "b": 40},
            "xaxis": axis | {"rangemode": "tozero"},
            "yaxis": axis | {"autorange": "reversed"},
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        },
    }  # fmt: skip


def _bar(names: list[str], amounts: list[int], title: str, colour: str) -> Figure:
    return {
        "type": "bar", "orientation": "h", "y": names, "name": title,
        "x": [amount / MICRO for amount in amounts], "marker": {"color": colour},
        "hovertemplate": "%{customdata}", "customdata": [format_usd(amount) for amount in amounts],
    }  # fmt: skip


def costs_html(view: CostView, name: str) -> str:
    """The same tables that ``cost`` shows in a notebook."""
    return sheet_html(cost_sheet(view, name, "%cloudshift"))
