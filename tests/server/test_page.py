"""What the dashboard says in words: states, ages, and a conductor that is away."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import RunView
from cloudshift_lab.lab.dashboard.feed import Feed, Snapshot

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's, at import
    from bokeh.document import Document
    from panel.io.state import set_curdoc

    from cloudshift_lab.lab.dashboard.page import head_html, session_page, status_html

NOW = 1_800_000_000.0


def run(**changed: object) -> RunView:
    facts: dict[str, object] = {
        "run_id": "run-1", "name": "first", "state": "running", "generation": 1,
        "placement": Placement("gcp-sim", "us-central1", "x"), "created_at": NOW, "simulated": True,
    }  # fmt: skip
    return RunView(**(facts | changed))  # type: ignore[arg-type]


def test_fresh_numbers_are_live_and_old_ones_say_their_age() -> None:
    assert "live" in status_html(Snapshot(as_of=NOW - 1), NOW)
    assert "stale: 34 s old" in status_html(Snapshot(as_of=NOW - 34), NOW)


def test_a_lost_conductor_is_said_with_the_reason_and_the_last_numbers_stay() -> None:
    lost = Snapshot(runs=(run(),), as_of=NOW - 9, offline_since=NOW - 8, problem="<no answer>")
    said = status_html(lost, NOW)
    assert "offline since" in said
    assert "&lt;no answer&gt;" in said
    assert "cs-stale" in head_html(lost.runs[0], lost, NOW)


def test_a_simulated_run_says_so_and_a_real_one_does_not() -> None:
    assert "simulated" in head_html(run(), Snapshot(as_of=NOW), NOW)
    assert "simulated" not in head_html(run(simulated=False), Snapshot(as_of=NOW), NOW)


def test_what_is_not_known_yet_is_a_dash_not_a_zero() -> None:
    said = head_html(run(), Snapshot(as_of=NOW), NOW)
    assert said.count("\N{EN DASH}") == 3
    assert "none yet" in said


def test_an_error_of_the_script_is_shown_as_text_never_as_markup() -> None:
    said = head_html(run(state="failed", error="<b>boom</b>"), Snapshot(as_of=NOW), NOW)
    assert "&lt;b&gt;boom" in said


@pytest.mark.parametrize(("state", "expected"), [("running", "12 s old"), ("finished", "step 350")])
def test_the_checkpoints_age_is_told_while_the_run_lives(state: str, expected: str) -> None:
    view = run(state=state, checkpoint_step=350, checkpoint_at=NOW - 12)
    assert expected in head_html(view, Snapshot(as_of=NOW), NOW)


def test_a_page_made_by_its_websocket_takes_nothing_from_the_internet(tmp_path: Path) -> None:
    document = Document()
    with set_curdoc(document):
        session_page(Feed(tmp_path)).server_doc(document)
        assert "https://" not in json.dumps(document.to_json(), default=str)
