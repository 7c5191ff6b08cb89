"""The verbs health and goodput, from the words to what is shown."""

from __future__ import annotations

import json

import pytest

from cloudshift_lab.health.finding import Evidence, Finding, Subject
from cloudshift_lab.health.goodput import Goodput
from cloudshift_lab.health.live import Looked
from cloudshift_lab.health.report import Bygone, GoodputReport, HealthReport, Told
from cloudshift_lab.lab.cli import main
from cloudshift_lab.lab.completion import Catalogue, complete
from cloudshift_lab.lab.grammar import parse_line
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text
from cloudshift_lab.lab.render.wellbeing import goodput_sheet, health_sheet

NOW = 1_764_000_000.0
HANG = Finding(
    rule_id="hang.rank", subject=Subject("rank", "1"), severity="critical",
    evidence=(
        Evidence("no rank has moved for", 31.2, "s", 10.0, NOW),
        Evidence("rank 1 is in", "read (loader.py:7) <b>"),
    ),
    action="restart the run", confidence=0.9, deterministic=False, at=NOW, ranks=(1,),
    words="Rank 1 hung in read and the others wait.",
)  # fmt: skip


def health(**changes: object) -> HealthReport:
    told = Told(HANG, NOW - 20, "ask", "a statistic says so, no proof; approve it if you agree")
    given: dict[str, object] = {
        "standing": (told,),
        "bygone": (Bygone("The loss is nan at step 7.", "error", NOW - 90, NOW - 60),),
        "looked": (Looked("progress", "step 59 of 2 ranks, 31.2 s ago; a hang is 10 s"),),
        **changes,
    }
    return HealthReport(run_id="run-1", name="first", state="running", as_of=NOW, **given)


def goodput(**changes: object) -> GoodputReport:
    found = Goodput(
        share=0.8, by_cause={"training": 0.8, "restarting": 0.15, "lost work": 0.05},
        unplanned_s=40.0, interval_s=30.0,
    )  # fmt: skip
    expected = Goodput(
        share=0.97, by_cause={"training": 0.97, "saving": 0.02, "restarting": 0.01},
        unplanned_s=30.0, interval_s=55.0,
    )  # fmt: skip
    given: dict[str, object] = {
        "whole_s": 200.0, "seconds": {"training": 160.0, "restarting": 30.0, "lost work": 10.0},
        "measured": found, "num_failures": 1, "lost_steps": 4, "num_saves": 3,
        "expected": expected, "basis": ("a failure every 8 h (assumed; 1 so far)",), **changes,
    }  # fmt: skip
    return GoodputReport(
        run_id="run-1", name="first", state="running", began_at=NOW - 200, as_of=NOW, **given
    )


@pytest.fixture
def call(service, capsys, make_run):
    """Runs a command line against the scripted conductor, which has one run."""
    service.views = [make_run()]
    service.run_health = lambda run: health()
    service.run_goodput = lambda run: goodput()

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_a_finding_is_shown_with_its_evidence_and_what_to_do(call) -> None:
    status, out, err = call("health", "first")
    assert (status, err) == (0, "")
    for said in (
        "health of first (running): 1 finding", "Rank 1 hung in read", "90% sure",
        "31.2 s", "10 s", "read (loader.py:7)", "restart the run: asks you, a statistic says so",
        "What was looked at", "a hang is 10 s", "The loss is nan at step 7.", "30 s",
        "next: cloudshift logs first",
    ):  # fmt: skip
        assert said in out


def test_what_a_rank_executes_cannot_write_html() -> None:
    html = sheet_html(health_sheet(health(), "%cloudshift"))
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_a_healthy_run_says_that_it_is_and_what_was_looked_at() -> None:
    text = sheet_text(health_sheet(health(standing=(), bygone=()), "%cloudshift"))
    assert "nothing is found" in text
    assert "31.2 s ago" in text
    assert "Before" not in text


def test_goodput_is_shown_by_cause_beside_what_is_expected(call) -> None:
    status, out, _ = call("goodput")
    assert status == 0
    for said in (
        "80.0% of 3 min 20 s trained and was kept", "restarting (unplanned)", "15.00%", "1.00%",
        "1 failure, 40 s down and lost for each; 4 steps were computed twice",
        "3 saves were counted", "97.00% of the time trains", "a failure every 8 h",
    ):  # fmt: skip
        assert said in out
    saving = next(line for line in out.splitlines() if line.strip().startswith("saving"))
    assert saving.split()[1:] == ["-", "0.00%", "2.00%"]


def test_without_steps_there_is_no_forecast_and_no_save_is_counted() -> None:
    text = sheet_text(goodput_sheet(goodput(expected=None, basis=(), num_saves=0), "cloudshift"))
    assert "no forecast" in text
    assert "no save was seen" in text


def test_both_can_be_had_as_data(call) -> None:
    assert json.loads(call("health", "--json")[1])["standing"][0]["finding"]["ranks"] == [1]
    assert json.loads(call("goodput", "--json")[1])["measured"]["share"] == 0.8


def test_judging_the_rules_on_data_is_still_the_other_room(call, tmp_path) -> None:
    assert parse_line("health evaluate --data DIR --json x").rest == (
        "evaluate", "--data", "DIR", "--json", "x",
    )  # fmt: skip
    assert parse_line("health replay --help").is_for_others
    assert not parse_line("health first").is_for_others
    status, _, err = call("health", "replay", "--trace", str(tmp_path / "none.csv"))
    assert status == 1
    assert "health ended with status 1" in err


def test_tab_offers_runs_and_help_says_both_uses(call) -> None:
    offer = complete("%cloudshift health ", Catalogue(runs=("gpt",)))
    assert offer is not None
    assert offer.words == ("gpt", "--json")
    assert "health evaluate --data DIR" in call("help", "health")[1]
