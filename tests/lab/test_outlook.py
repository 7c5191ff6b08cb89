"""What a plan says before a move, and where the move stands, in text and in HTML alike."""

import msgspec
import pytest

from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import (
    Closing,
    Decision,
    Fallback,
    Futures,
    Going,
    MigrationView,
    PhaseTime,
    Spread,
)
from cloudshift_lab.lab.render import card, move
from cloudshift_lab.lab.render.outlook import (
    futures_html,
    futures_text,
    promises,
    range_svg,
    share,
)
from cloudshift_lab.lab.render.standing import going_line, standing_lines, state_line
from tests.lab.test_render import Tags, words

NOW = 1_764_000_000.0
CLOSINGS = (
    Closing("copy", 6.0, 6.0, 400_000_000, basis="400.0 MB at 25.0 MB/s"),
    Closing("replay", 2.5, 0.8, 520_000_000, replayed_steps=4, basis="4 steps of 0.30 s"),
)
FUTURES = Futures(
    1000, Spread(2.1, 2.5, 4.0), Spread(30_000.0, 41_470.0, 1_250_000.0),
    Spread(40.0, 50.0, 120.0), 0.034, 0.0, "measured: step 0.3 s",
)  # fmt: skip


def live(view: MigrationView, **changes: object) -> MigrationView:
    """The same move with a plan that rehearses and repeats steps."""
    plan = msgspec.structs.replace(
        view.plan, closing="replay", closings=CLOSINGS, rehearsal_steps=3, **changes
    )
    return msgspec.structs.replace(view, plan=plan)


def both(view: MigrationView) -> tuple[str, str]:
    """What a terminal shows, and what a reader of the HTML sees."""
    html = move.move_html(view)
    Tags(html)
    return move.move_text(view, "%cloudshift"), words(html)


def test_every_weighed_closing_is_shown_with_both_pauses_and_the_chosen_one_marked(
    make_move,
) -> None:
    for shown in both(live(make_move())):
        for said in (
            "▸ repeat steps (chosen)", "copy bytes", "2.5 s", "0.8 s", "520.0 MB", "4 steps",
            "6.0 s", "400.0 MB at 25.0 MB/s", "nothing computed", "expected pause 2.5 s",
        ):  # fmt: skip
            assert said in shown


def test_a_plan_without_choices_shows_none(make_move) -> None:
    for shown in both(make_move()):
        for unsaid in ("nothing computed", "rehears", "if nodes are missing", "futures", "limit:"):
            assert unsaid not in shown


def test_the_rehearsal_and_its_tolerance_are_promised(make_move) -> None:
    assert "3 steps before the commit" in promises(live(make_move()).plan)[0]
    assert "bit by bit" in promises(live(make_move()).plan)[0]
    near = live(make_move(), tolerance=0.001).plan
    copied = msgspec.structs.replace(near, closing="copy")
    assert "if only within 0.001, bytes are copied" in promises(near)[0]
    assert "within 0.001 of its size" in promises(copied)[0]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("roll-back", "the move is rolled back"),
        ("wait", "it waits for them"),
        ("shrink", "it goes on with 2 or more of 4"),
        ("elsewhere", "it goes to az-sim:west, then az-sim:north"),
    ],
)
def test_what_happens_to_missing_nodes_is_said(make_move, policy: str, said: str) -> None:
    places = tuple(
        Fallback(Placement("az-sim", region, "m"), "az://x") for region in ("west", "north")
    )
    four = msgspec.structs.replace(make_move().plan.target, nodes=4)
    view = live(
        make_move(), target=four, missing_nodes=policy, min_nodes=2,
        fallbacks=places if policy == "elsewhere" else (),
    )  # fmt: skip
    for shown in both(view):
        assert f"if nodes are missing: {said}" in shown


def test_a_limit_and_several_approvals_are_said(make_move) -> None:
    view = live(make_move(), limit_micro_usd=1_200_000, approvals_needed=2)
    for shown in both(view):
        assert "the move itself may cost $1.20" in shown
        assert "2 approvals are needed" in shown


def test_futures_show_three_spreads_shares_and_that_they_are_simulated(make_move) -> None:
    for shown in both(live(make_move(futures=FUTURES))):
        for said in (
            "1,000", "simulated", "2.1 s", "2.5 s", "4.0 s", "$0.0300", "$1.25", "over after",
            "2 min", "3.4 % are rolled back", "0 % lose steps", "measured: step 0.3 s",
        ):  # fmt: skip
            assert said in shown


def test_futures_of_a_decided_move_stay_in_the_saved_output_only(make_move) -> None:
    text, html = both(live(make_move(phase="draining", futures=FUTURES)))
    assert "futures" not in text
    assert "1,000 futures of this click" in html


@pytest.mark.parametrize(
    ("part", "shown"), [(0.0, "0 %"), (0.004, "0.4 %"), (0.0996, "10 %"), (1.0, "100 %")]
)
def test_a_share_has_the_digits_it_deserves(part: float, shown: str) -> None:
    assert share(part) == shown


def test_a_range_bar_survives_nothing_and_goes_from_low_to_high() -> None:
    Tags(range_svg(Spread(0.0, 0.0, 0.0), "pause"))
    drawn = range_svg(Spread(1.0, 2.0, 4.0), "pause: 1 to 4")
    assert 'aria-label="pause: 1 to 4"' in drawn
    assert drawn.index('x1="2') < drawn.index('x2="')


def test_who_approved_so_far_and_how_many_are_missing(make_move) -> None:
    ada = Decision("d-1", "digest", "approve", "ada (notebook)", NOW)
    view = live(make_move(approvals=(ada,)), approvals_needed=3)
    line = state_line(view)
    assert "approved by ada (notebook) at 16:00:00 UTC" in line
    assert "2 more approvals are needed" in line
    assert "expires at" in line


def test_a_policy_that_decided_is_named_with_its_rule(make_move) -> None:
    by = "policy: auto if price < 2.5/h"
    policy = Decision("d-1", "digest", "approve", by, NOW)
    view = make_move(phase="draining", decision=policy, approvals=(policy,))
    for shown in both(view):
        assert f"approved by {by}" in shown
        assert shown.count(by) == 1


def test_a_plan_that_is_asked_again_says_what_got_worse_and_how_to_answer(make_move) -> None:
    worse = "the bill is -$0.05 as measured, -$0.19 was approved"
    timeline = (PhaseTime("rehearsing", NOW - 5), PhaseTime("asking", NOW, worse))
    for shown in both(live(make_move(phase="asking", timeline=timeline))):
        assert f"asked again: {worse}" in shown
        assert "nothing goes on without another approval" in shown
        assert "%cloudshift approve mig-1" in shown


def test_a_rehearsal_that_passed_is_told_with_its_steps(make_move) -> None:
    told = "3 losses equal bit by bit, steps 12 to 14"
    timeline = (PhaseTime("rehearsing", NOW - 5), PhaseTime("draining", NOW, told))
    for shown in both(live(make_move(phase="draining", timeline=timeline))):
        assert f"rehearsed: {told}" in shown
    failed = make_move(phase="rolling_back", timeline=(*timeline[:1], PhaseTime("rolling_back", 1)))
    assert "rehearsed" not in move.move_text(failed, "%cloudshift")


def test_progress_shows_bytes_speed_and_time_left(make_move) -> None:
    going = Going(120_000_000, 400_000_000, 25e6, 11.2, "round 2")
    for shown in both(live(make_move(phase="precopying", going=going))):
        assert "precopying: round 2 · 120.0 MB of 400.0 MB (30%) · 25.0 MB/s · 11 s left" in shown


@pytest.mark.parametrize("going", [None, Going()])
def test_no_progress_is_no_line(make_move, going: Going | None) -> None:
    assert going_line(make_move(phase="precopying", going=going)) == ""


def test_a_notice_counts_down_and_says_what_needs_the_machine(make_move) -> None:
    soon = make_move(phase="draining", notice_s=24.0)
    assert standing_lines(soon) == [
        "notice: the source's machine goes in 24 s; its newest step is saved first, "
        "the rest needs only the source's store"
    ]
    sealed = make_move(phase="copying", notice_s=24.0, sealed_step=77)
    assert "step 77 is saved" in standing_lines(sealed)[0]


def test_what_did_not_move_is_said(make_move) -> None:
    partial = "2 of 4 nodes came up; the run goes on with 2"
    for shown in both(make_move(phase="source_retired", partial=partial)):
        assert f"not moved: {partial}" in shown


def test_where_no_future_arrives_no_pause_is_shown(make_move) -> None:
    none_arrived = msgspec.structs.replace(FUTURES, pause_s=None, rolled_back=1.0)
    view = msgspec.structs.replace(make_move(), futures=none_arrived)
    for shown in both(view):
        assert "none of them arrived" in shown
        assert "100 % are rolled back" in shown
    assert "0.0 s" not in "".join(futures_text(none_arrived))
    assert str(futures_html(none_arrived)).count("<svg") == 2


def test_the_pause_tells_how_long_nothing_was_computed(make_move) -> None:
    moved = make_move(phase="source_retired", pause_s=2.6, still_s=0.9)
    assert "pause 2.6 s (0.9 s of it nothing was computed)" in state_line(moved)
    assert state_line(make_move(pause_s=2.6, still_s=2.6)).count("2.6 s") == 1


def test_a_run_that_moves_under_notice_counts_down_once(make_run, make_move) -> None:
    view = make_run(notice_until=NOW + 24, notice="the newest step will be saved")
    moving = make_move(phase="draining", notice_s=24.0)
    for shown in (card.run_text(view, "%cloudshift", moving), words(card.run_html(view, moving))):
        assert shown.count("24 s") == 1
        assert "its newest step is saved first, the rest needs only the source's store" in shown
    calm = words(card.run_html(make_run(), moving))
    assert "notice: the source's machine goes in 24 s; its newest step is saved first" in calm


def test_a_run_under_notice_says_when_its_machine_goes_and_what_will_be_saved(make_run) -> None:
    view = make_run(notice_until=NOW + 24, notice="the newest step will be saved")
    for shown in (card.run_text(view, "%cloudshift"), words(card.run_html(view))):
        assert "notice: this machine is taken away in 24 s: the newest step will be saved" in shown
    assert "notice" not in card.run_text(make_run(), "%cloudshift")


def test_the_run_card_carries_how_far_its_move_is(make_run, make_move) -> None:
    going = Going(1_000_000, 4_000_000)
    moving = make_move(phase="precopying", going=going)
    for shown in (card.run_text(make_run(), "", moving), words(card.run_html(make_run(), moving))):
        assert "1.0 MB of 4.0 MB (25%)" in shown


def test_words_of_a_rule_or_an_agent_cannot_inject_html(make_move) -> None:
    bad = "<img src=x onerror=alert(1)>"
    decision = Decision("d", "x", "approve", bad, NOW)
    closings = (msgspec.structs.replace(CLOSINGS[0], basis=bad),)
    view = live(
        make_move(
            approvals=(decision,), partial=bad, going=Going(1, 2, detail=bad),
            futures=msgspec.structs.replace(FUTURES, basis=bad),
            timeline=(PhaseTime("rehearsing", 1.0), PhaseTime("draining", 2.0, bad)),
            phase="draining",
        )
    )  # fmt: skip
    view = msgspec.structs.replace(view, plan=msgspec.structs.replace(view.plan, closings=closings))
    html = move.move_html(view)
    assert "img" not in Tags(html).seen
    assert html.count("&lt;img") >= 6


def test_why_the_rule_has_not_approved_is_told_on_every_card_and_cannot_bring_its_own_markup(
    make_run, make_move
) -> None:
    why = "ask: price $3.20/h is not < $2.50/h <b>quiet 23:00-07:00</b>"
    waits = msgspec.structs.replace(make_move(), waiting=why)
    assert f"its rule: {why}" in state_line(waits)
    for shown in (both(waits)[0], card.run_text(make_run(), "%cloudshift", waits)):
        assert why in shown
    for html in (move.move_html(waits), card.run_html(make_run(), waits)):
        assert "&lt;b&gt;quiet" in html
        assert "<b>" not in html
    over = msgspec.structs.replace(waits, phase="rejected")
    assert "its rule" not in state_line(over)
