"""HTML that cannot be injected into: every plain string is escaped, only ``Markup`` is not."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

SIMULATED = "simulated"


class Markup(str):
    """A string that is HTML already. Made by :func:`tag` only."""

    __slots__ = ()


def tag(name: str, *children: str | None, **attributes: str | None) -> Markup:
    """One element. Children that are not ``Markup`` are escaped; None is left out.

    Attribute names: ``class_`` means ``class``, other underscores become hyphens.
    """
    inside = "".join(_safe(child) for child in children if child is not None)
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{inside}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Put several pieces behind each other, escaping those that are plain text."""
    return Markup("".join(_safe(part) for part in parts))


def _safe(child: str) -> str:
    """Escaped text whose dollars stand alone: a notebook would typeset what is between two."""
    if isinstance(child, Markup):
        return child
    return html.escape(child).replace("$", "<span>$</span>")


FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5;"
INK = "color:var(--jp-ui-font-color1,#1f2328);"
DIM = "color:var(--jp-ui-font-color2,#57606a);"
MONO = "font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:12px;"
BOX = (
    f"{FONT}{INK}background:var(--jp-layout-color1,#fff);max-width:820px;margin:4px 0;"
    "border:1px solid var(--jp-border-color2,#d0d7de);border-radius:6px;padding:10px 14px;"
    "overflow-x:auto;"
)
CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;background:transparent;"
NUMBER = CELL + "text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;"
WHOLE = "white-space:nowrap;"
LONGEST_WHOLE = 32
ERROR = "color:var(--jp-error-color1,#b3261e);"


def box(label: str, *children: str | None) -> Markup:
    """A bordered group with a name for screen readers."""
    no_math = "tex2jax_ignore mathjax_ignore"
    return tag("div", *children, role="group", aria_label=label, class_=no_math, style=BOX)


def badge(word: str, meaning: str) -> Markup:
    """A small framed word; ``meaning`` is its tooltip."""
    style = (
        "border:1px solid var(--jp-warn-color1,#bf6900);border-radius:9px;padding:0 7px;"
        f"font-size:11px;margin-left:6px;white-space:nowrap;{DIM}"
    )
    return tag("span", word, style=style, title=meaning)


def simulated_badge(*, simulated: bool) -> Markup | None:
    """The badge that every simulated cloud, price or bill carries."""
    return badge(SIMULATED, "not a real cloud and not a real bill") if simulated else None


def dim(text: str) -> Markup:
    """A line of secondary information."""
    return tag("div", text, style=DIM)


def code(text: str) -> Markup:
    """Something to type."""
    return tag("code", text, style=MONO)


def next_command(command: str) -> Markup:
    """What to type next, in secondary ink."""
    return tag("div", "next: ", code(command), style=DIM)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int]) -> Markup:
    """A table; ``numeric`` columns are aligned right, and short cells stay on one line."""
    styles = [NUMBER if index in numeric else CELL for index in range(len(head))]
    top = tag("tr", *(tag("th", word, scope="col", style=style + DIM)
                      for word, style in zip(head, styles, strict=True)))  # fmt: skip
    body = (
        tag(
            "tr",
            *(
                tag("td", cell, style=style + (WHOLE if len(cell) <= LONGEST_WHOLE else ""))
                for cell, style in zip(row, styles, strict=True)
            ),
        )
        for row in rows
    )
    style = f"border-collapse:collapse;margin:6px 0;{FONT}{INK}"
    return tag("table", tag("thead", top), tag("tbody", *body), style=style)


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int]
) -> list[str]:
    """The same table as lines of text."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            f"{cell:>{width}}" if index in numeric else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    ]
