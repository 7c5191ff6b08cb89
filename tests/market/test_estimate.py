import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.estimate import estimate_transfer_s, num_requests


def test_a_measured_speed_is_used_and_named():
    estimate = estimate_transfer_s(1_000_000_000, 200e6)
    assert estimate.seconds == pytest.approx(5.1)
    assert estimate.basis == "1.0 GB at 200.0 MB/s (measured)"


def test_without_a_measurement_the_assumption_is_named():
    assert "assumed" in estimate_transfer_s(1).basis


@settings(deadline=None)
@given(st.integers(0, 10**13), st.integers(0, 10**13), st.floats(1, 1e12))
def test_more_bytes_never_take_less_time(num_bytes, more, speed):
    less = estimate_transfer_s(num_bytes, speed).seconds
    assert 0 < less <= estimate_transfer_s(num_bytes + more, speed).seconds


@pytest.mark.parametrize("call", [
    lambda: estimate_transfer_s(-1),
    lambda: estimate_transfer_s(1, 0.0),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(call):
    with pytest.raises(UsageError, match="mend the call"):
        call()


@pytest.mark.parametrize(
    ("num_bytes", "expected"), [(0, 8), (1, 9), (64_000_000, 9), (64_000_001, 10)]
)
def test_requests_are_counted_by_packs_and_records(num_bytes, expected):
    assert num_requests(num_bytes) == expected
