"""Other ways to do the same work: perfect foresight is the best of them, and nothing is hidden."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.market.hindsight import Story, Track, otherwise

BEGIN = 1_700_000_000.0
USD = 1_000_000


def track(name, *prices, pace=1.0):
    return Track(
        name=name, pace=pace,
        prices=tuple((BEGIN + hours * HOUR_S, price * USD) for hours, price in prices),
    )  # fmt: skip


def story(*tracks, hours=10.0, carry=0, actual=0, **changes):
    num = len(tracks)
    known = {
        "begin": BEGIN, "work_s": hours * HOUR_S, "share": 1.0, "starts_s": 0.0,
        "carry_micro_usd": tuple(
            tuple(0 if a == b else carry for b in range(num)) for a in range(num)
        ),
        "actual_micro_usd": actual,
    }  # fmt: skip
    return Story(tracks=tracks, **(known | changes))


def costs(given_story):
    return {each.name: each.micro_usd / USD for each in otherwise(given_story)}


def test_each_way_is_counted_at_the_recorded_prices():
    found = costs(story(track("a", (0, 4)), track("b", (0, 10), (5, 1))))
    assert found == {"never moved": 40, "always cheapest": 25, "perfect foresight": 25}


def test_always_cheapest_pays_for_every_move_and_foresight_does_not_make_it():
    prices = [(hour, 3 if hour % 2 else 5) for hour in range(10)]
    found = costs(story(track("a", (0, 4)), track("b", *prices), carry=2 * USD))
    assert found["never moved"] == 40
    assert found["always cheapest"] == 4 * 5 + 3 * 5 + 9 * 2
    assert found["perfect foresight"] == 40


def test_foresight_waits_for_a_price_that_lasts():
    found = otherwise(story(track("a", (0, 4)), track("b", (0, 3), (1, 9), (4, 1)), carry=2 * USD))
    assert found[2].micro_usd == 4 * 4 * USD + 6 * USD + 2 * USD
    assert found[2].basis == "a for 4 h, then b for 6 h"
    assert found[2].moves == 1


def test_regret_is_shown_also_when_it_is_negative():
    found = otherwise(story(track("a", (0, 4)), track("b", (0, 3)), actual=35 * USD))
    assert [each.regret_micro_usd for each in found] == [-5 * USD, 5 * USD, 5 * USD]


def test_a_faster_place_is_worth_more_than_its_price_says():
    found = otherwise(story(track("a", (0, 4)), track("b", (0, 6), pace=2.0)))
    assert [each.micro_usd for each in found] == [40 * USD, 30 * USD, 30 * USD]
    assert found[1].end == BEGIN + 5 * HOUR_S


def test_starts_and_saves_cost_wherever_it_is():
    assert costs(story(track("a", (0, 4)), share=0.8))["never moved"] == 50


def test_a_target_is_paid_while_it_starts():
    both = (track("a", (0, 4)), track("b", (0, 10), (5, 1)))
    found = costs(story(*both, starts_s=HOUR_S))
    assert found["always cheapest"] == 26


price_lists = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 20)), min_size=1, max_size=5,
    unique_by=lambda price: price[0],
).map(sorted)  # fmt: skip
stories = st.builds(
    lambda lists, paces, hours, carry: story(
        *(
            track(f"p{number}", *prices, pace=pace)
            for number, (prices, pace) in enumerate(zip(lists, paces, strict=False))
        ),
        hours=hours,
        carry=carry,
    ),
    st.lists(price_lists, min_size=1, max_size=3),
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=3, max_size=3),
    st.integers(1, 15).map(float),
    st.integers(0, 30 * USD),
)


@settings(deadline=None, max_examples=60)
@given(stories)
def test_foresight_is_never_above_the_other_ways(given_story):
    stayed, cheapest, foreseen = otherwise(given_story)
    assert foreseen.micro_usd <= min(stayed.micro_usd, cheapest.micro_usd)
    assert foreseen.regret_micro_usd >= max(stayed.regret_micro_usd, cheapest.regret_micro_usd)


def brute_force(given_story, hours):
    """Every sequence of places, one per hour, at equal paces."""
    tracks = given_story.tracks

    def price(place, hour):
        at = BEGIN + hour * HOUR_S
        known = [micro_usd for since, micro_usd in tracks[place].prices if since <= at]
        return known[-1] if known else tracks[place].prices[0][1]

    best = None
    for places in itertools.product(range(len(tracks)), repeat=hours):
        cost = sum(price(place, hour) for hour, place in enumerate(places))
        cost += sum(
            given_story.carry_micro_usd[a][b] for a, b in itertools.pairwise(places) if a != b
        )
        best = cost if best is None else min(best, cost)
    return best


@settings(deadline=None, max_examples=40)
@given(st.lists(price_lists, min_size=2, max_size=3), st.integers(0, 10 * USD))
def test_foresight_is_the_optimum_of_all_ways(lists, carry):
    hours = 6
    given_story = story(
        *(track(f"p{number}", *prices) for number, prices in enumerate(lists)),
        hours=float(hours), carry=carry,
    )  # fmt: skip
    assert otherwise(given_story)[2].micro_usd == pytest.approx(brute_force(given_story, hours))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (story(), "a price is missing"),
        (story(Track(name="a", prices=())), "a price is missing"),
        (story(track("a", (0, -1))), "below 0"),
        (story(track("a", (0, 1), pace=0.0)), "pace above 0"),
        (story(track("a", (0, 1)), hours=0.0), "work above 0"),
        (story(track("a", (0, 1)), carry_micro_usd=()), "egress is needed"),
    ],
)
def test_what_cannot_be_counted_says_why(wrong, words):
    with pytest.raises(UsageError, match=words):
        otherwise(wrong)
