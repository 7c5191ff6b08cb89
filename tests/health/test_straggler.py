import numpy as np
import pytest

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.straggler import StragglerWatch, find_stragglers
from cloudshift_lab.health.windows import StepWindow

STEPS, ONSET = 320, 200


def times_s(ranks: int = 16, sigma: float = 0.04, seed: int = 3) -> np.ndarray:
    """A healthy run: ranks differ a little for good, steps for all alike, and a few spikes."""
    rng = np.random.default_rng(seed)
    base = 0.5 * (1 + 0.01 * rng.standard_normal(ranks))
    common = np.exp(0.02 * rng.standard_normal((STEPS, 1)))
    own = np.exp(sigma * rng.standard_normal((STEPS, ranks)))
    spikes = np.where(rng.random((STEPS, ranks)) < 0.01, 1.8, 1.0)
    return base * common * own * spikes


def look(own_s: np.ndarray, ranks_per_node: int = 8, first_step: int = 0) -> tuple[Finding, ...]:
    return find_stragglers(StepWindow(first_step, {"compute": own_s}, ranks_per_node))


def named(found: tuple[Finding, ...]) -> set[int]:
    return {rank for each in found for rank in each.ranks}


@pytest.mark.parametrize("seed", range(4))
def test_a_healthy_run_has_no_stragglers(seed: int) -> None:
    assert look(times_s(seed=seed)) == ()


@pytest.mark.parametrize(("factor", "within"), [(1.07, 40), (1.15, 15), (2.0, 8)])
def test_a_rank_that_becomes_slow_is_named_within_steps(factor: float, within: int) -> None:
    own_s = times_s()
    own_s[ONSET:, 5] *= factor
    first = look(own_s)[0]
    assert (first.rule_id, first.ranks) == ("straggler.degrading", (5,))
    assert ONSET <= first.at <= ONSET + within


def test_a_run_almost_without_noise_is_judged_like_any_other() -> None:
    own_s = times_s(sigma=0.001)
    assert look(own_s) == ()
    own_s[ONSET:, 5] *= 1.05
    assert named(look(own_s)) == {5}
    still_s = np.full((STEPS, 16), 0.5)
    assert look(still_s) == ()
    still_s[ONSET:, 5] *= 1.05
    assert named(look(still_s)) == {5}


def test_only_a_persistent_tenth_makes_a_straggler() -> None:
    own_s = times_s(sigma=0.02)
    own_s[ONSET:, 5] *= 1.06
    own_s[ONSET:, 11] *= 1.20
    found = look(own_s)
    tiers = {(each.rule_id, each.ranks) for each in found}
    assert ("straggler.degrading", (5,)) in tiers
    assert ("straggler.rank", (11,)) in tiers
    assert ("straggler.rank", (5,)) not in tiers


def test_a_short_burst_makes_no_straggler_of_the_second_tier() -> None:
    own_s = times_s(sigma=0.02)
    own_s[ONSET : ONSET + 12, 5] *= 1.5
    assert all(each.rule_id != "straggler.rank" for each in look(own_s))


def test_one_of_two_nodes_is_named_although_half_of_the_ranks_are_slow() -> None:
    own_s = times_s()
    own_s[ONSET:, 8:] *= 1.06
    found = look(own_s)
    nodes = [each for each in found if each.rule_id == "straggler.node"]
    assert [each.subject.name for each in nodes] == ["1"]
    assert named(found) == set(range(8, 16))


def test_a_node_is_seen_before_any_of_its_ranks_would_be() -> None:
    own_s = times_s(ranks=32)
    own_s[ONSET:, 8:16] *= 1.03
    found = look(own_s)
    assert found[0].rule_id == "straggler.node"
    assert found[0].ranks == tuple(range(8, 16))


def test_one_slow_rank_is_not_taken_for_its_whole_node() -> None:
    own_s = times_s()
    own_s[ONSET:, 5] *= 2
    assert named(look(own_s)) == {5}


def test_a_run_that_becomes_slower_as_a_whole_has_no_straggler_but_is_reported() -> None:
    own_s = times_s()
    own_s[ONSET:] *= 1.10
    found = look(own_s)
    assert [each.rule_id for each in found] == ["slowdown.run"]
    assert found[0].subject.kind == "run"


def test_of_two_ranks_the_slow_ones_section_is_blamed_too() -> None:
    own_s = times_s(ranks=2, sigma=0.02)
    data_s = np.full_like(own_s, 0.3)
    own_s[ONSET:, 1] *= 1.5
    found = find_stragglers(StepWindow(0, {"data": data_s, "forward": own_s}, 2))
    slow = next(each for each in found if each.rule_id == "straggler.rank")
    assert slow.ranks == (1,)
    assert "growth of forward by 0.2" in slow.words


def test_the_section_that_grew_is_blamed() -> None:
    compute_s, wait_s = times_s(), 0.01 * times_s(seed=9)
    wait_s[ONSET:, 5] += 0.1
    window = StepWindow(0, {"compute": compute_s, "data_wait": wait_s}, 8)
    found = [each for each in find_stragglers(window) if each.rule_id == "straggler.rank"]
    assert "growth of data_wait" in found[0].words
    assert found[0].evidence[-1].value == pytest.approx(0.1, rel=0.3)


def test_a_decision_does_not_depend_on_steps_that_come_after_it() -> None:
    own_s = times_s()
    own_s[ONSET:, 5] *= 1.2
    whole = look(own_s)
    cut = look(own_s[: int(whole[0].at) + 1])
    assert cut[0] == whole[0]


def test_a_rank_that_recovers_is_no_longer_slow() -> None:
    own_s = times_s()
    own_s[120:160, 5] *= 1.4
    watch = StragglerWatch(("compute",), 16, 8)
    seen = []
    for step, row in enumerate(own_s):
        watch.observe(step, row[None])
        seen.append(watch.degrading)
    assert (5,) in seen
    assert watch.degrading == ()
    assert watch.stragglers == ()


def test_missing_times_are_no_slowness() -> None:
    own_s = times_s()
    own_s[150:, 5] = np.nan
    own_s[210:230] = np.nan
    assert look(own_s) == ()


def test_steps_are_counted_from_the_windows_first() -> None:
    own_s = times_s()
    own_s[ONSET:, 5] *= 2
    assert look(own_s, first_step=1000)[0].at >= 1000 + ONSET


def test_a_watch_refuses_times_of_other_ranks() -> None:
    watch = StragglerWatch(("compute",), 16, 8)
    with pytest.raises(UsageError, match="new watch"):
        watch.observe(0, np.ones((1, 8)))


def test_nothing_of_it_may_act_alone() -> None:
    own_s = times_s()
    own_s[ONSET:, 5] *= 2
    assert not any(each.deterministic for each in look(own_s))
