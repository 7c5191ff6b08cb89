"""A titled group of tables with notes and what to type next: one description, text and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloudshift_lab.lab.render.markup import (
    ERROR,
    box,
    dim,
    next_command,
    table,
    tag,
    text_table,
)


@dataclass(frozen=True)
class Table:
    """Columns and rows; ``numeric`` columns are aligned right. ``title`` stands above it."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: frozenset[int] = frozenset()
    title: str = ""


@dataclass(frozen=True)
class Sheet:
    """What is shown. ``troubles`` are told in the colour of errors, ``following`` can be typed."""

    label: str
    title: str
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    following: tuple[str, ...] = ()


def sheet_text(sheet: Sheet) -> str:
    """As lines of text."""
    lines = [sheet.title]
    for part in sheet.tables:
        if not part.rows:
            continue
        lines += ["", f"  {part.title}"] if part.title else []
        lines += [f"  {line}" for line in text_table(part.head, part.rows, part.numeric)]
    lines += [""] if any(part.title for part in sheet.tables) else []
    lines += [f"  {note}" for note in sheet.notes]
    lines += [f"  ✗ {trouble}" for trouble in sheet.troubles]
    return "\n".join([*lines, *(f"  next: {command}" for command in sheet.following)])


def sheet_html(sheet: Sheet) -> str:
    """As HTML that stays readable in a saved notebook."""
    parts: list[str] = [tag("div", tag("strong", sheet.title))]
    for part in sheet.tables:
        if part.rows:
            parts += [dim(part.title)] if part.title else []
            parts += [table(part.head, part.rows, part.numeric)]
    parts += [dim(note) for note in sheet.notes]
    parts += [tag("div", f"✗ {each}", style=ERROR, role="alert") for each in sheet.troubles]
    return box(sheet.label, *parts, *(next_command(line) for line in sheet.following))
