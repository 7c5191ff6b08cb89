import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.telemetry.seen import UNNUMBERED, Seen, Span, place_of


@given(st.lists(st.integers(0, 30)))
def test_batches_in_any_order_are_remembered_as_a_set_would(numbers):
    seen = Seen()
    for count, number in enumerate(numbers, 1):
        seen.add(f"run-1-g1-a-{number}")
        known = set(numbers[:count])
        assert {n for n in range(32) if f"run-1-g1-a-{n}" in seen} == known
    spans = sorted(seen.spans())
    assert sum(span.last - span.first + 1 for span in spans) == len(set(numbers))
    gaps = [after.first - before.last for before, after in itertools.pairwise(spans)]
    assert all(gap > 1 for gap in gaps), "neighbours are one range"
    assert sorted(Seen(spans).spans()) == spans


def test_a_sender_that_counts_takes_one_range_however_much_it_sends():
    seen = Seen()
    for number in range(1000):
        seen.add(f"a-{number}")
    assert list(seen.spans()) == [Span("a", 0, 999)]


@pytest.mark.parametrize("other", ["a", "a-01", "a-", "a--1", "a-1x", "b-1", "a-10", "a-1-1"])
def test_ids_that_look_alike_are_not_each_other(other):
    seen = Seen()
    seen.add("a-1")
    assert "a-1" in seen
    assert other not in seen
    seen.add(other)
    assert other in seen


def test_an_id_without_a_number_is_its_own_sender():
    assert place_of("new") == ("new", UNNUMBERED)
    assert place_of("run-1-g2-n-17") == ("run-1-g2-n", 17)
