import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.goodput import GoodputFacts, Span, forecast, measured, saved_by

HALF_DAY_S = 12 * 3600.0
MANUAL = GoodputFacts(
    mtbf_s=HALF_DAY_S, save_s=60, detect_s=1800, restart_s=1800, interval_s=3 * 3600.0
)
FULL = GoodputFacts(
    mtbf_s=HALF_DAY_S, save_s=2, detect_s=60, restart_s=300, step_s=10, jit_share=0.9, jit_s=10,
    recall=0.3, precision=0.5, move_s=60,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "share", "unplanned_s"), [(MANUAL, 0.807, 8803), (FULL, 0.988, 276)]
)
def test_the_formula_gives_the_published_cases(
    facts: GoodputFacts, share: float, unplanned_s: float
) -> None:
    found = forecast(facts)
    assert found.share == pytest.approx(share, abs=0.0006)
    assert found.unplanned_s == pytest.approx(unplanned_s, rel=0.01)


@pytest.mark.parametrize("facts", [MANUAL, FULL])
def test_the_causes_add_up_to_all_of_the_time(facts: GoodputFacts) -> None:
    found = forecast(facts)
    assert sum(found.by_cause.values()) == pytest.approx(1.0)
    assert found.by_cause["training"] == found.share


def test_dalys_interval_is_taken_where_none_is_given() -> None:
    chosen = forecast(FULL).interval_s
    assert chosen == pytest.approx((2 * 2 * HALF_DAY_S) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mtbf_s": 0.0}, {"save_s": 0.0}, {"jit_share": 1.2}, {"detect_s": -1.0},
        {"recall": 0.1, "precision": 0.0},
    ],
)  # fmt: skip
def test_figures_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    usual = {"mtbf_s": 1e4, "save_s": 1.0, "detect_s": 1.0, "restart_s": 1.0}
    with pytest.raises(UsageError):
        forecast(GoodputFacts(**{**usual, **wrong}))


def test_what_happened_is_counted_by_cause_and_gaps_are_idle() -> None:
    found = measured(
        [
            Span("training", 0, 60), Span("lost work", 60, 70), Span("detecting", 70, 72),
            Span("restarting", 72, 80), Span("training", 90, 100),
        ],
        num_failures=1,
    )  # fmt: skip
    assert found.share == pytest.approx(0.7)
    assert found.by_cause["idle"] == pytest.approx(0.1)
    assert found.unplanned_s == pytest.approx(20)
    assert sum(found.by_cause.values()) == pytest.approx(1.0)
    assert "70.0% of the time trains" in found.words
    assert "lost work 10.0%" in found.words


def test_spans_that_overlap_are_refused() -> None:
    with pytest.raises(UsageError):
        measured([Span("training", 0, 10), Span("saving", 9, 12)], num_failures=0)
    with pytest.raises(UsageError):
        measured([], num_failures=0)


def test_the_difference_of_two_practices_is_told_by_cause() -> None:
    gone = saved_by(forecast(MANUAL).by_cause, forecast(FULL).by_cause)
    assert gone["lost work"] > gone["saving"]
    assert "training" not in gone
