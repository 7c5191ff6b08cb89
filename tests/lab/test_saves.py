"""What a run's checkpoints cost and hold is said in two lines, on the card too."""

from __future__ import annotations

from cloudshift_lab.core.run import SaveStats
from cloudshift_lab.core.views import CostView
from cloudshift_lab.lab.render import card
from cloudshift_lab.lab.render.cost import cost_sheet
from cloudshift_lab.lab.render.saves import saves_lines
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text

SAVES = SaveStats(
    raw_bytes=587_000_000, stored_bytes=484_000_000, new_bytes=30_000_000, save_s=12.3, lost_s=0.2,
    policy="every 4 min (Young/Daly: a save costs 0.2 s, failures assumed every 24 h)",
    keep="5", kept_steps=5, kept_bytes=600_000_000,
)  # fmt: skip


def test_figures_interval_reason_and_what_is_kept_are_said() -> None:
    assert saves_lines(SAVES) == (
        "checkpoint 587.0 MB -> 484.0 MB, 12 s, new 30.0 MB, 0.2 s of training lost",
        "saved every 4 min (Young/Daly: a save costs 0.2 s, failures assumed every 24 h); "
        "keeps 5 (5 steps, 600.0 MB)",
    )


def test_before_the_first_checkpoint_only_the_plan_is_said() -> None:
    assert saves_lines(SaveStats(policy="every 50 steps", keep="all")) == (
        "saved every 50 steps; keeps all",
    )
    assert saves_lines(SaveStats()) == saves_lines(None) == ()


def test_the_card_says_it_as_text_and_as_html(make_run) -> None:
    view = make_run(saves=SAVES)
    for shown in (card.run_text(view, "%cloudshift"), card.run_html(view)):
        assert "587.0 MB" in shown and "every 4 min (Young/Daly" in shown


def test_what_a_run_has_cost_is_told_with_what_its_checkpoints_cost() -> None:
    view = CostView(
        run_id="run-1", lines=(), total_micro_usd=0, price_micro_usd_per_h=0, simulated=False,
        as_of=1e9, saves=SAVES,
    )  # fmt: skip
    sheet = cost_sheet(view, "gpt", "%cloudshift")
    for shown in (sheet_text(sheet), sheet_html(sheet)):
        assert "every 4 min (Young/Daly" in shown and "0.2 s of training lost" in shown
