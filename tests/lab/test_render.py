import re
from html import unescape
from html.parser import HTMLParser

import msgspec
import pytest

from cloudshift_lab.core.plan import Decision, PhaseTime
from cloudshift_lab.core.views import Check, CostLine, CostView, Target
from cloudshift_lab.lab.render import card, move, reports
from cloudshift_lab.lab.render.cost import cost_sheet
from cloudshift_lab.lab.render.figures import age, sparkline_svg, sparkline_text
from cloudshift_lab.lab.render.markup import tag
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text


def words(html: str) -> str:
    """What a person reads: HTML without its tags."""
    return unescape(re.sub(r"<[^>]*>", "", html))


class Tags(HTMLParser):
    """Collects elements, and fails on one that is closed wrongly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(name)
        self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name


def test_the_card_says_all_that_matters(make_run) -> None:
    text = card.run_text(make_run(), "%cloudshift")
    for said in (
        "first (run-1)", "● running on aws-sim:us-east-1", "[simulated]", "step 120", "2.3456",
        "12,345 tokens/s", "$0.53/h (list price 2026-10, simulated)", "$0.0088",
        "step 100, 9.0 s old", "newest step 2.0 s old", "%cloudshift watch first",
    ):  # fmt: skip
        assert said in text


def test_the_html_card_says_the_same_and_draws_the_loss(make_run) -> None:
    html = card.run_html(make_run())
    tags = Tags(html)
    assert {"svg", "polyline"} <= set(tags.seen)
    assert "script" not in tags.seen
    for said in ("simulated", "120", "2.3456", "12,345", "$0.53/h", "aws-sim:us-east-1"):
        assert said in words(html)


def test_a_run_that_went_on_by_itself_says_how_often_and_why(make_run) -> None:
    said = "started again by itself from step 7: the agent ended without a word"
    view = make_run(restarts=2, restarted=said, restarted_at=1_700_000_000.0)
    for text in (card.run_text(view, "%cloudshift"), words(card.run_html(view))):
        assert re.search(r"restarted 2 times, last at \d\d:\d\d.*: " + said, text)
    assert "restarted" not in card.run_text(make_run(), "%cloudshift")


def test_a_real_cloud_is_never_called_simulated(make_run) -> None:
    view = make_run(simulated=False, price_source="list price")
    assert "simulated" not in card.run_text(view, "%cloudshift") + card.run_html(view)


def test_a_run_without_a_step_still_has_a_card(make_run) -> None:
    view = make_run(step=None, loss=None, tokens_per_s=None, progress_at=None, losses=(),
                    checkpoint_step=None, checkpoint_at=None, state="starting")  # fmt: skip
    assert "checkpoint none yet" in card.run_text(view, "%cloudshift")
    assert "svg" not in Tags(card.run_html(view)).seen


def test_a_failed_run_shows_the_failing_ranks_own_traceback(make_run) -> None:
    view = make_run(state="failed", error="ValueError: bad <batch>", error_rank=1,
                    traceback='File "cell", line 7\nValueError: bad <batch>\n')  # fmt: skip
    text, html = card.run_text(view, "%cloudshift"), card.run_html(view)
    assert "rank 1: ValueError: bad <batch>" in text
    assert 'File "cell", line 7' in text
    assert "bad &lt;batch&gt;" in html
    assert "<batch>" not in html
    assert "%cloudshift logs first --rank 1" in text


def test_an_ended_run_costs_nothing_more(make_run) -> None:
    assert "$0.00/h" in card.run_text(make_run(state="finished"), "%cloudshift")


def test_names_cannot_inject_html(make_run, make_move) -> None:
    name = "<img src=x onerror=alert(1)>\"'"
    for html in (
        card.run_html(make_run(name=name)),
        card.runs_html([make_run(name=name)], [make_move(run_name=name)]),
        move.move_html(make_move(run_name=name, error=name)),
    ):
        assert "img" not in Tags(html).seen
        assert "<img" not in html


def test_the_card_shows_the_phases_of_an_open_move(make_run, make_move) -> None:
    timeline = (PhaseTime("proposed", 1_764_000_000.0), PhaseTime("copying", 1_764_000_001.0))
    open_one = make_move(phase="copying", timeline=timeline)
    assert "move to gcp-sim:us-central1: state: copying" in card.run_text(make_run(), "", open_one)
    assert "▸ copying" in card.run_html(make_run(), open_one)


def test_the_table_lists_runs_and_what_waits(make_run, make_move) -> None:
    text = card.runs_text([make_run()], [make_move()], "cloudshift")
    assert "first" in text.splitlines()[1]
    assert "cloudshift approve mig-1" in text
    assert "first to gcp-sim:us-central1" in text


def test_no_runs_says_how_to_start_one() -> None:
    assert "%%cloudshift train" in card.runs_text([], [], "%cloudshift")
    assert "cloudshift train script.py" in card.runs_text([], [], "cloudshift")


def test_the_bill_shows_amount_basis_source_and_date_of_each_line_and_the_sum(make_move) -> None:
    view = make_move()
    text, html = move.move_text(view, "%cloudshift"), move.move_html(view)
    for said in (
        "-$0.20", "1 h x ($0.33 - $0.53)", "list price, simulated", "2026-10-01", "$0.0055",
        "price list, simulated", "2026-10-02", "total", "-$0.19", "cheaper per token",
        "pays for itself after 1 min 39 s", "expected pause 2.6 s", "61.2 MB", "digest-of-th",
        "expires at",
    ):  # fmt: skip
        assert said in text
        assert said in words(html)
    assert "%cloudshift approve mig-1" in text


def test_a_move_that_never_pays_says_so(make_move) -> None:
    view = make_move()
    bill = msgspec.structs.replace(
        view.plan.bill, break_even_s=None, saving_micro_usd_per_h=-50_000, simulated=False
    )
    view = make_move(plan=msgspec.structs.replace(view.plan, bill=bill, verdict="stay"))
    text = move.move_text(view, "%cloudshift")
    assert "costs $0.0500/h afterwards" in text
    assert "never pays for itself" in text
    assert "advice: stay" in text


def test_the_timeline_shows_how_long_each_phase_took(make_move) -> None:
    view = make_move(
        phase="draining",
        decision=Decision("d", "digest", "approve", "ada (terminal)", 1_764_000_003.0),
        timeline=(
            PhaseTime("proposed", 1_764_000_000.0),
            PhaseTime("approved", 1_764_000_003.0),
            PhaseTime("draining", 1_764_000_003.5, "step 130"),
        ),
    )
    text, html = move.move_text(view, "%cloudshift"), move.move_html(view)
    assert "approved by ada (terminal) at 16:00:03 UTC" in text
    assert "3.0 s" in text
    assert "0.5 s" in text
    assert "step 130" in text
    assert "✓ approved 0.5 s" in html
    assert "▸ draining" in html
    assert "· committing" in html
    assert "approve mig-1" not in text


def test_a_wide_table_scrolls_in_its_box_and_keeps_short_words_whole(make_run) -> None:
    html = card.runs_html([make_run(name="a name that is much too long " * 4)], [])
    assert "overflow-x:auto" in html
    where = html.index("aws-sim:us-east-1")
    assert "white-space:nowrap" in html[html.rindex("<td", 0, where) : where]
    name = html.index("a name that is")
    assert "white-space:nowrap" not in html[html.rindex("<td", 0, name) : name]


def test_the_end_of_a_move_is_ticked_off_and_not_under_way(make_move) -> None:
    timeline = (PhaseTime("resumed", 1.0), PhaseTime("source_retired", 2.0))
    shown = words(move.timeline_html(make_move(phase="source_retired", timeline=timeline)))
    assert "✓ source retired" in shown


def test_a_phase_that_came_twice_is_shown_twice(make_move) -> None:
    names = ("provisioning", "provisioning", "precopying")
    timeline = tuple(PhaseTime(name, float(at)) for at, name in enumerate(names))
    shown = words(move.timeline_html(make_move(phase="precopying", timeline=timeline)))
    assert shown.count("provisioning 1.0 s") == 2
    assert "▸ precopying" in shown


def test_the_phases_ahead_are_those_of_the_plan(make_move) -> None:
    view = make_move(phase="approved", timeline=(PhaseTime("approved", 1.0),))
    assert "rehearsing" not in words(move.timeline_html(view))
    assert "· copying" in words(move.timeline_html(view))
    live = msgspec.structs.replace(view.plan, closing="replay", rehearsal_steps=3)
    ahead = words(move.timeline_html(msgspec.structs.replace(view, plan=live)))
    assert "· rehearsing" in ahead
    assert "copying" not in ahead.replace("precopying", "")
    assert "asking" not in ahead


def test_a_rolled_back_move_shows_its_error_and_no_phases_ahead(make_move) -> None:
    timeline = (PhaseTime("proposed", 1.0), PhaseTime("rolled_back", 2.0))
    error = "the target's disk is full; free some space"
    view = make_move(phase="rolled_back", error=error, timeline=timeline)
    assert "disk is full" in move.move_text(view, "%cloudshift")
    assert "· committing" not in move.move_html(view)


def test_cost_lines_sum_and_say_when_they_are_simulated() -> None:
    lines = (
        CostLine("attempt 1", "aws-sim:us-east-1", 100_000, "10 min x $0.60/h", simulated=True),
    )
    view = CostView("run-1", lines, 100_000, 600_000, simulated=True, as_of=1_764_000_000.0)
    sheet = cost_sheet(view, "gpt", "%cloudshift")
    for shown in (sheet_text(sheet), words(sheet_html(sheet))):
        assert "10 min x $0.60/h, simulated" in shown
        assert "$0.60/h" in shown
        assert "total" in shown


def test_the_doctor_gives_advice_only_where_it_is_needed() -> None:
    checks = (Check("a", ok=True, detail="fine", advice="unneeded"),
              Check("b", ok=False, detail="broken", advice="do this"))  # fmt: skip
    text = reports.checks_text(checks)
    assert "unneeded" not in text
    assert "do this" in text
    assert "1 of 2 checks need you" in text


def test_a_simulated_target_says_so_once() -> None:
    told = Target("a:b", "AWS (simulated)", 1, simulated=True)
    untold = Target("a:b", "AWS", 1, simulated=True)
    for target in (told, untold):
        assert reports.targets_text([target]).count("simulated") == 1


def test_a_sparkline_goes_from_low_to_high_and_survives_odd_values() -> None:
    assert sparkline_text([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline_text([]) == ""
    assert sparkline_text([2.0]) == "▁"
    assert sparkline_text([1.0, float("nan"), float("inf"), 2.0]) == "▁█"
    assert len(sparkline_text(list(range(1000)))) == 24
    assert sparkline_svg([float("nan"), 1.0], "loss") is None


def test_an_age_is_never_negative() -> None:
    assert age(10.0, 5.0) == "0.0 s old"
    assert age(None, 5.0) == "none yet"


@pytest.mark.parametrize("text", ["<b>", "a & b", "\"quoted\" 'twice'"])
def test_markup_escapes_text_and_attributes(text: str) -> None:
    html = tag("p", text, title=text)
    parsed: list[tuple[str, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
            parsed.append((name, attrs[0][1] or ""))

        def handle_data(self, data: str) -> None:
            parsed.append(("text", data))

    Reader().feed(html)
    assert parsed[0] == ("p", text)
    assert "".join(data for kind, data in parsed if kind == "text") == text


def test_amounts_are_never_typeset_as_mathematics(make_move, make_run) -> None:
    for html in (move.move_html(make_move()), card.run_html(make_run())):
        texts = re.split(r"<[^>]*>", html)
        assert [text for text in texts if "$" in text and text != "$"] == []
