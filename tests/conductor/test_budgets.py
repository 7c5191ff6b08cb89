"""Budgets: alarms that are told once, a save before the stop, and no budget below what is spent."""

from __future__ import annotations

import pytest

from cloudshift_lab.core.errors import Exhausted, UsageError
from cloudshift_lab.core.orders import OrderResult
from cloudshift_lab.core.run import RunSpec, SaveStats

from .bench import AWS, GCP, SCRIPT, Bench, bench
from .test_money import GB, copying, say

__all__ = ["bench"]
USD = 1_000_000


def alarms(bench: Bench, run_id: str) -> list[int]:
    return [alarm.percent for alarm in bench.service._registry.find(run_id).record.alarms]


def test_each_level_is_told_once_also_after_a_restart(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    assert alarms(bench, run_id) == []
    for clock_s, told in ((505, [50]), (600, [50]), (805, [50, 80]), (850, [50, 80])):
        bench.world.clock_s = clock_s
        bench.step()
        assert alarms(bench, run_id) == told
        bench.restart()
        bench.step()
        assert alarms(bench, run_id) == told
    view = bench.service.run(run_id)
    assert view.budget_alarm == 80
    assert "of the budget of $1.00 is spent (85%)" in view.budget
    bench.world.clock_s = 1005.0
    bench.step()
    assert alarms(bench, run_id) == [50, 80, 100]


def test_the_highest_level_stands_among_the_run_s_findings(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    assert bench.service.run_health(run_id).standing == ()
    found = []
    for clock_s in (505.0, 805.0):
        bench.world.clock_s = clock_s
        bench.step()
        (told,) = bench.service.run_health(run_id).standing
        found.append((told.finding.rule_id, told.finding.severity, told.finding.words))
    assert found == [
        ("run.budget", "watch", "$0.51 of the budget of $1.00 is spent (51%)"),
        ("run.budget", "warning", "$0.81 of the budget of $1.00 is spent (81%)"),
    ]


def test_a_run_is_saved_before_the_last_of_its_budget_is_spent(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(saves=SaveStats(save_s=30.0))
    bench.world.clock_s = 960.0
    bench.step()
    assert bench.service.run(run_id).state == "running"
    bench.world.clock_s = 969.5
    bench.step()
    assert bench.service.run(run_id).state == "stopping"
    for _ in range(3):
        bench.step()
    view = bench.service.run(run_id)
    assert puppet.obeyed == ["stop"], "an agent saves before it stops"
    assert (view.state, view.spent_micro_usd < USD) == ("stopped", True)
    assert view.error is not None and "the budget of $1.00 is used up" in view.error
    assert "cost gpt --budget" in view.error


def test_a_stopped_run_goes_on_with_more_and_not_before(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    bench.world.clock_s = 999.5
    for _ in range(4):
        bench.step()
    assert bench.service.run(run_id).state == "stopped"
    with pytest.raises(Exhausted, match=r"give it more: cost gpt --budget USD"):
        bench.service.resume(run_id)
    view = bench.service.set_budget(run_id, 4 * USD)
    assert view.budget is not None and view.budget.micro_usd == 4 * USD
    bench.service.resume(run_id)
    bench.restart()
    for _ in range(3):
        bench.step()
    assert bench.service.run(run_id).state == "running"
    bench.world.clock_s = 2100.0
    bench.step()
    assert alarms(bench, run_id) == [50, 80, 100, 50], "the larger budget has its own levels"


@pytest.mark.parametrize("micro_usd", [0, -5, 100_000])
def test_a_budget_below_what_is_spent_is_refused_and_changes_nothing(
    bench: Bench, micro_usd: int
) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    bench.world.clock_s = 200.0
    with pytest.raises(UsageError, match=r"is spent already|has to be above"):
        bench.service.set_budget(run_id, micro_usd)
    cost = bench.service.cost(run_id)
    assert cost.budget is not None and cost.budget.micro_usd == USD


def test_a_run_is_not_started_with_nothing_to_spend(bench: Bench) -> None:
    with pytest.raises(UsageError, match="a budget has to be above"):
        bench.service.train(
            RunSpec(name="gpt", script=SCRIPT, target=AWS, budget_micro_usd=-1_000_000)
        )
    assert bench.service.runs() == ()


def test_a_finished_run_takes_no_budget(bench: Bench) -> None:
    run_id = bench.train()
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="finished")
    puppet.is_gone = True
    bench.step()
    with pytest.raises(UsageError, match="has finished"):
        bench.service.set_budget(run_id, USD)


def test_bytes_that_moves_carry_are_spent_too(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    view, target, order_id = copying(bench, run_id, limit_micro_usd=10**9)
    say(target, order_id, OrderResult(state="done", num_bytes=12 * GB))
    bench.settle(view.migration_id)
    for _ in range(4):
        bench.step()
    assert bench.service.cost(run_id).total_micro_usd > USD
    ended = bench.service.run(run_id)
    assert ended.state == "stopped" and ended.error is not None
    assert "the budget of $1.00 is used up" in ended.error
    assert 100 in alarms(bench, run_id)


def test_a_move_is_called_off_when_the_budget_ends(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=USD)
    view, *_ = copying(bench, run_id, limit_micro_usd=10**9)
    bench.world.clock_s = 700.0
    ended = bench.settle(view.migration_id)
    for _ in range(4):
        bench.step()
    assert ended.phase == "rolled_back"
    assert bench.service.run(run_id).state == "stopped"


def test_without_a_budget_nothing_is_told(bench: Bench) -> None:
    run_id = bench.train()
    bench.world.clock_s = 1e6
    bench.step()
    view = bench.service.run(run_id)
    assert (view.budget, view.budget_alarm, view.state) == ("", 0, "running")
    assert bench.service.cost(run_id).budget is None
    assert bench.move(run_id, GCP).phase == "source_retired"
