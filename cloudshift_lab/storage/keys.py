"""What a key may look like: relative, ASCII, and the same object on every store."""

from __future__ import annotations

import re

from cloudshift_lab.core.errors import UsageError

MAX_KEY_CHARS = 800
_KEY = re.compile(
    r"[A-Za-z0-9_\-=+@,][A-Za-z0-9_.\-=+@,]*(/[A-Za-z0-9_\-=+@,][A-Za-z0-9_.\-=+@,]*)*"
)


def check_key(key: str) -> str:
    """Return ``key`` when every store can hold it.

    Raises:
        UsageError: Empty, absolute, too long, or with a part that is hidden or not plain ASCII.
    """
    if len(key) > MAX_KEY_CHARS or _KEY.fullmatch(key) is None:
        raise UsageError(
            f"'{key[:80]}' cannot be an object key; use letters, digits and ._-=+@, between slashes"
        )
    return key


def check_range(start: int | None, end: int | None) -> tuple[int, int | None]:
    """Normalise a half-open byte range.

    Raises:
        UsageError: Negative, or the end lies before the start.
    """
    first = start or 0
    if first < 0 or (end is not None and end < first):
        raise UsageError(f"bytes {start}..{end} are no range; give 0 <= start <= end")
    return first, end


def under(prefix: str) -> str:
    """``a/b`` or ``a/b/`` as the string that every key below it starts with; empty for all."""
    return f"{prefix.rstrip('/')}/" if prefix else ""
