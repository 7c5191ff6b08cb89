"""Waits that speak."""

from __future__ import annotations

import io
import threading

from cloudshift_lab.lab.cli import _Spoken
from cloudshift_lab.lab.waiting import Waiting


def test_a_short_call_says_nothing() -> None:
    said: list[str | None] = []
    with Waiting("checking", said.append):
        pass
    assert said == []


def test_a_long_call_says_what_it_waits_for_and_takes_it_back() -> None:
    said: list[str | None] = []
    spoken = threading.Event()

    def show(line: str | None) -> None:
        said.append(line)
        spoken.set()

    with Waiting("checking the store of mars", show):
        assert spoken.wait(30)
    assert said[0] is not None
    assert said[0].startswith("checking the store of mars … 1.")
    assert said[-1] is None


def test_a_pipe_gets_the_line_once_and_nothing_is_overwritten() -> None:
    out = io.StringIO()
    show = _Spoken(out)
    for line in ("checking … 1.0 s", "checking … 1.5 s", None):
        show(line)
    assert out.getvalue() == "checking … 1.0 s\n"
