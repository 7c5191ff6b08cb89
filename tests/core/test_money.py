import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.money import format_bytes, format_duration, format_usd, to_micro_usd


@settings(deadline=None)
@given(st.integers(-(10**15), 10**15))
def test_whole_micro_dollars_survive_the_way_over_dollars(micro_usd):
    assert to_micro_usd(micro_usd / 1_000_000) == micro_usd


@pytest.mark.parametrize(
    ("micro_usd", "shown"),
    [
        (0, "$0.00"),
        (12_400_000, "$12.40"),
        (-2_000_000, "-$2.00"),
        (1_234_567_890_000, "$1,234,567.89"),
        (100_000, "$0.10"),
        (3_100, "$0.0031"),
        (-49, "-$0.000049"),
        (1, "$0.000001"),
    ],
)
def test_amounts_show_as_many_digits_as_they_deserve(micro_usd, shown):
    assert format_usd(micro_usd) == shown


@settings(deadline=None)
@given(st.integers(-(10**13), 10**13))
def test_a_shown_amount_is_right_to_within_half_of_its_last_digit(micro_usd):
    shown = format_usd(micro_usd)
    number = float(shown.replace("$", "").replace(",", ""))
    num_digits = len(shown.partition(".")[2])
    assert abs(number - micro_usd / 1_000_000) <= 0.5000001 * 10**-num_digits + 1e-9
    assert (micro_usd != 0) == (number != 0)


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (61_200_000, "61.2 MB"),
        (999_940, "999.9 kB"),
        (999_999, "1.0 MB"),
        (2_000_000_000_000_000, "2000.0 TB"),
    ],
)
def test_sizes_are_shown_in_decimal_units(num_bytes, shown):
    assert format_bytes(num_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.99, "10 s"),
        (42.4, "42 s"),
        (59.7, "1 min"),
        (60.0, "1 min"),
        (185.0, "3 min 5 s"),
        (3599.7, "1 h"),
        (7800.0, "2 h 10 min"),
    ],
)
def test_durations_are_shown_as_people_say_them(seconds, shown):
    assert format_duration(seconds) == shown
