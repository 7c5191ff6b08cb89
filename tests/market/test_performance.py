"""What was measured counts first, and an estimate says that it is one."""

from __future__ import annotations

import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.performance import Accelerator, from_hours, node_ratio, tokens_per_usd

H100, A100 = Accelerator("H100", 8, 80), Accelerator("A100", 8, 80)


def test_the_table_has_what_training_shows_and_not_the_data_sheet() -> None:
    ratio = node_ratio(A100, H100)
    assert ratio.known == "table"
    assert 1.9 < ratio.low < ratio.mid < ratio.high < 2.5
    assert ratio.mid == pytest.approx(2.29, abs=0.01)


def test_the_same_accelerator_is_as_fast_as_there_are_of_it() -> None:
    ratio = node_ratio(H100, Accelerator("H100", 4, 80))
    assert (ratio.low, ratio.mid, ratio.high) == (0.5, 0.5, 0.5)


def test_the_same_name_with_less_memory_is_another_machine() -> None:
    assert node_ratio(Accelerator("A100", 8, 40), A100).mid == pytest.approx(1.26, abs=0.01)


def test_what_this_run_measured_comes_before_the_table() -> None:
    measured = {H100: from_hours([1000.0] * 5, "H100"), A100: from_hours([500.0] * 5, "A100")}
    ratio = node_ratio(A100, H100, measured)
    assert ratio.known == "measured"
    assert ratio.mid == pytest.approx(2.0)


def test_an_uneven_machine_has_a_wider_interval() -> None:
    even, uneven = from_hours([100.0] * 9, "one"), from_hours([60, 140] * 4 + [100], "other")
    assert even.high - even.low == pytest.approx(0.0)
    assert uneven.high - uneven.low > 60


def test_a_single_hour_is_not_taken_for_certain() -> None:
    once = from_hours([100.0], "one")
    assert once.low < once.mid < once.high


@pytest.mark.parametrize("hours", [[], [0.0], [10.0, -1.0]])
def test_a_speed_without_progress_is_refused(hours: list[float]) -> None:
    with pytest.raises(UsageError, match="measure it again"):
        from_hours(hours, "one")


@pytest.mark.parametrize(
    ("name", "within"), [("MI300X", 0.30), ("TPU-v5p", 0.45), ("Trainium2", 0.45)]
)
def test_an_estimate_says_so_and_how_far_it_may_be_off(name: str, within: float) -> None:
    ratio = node_ratio(H100, Accelerator(name, 8))
    assert ratio.known == "estimate"
    assert "estimate" in ratio.basis
    assert ratio.low == pytest.approx(ratio.mid * (1 - within))


def test_what_nobody_knows_is_assumed_equal_with_a_wide_interval() -> None:
    ratio = node_ratio(H100, Accelerator("Z9000", 8))
    assert ratio.known == "unknown"
    assert (ratio.low, ratio.mid, ratio.high) == (0.5, 1.0, 2.0)
    assert "Z9000" in ratio.basis


def test_unlike_machines_are_compared_in_tokens_for_a_dollar() -> None:
    speed = from_hours([8 * 10_643.0] * 4, "H100")
    assert tokens_per_usd(speed, 55_040_000).mid == pytest.approx(5.57e6, rel=0.01)
    with pytest.raises(UsageError, match="above 0"):
        tokens_per_usd(speed, 0)
