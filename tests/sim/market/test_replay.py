"""A replay bills what the benchmark's rules say, to the cent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudshift_lab.market.places import Choice, Flags, Look, Places, Task
from cloudshift_lab.market.policy import CostToFinish
from cloudshift_lab.market.safety import SafetyNet
from cloudshift_lab.sim.market.optimum import omniscient_usd
from cloudshift_lab.sim.market.replay import Episode, play
from cloudshift_lab.sim.market.rivals import Stay, UniformProgress

NEAR, FAR = 0, 1


class Script:
    """Does what it was told, tick by tick, and then goes on."""

    def __init__(self, *choices: Choice | None) -> None:
        self._choices = list(choices)
        self.looks: list[Look] = []

    def choose(self, look: Look) -> Choice | None:
        self.looks.append(look)
        return self._choices.pop(0) if self._choices else look.running


def job(
    is_up: Flags, *, work_h: float = 2.0, start_h: float = 0.5, ratio: float = 0.0,
    transfer_h: float = 0.0, checkpoint_h: float = 0.0,
) -> Episode:  # fmt: skip
    """Two places in two regions, ticks of an hour, $2 and $3 an hour, $10 of egress."""
    deadline_h = float(len(is_up))
    apart = np.array([[0.0, 1.0], [1.0, 0.0]])
    return Episode(
        Places.of(("near", "far"), ("n", "f"), np.array([20.0, 21.0]), 10 * apart),
        Task(deadline_h / ratio if ratio else work_h, deadline_h, start_h, 1.0),
        is_up, np.tile([2.0, 3.0], (len(is_up), 1)), transfer_h * apart, checkpoint_h,
    )  # fmt: skip


def up(*ticks: str) -> Flags:
    """``"nf"``: both are up; ``"n"``: only the near one; ``""``: none."""
    return np.array([["n" in tick, "f" in tick] for tick in ticks])


def test_a_tick_that_was_begun_is_paid_in_full() -> None:
    outcome = play(job(up("n", "n", "n", "n")), Script(Choice(NEAR, "spot")))
    assert (outcome.usd, outcome.end_h, outcome.on_time) == (6.0, 3.0, True)


def test_a_preempted_job_starts_again_and_pays_egress_to_another_region() -> None:
    script = Script(Choice(NEAR, "spot"), Choice(FAR, "spot"))
    outcome = play(job(up("n", "f", "f", "f")), script)
    assert outcome.usd == 2 + 10 + 3 + 3
    assert script.looks[1].running is None
    assert script.looks[1].done_h == pytest.approx(0.5)


def test_what_no_checkpoint_holds_is_lost_with_the_machine() -> None:
    script = Script(None, Choice(NEAR, "spot"), None, None, Choice(NEAR, "spot"))
    play(job(up("n", "n", "n", "", "n", "n", "n", "n"), checkpoint_h=1.0, work_h=3.0), script)
    assert script.looks[2].done_h == 0.0
    assert script.looks[3].done_h == pytest.approx(0.5)


def test_who_leaves_by_choice_saves_first() -> None:
    script = Script(Choice(NEAR, "spot"), None)
    play(job(up("n", "n", "n", "n"), checkpoint_h=5.0), script)
    assert script.looks[2].done_h == pytest.approx(0.5)


def test_an_exposed_transfer_delays_the_start_and_the_checkpoint_stays_until_it_is_through() -> (
    None
):
    script = Script(Choice(NEAR, "spot"), Choice(FAR, "spot"), Choice(FAR, "spot"))
    play(job(up("n", "f", "f", "f", "f"), transfer_h=1.25), script)
    assert script.looks[2].home == NEAR
    assert script.looks[2].starting_h == pytest.approx(0.75)
    assert script.looks[3].home == FAR
    assert script.looks[3].done_h == pytest.approx(0.75)


def test_a_policy_that_wants_what_is_not_there_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="near has no spot"):
        play(job(up("f", "f", "f")), Script(Choice(NEAR, "spot")))


def test_hindsight_waits_for_the_long_calm_instead_of_starting_twice() -> None:
    each = job(up("n", "", "n", "n", "n"), work_h=2.5)
    assert omniscient_usd(each) == pytest.approx(6.0)


def test_hindsight_moves_only_when_that_is_cheaper() -> None:
    assert omniscient_usd(job(up("n", "f", "f", "f"))) == pytest.approx(9.0)


def test_hindsight_buys_on_demand_when_nothing_else_is_left() -> None:
    assert omniscient_usd(job(up("", "", ""))) == pytest.approx(60.0)


def test_who_stays_waits_and_then_buys_on_demand() -> None:
    each = job(up("n", "f", "f", "f", "f"))
    outcome = play(each, Stay(each))
    assert outcome.on_time
    assert outcome.egress_usd == 0


def test_uniform_progress_buys_on_demand_as_soon_as_it_is_behind() -> None:
    each = job(up("n", "", "", "", "n", "n"))
    assert play(each, UniformProgress(each)).on_demand_usd > 0


class Reckless:
    """Takes every risk that the net allows, wherever there is one."""

    def __init__(self, each: Episode, seed: int) -> None:
        self._net = each.net
        self._rng = np.random.default_rng(seed)

    def choose(self, look: Look) -> Choice | None:
        """A random one of all choices that the net lets pass."""
        risky = list(np.flatnonzero(look.is_up & self._net.may_start(look)))
        choices: list[Choice | None] = [Choice(int(place), "spot") for place in risky]
        if self._net.may_wait(look):
            choices.append(None)
        running = look.running
        if running is not None and running.mode == "spot" and self._net.may_stay(look):
            choices.append(running)
        if not choices:
            return self._net.fallback(look)
        return choices[int(self._rng.integers(len(choices)))]


WORLDS = st.tuples(
    st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(1.05, 3), st.floats(0, 2),
    st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.floats(0, 0.9),
)  # fmt: skip


def _world(drawn: tuple[int, float, float, float, float, float]) -> Episode:
    seed, share, ratio, transfer_h, checkpoint_h, start_h = drawn
    is_up = np.random.default_rng(seed).random((30, 2)) < share
    return job(
        is_up, ratio=max(ratio, 30 / (30 - start_h) + 1e-6), start_h=start_h,
        transfer_h=transfer_h, checkpoint_h=checkpoint_h,
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(WORLDS)
def test_no_deadline_is_missed_whatever_risks_the_net_lets_pass(
    drawn: tuple[int, float, float, float, float, float],
) -> None:
    each = _world(drawn)
    assert play(each, Reckless(each, drawn[0])).on_time


@settings(max_examples=100, deadline=None)
@given(WORLDS)
def test_the_policy_misses_no_deadline_and_never_beats_hindsight(
    drawn: tuple[int, float, float, float, float, float],
) -> None:
    each = _world(drawn)
    outcome = play(each, CostToFinish(each.places, each.task, net=each.net))
    assert outcome.on_time
    assert outcome.usd >= omniscient_usd(each) - 1e-6


def test_a_net_that_counts_live_progress_does_miss_deadlines() -> None:
    """The control: without what a preemption undoes, the same jobs are late."""
    late = 0
    for seed in range(200):
        each = _world((seed, 0.5, 1.1, 1.0, 3.0, 0.2))
        believing = SafetyNet(each.places, each.task, 0 * each.transfer_h, 0.0)
        late += not play(each, CostToFinish(each.places, each.task, net=believing)).on_time
    assert late > 0
