from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.core.errors import NotFound, UsageError
from cloudshift_lab.sim.health.data import Fault
from cloudshift_lab.sim.health.placing import DAY_S, Fleet, interruptions
from cloudshift_lab.sim.health.replay import WAYS, Setup, replay, text_of


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty nodes over 300 days, of which ten are lemons."""
    rng = np.random.default_rng(4)
    rows = ["node_id,start_day,end_day,level,class,desc"]
    for node in range(40):
        for _ in range(12 if node < 10 else 2):
            begin = rng.uniform(5, 295)
            rows.append(f"n{node},{begin:.3f},{begin + rng.uniform(0.1, 3):.3f},Hardware,GPU,x")
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_each_practice_loses_less_than_the_one_before(trace: Path) -> None:
    played = replay(trace, Setup(nodes=20, seeds=4))
    lost = [each.unplanned_s for each in played.outcomes]
    assert lost == sorted(lost, reverse=True)
    assert len(lost) == len(WAYS)
    assert played.outcomes[-1].less > 0.9
    assert sum(each.share for each in played.outcomes) == pytest.approx(1.0)


def test_the_time_lost_is_told_by_cause_and_adds_up(trace: Path) -> None:
    for each in replay(trace, Setup(nodes=20, seeds=2)).outcomes:
        assert sum(each.by_cause_s.values()) == pytest.approx(each.unplanned_s)
        assert 0 < each.goodput < 1


def test_the_replay_agrees_with_the_formula(trace: Path) -> None:
    for each in replay(trace, Setup(nodes=20, seeds=8)).outcomes:
        assert each.goodput == pytest.approx(each.forecast, abs=0.02)


def test_what_is_simulated_is_said_to_be(trace: Path) -> None:
    text = text_of(replay(trace, Setup(nodes=20, seeds=1)))
    assert "SIMULATED" in text
    assert "REAL" in text


def test_the_same_seeds_give_the_same(trace: Path) -> None:
    once, again = (replay(trace, Setup(nodes=20, seeds=2)).outcomes for _ in range(2))
    assert once == again


def test_a_job_that_leaves_no_spare_is_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no spare"):
        replay(trace, Setup(nodes=400, seeds=1))
    with pytest.raises(NotFound):
        replay(tmp_path / "none.csv", Setup())


def test_a_job_is_hit_only_by_faults_of_nodes_it_has() -> None:
    fleet = Fleet.of([Fault("a", 1.0, 2.0, ""), Fault("a", 5.0, 6.0, "")], num_clean=0)
    assert fleet.num_nodes == 1
    with pytest.raises(UsageError):
        interruptions(fleet, 1, 0, "any")
    two = Fleet.of([Fault("a", 1.0, 2.0, ""), Fault("a", 5.0, 6.0, "")], num_clean=1)
    hits = {interruptions(two, 1, seed, "any") for seed in range(10)}
    assert hits == {(), (DAY_S,)}  # the node that never fails, or one that leaves for it


def test_placement_by_history_keeps_off_the_lemons(trace: Path) -> None:
    played = replay(trace, Setup(nodes=20, seeds=6))
    assert (
        played.outcomes[-1].interruptions_per_day < 0.9 * played.outcomes[0].interruptions_per_day
    )


def test_the_past_a_choice_is_made_from_ends_on_its_day() -> None:
    faults = [Fault("a", 50.0, 51.0, ""), Fault("b", 10.0, 11.0, "")]
    fleet = Fleet.of(faults, num_clean=1)
    early = fleet.risks([0, 1, 2], 20.0)
    assert early[0] == early[2] < early[1]
    late = fleet.risks([0, 1, 2], 60.0)
    assert late[2] < late[1] < late[0]
