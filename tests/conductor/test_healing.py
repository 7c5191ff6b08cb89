"""A run whose agent or machine is gone goes on by itself, within limits that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudshift_lab.conductor.automation import Automation, save_automation
from cloudshift_lab.conductor.healing import Loss, decide, finding_of
from cloudshift_lab.conductor.records import Restarted
from cloudshift_lab.core.asks import NoticeAsk
from cloudshift_lab.core.errors import Conflict, Exhausted, Fenced, UsageError
from cloudshift_lab.core.home import load_clouds, save_clouds
from cloudshift_lab.core.placement import Clouds, Offer
from cloudshift_lab.core.run import RunView
from cloudshift_lab.core.steps import GcAsk
from cloudshift_lab.engines.engine import machine_of

from .bench import AWS, GCP, Bench, bench

__all__ = ["bench"]


def commit(bench: Bench, run_id: str, step: int) -> None:
    puppet = newest(bench, run_id)
    puppet.log.commit(
        generation=puppet.job.generation, step=step, manifest_key=f"m{step}",
        manifest_digest=f"d{step}", nonce=f"commit-{step}",
    )  # fmt: skip
    puppet.say(committed_step=step, committed_at=puppet.world.now())
    bench.step()


def newest(bench: Bench, run_id: str) -> Any:
    """The agent of the newest generation that was started."""
    return bench.engine.puppets[run_id, max(n for run, n in bench.engine.puppets if run == run_id)]


def lose(bench: Bench, run_id: str) -> None:
    newest(bench, run_id).is_gone = True
    bench.step()


def settled(bench: Bench, run_id: str, seconds: int = 40) -> RunView:
    for _ in range(seconds):
        bench.step()
    return bench.service.run(run_id)


def add_offers(root: Path, *offers: Offer) -> None:
    clouds = tuple(
        msgspec.structs.replace(
            cloud, offers=(*cloud.offers, *(one for one in offers if one.cloud == cloud.name))
        )
        for cloud in load_clouds(root).clouds
    )
    save_clouds(root, Clouds(clouds=clouds))


def test_a_run_whose_agent_is_gone_goes_on_from_its_newest_step_and_says_so(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    zombie = newest(bench, run_id)
    lose(bench, run_id)
    assert bench.service.run(run_id).state == "starting"
    view = settled(bench, run_id, 3)
    assert (view.state, view.generation, view.error) == ("running", 2, None)
    assert (view.restart, view.restarts, view.placement.target) == ("auto", 1, AWS)
    assert view.restarted == (
        "started again by itself from step 7: the agent ended without a word (step 7 is saved)"
    )
    job = newest(bench, run_id).job
    assert (job.restore_step, job.exclude) == (7, ())
    with pytest.raises(Fenced):
        zombie.log.commit(generation=1, step=9, manifest_key="k", manifest_digest="d", nonce="late")
    bench.restart()
    assert bench.service.run(run_id).restarted == view.restarted


def test_the_first_restart_waits_for_nothing(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    assert bench.engine.started == [1, 2]


def test_a_commit_that_its_agent_could_not_tell_of_is_continued_from(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    puppet = newest(bench, run_id)
    puppet.log.commit(generation=1, step=9, manifest_key="m", manifest_digest="d", nonce="untold")
    lose(bench, run_id)
    assert newest(bench, run_id).job.restore_step == 9


def test_a_run_that_gets_no_further_three_times_is_left_and_says_why(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    for _ in range(4):
        lose(bench, run_id)
        settled(bench, run_id)
    view = bench.service.run(run_id)
    assert view.state == "lost"
    assert bench.engine.started == [1, 2, 3, 4]
    assert "3 restarts in a row ended without a newer checkpoint than 7" in str(view.error)
    assert "cloudshift resume run-1" in str(view.error)
    bench.restart()
    again = settled(bench, run_id)
    assert (again.state, again.error) == ("lost", view.error)
    bench.service.resume(run_id)
    settled(bench, run_id, 3)
    lose(bench, run_id)
    assert settled(bench, run_id).state == "running", "a person's word begins the count anew"


def test_a_run_that_gets_further_each_time_is_started_again_as_often_as_an_hour_allows(
    bench: Bench,
) -> None:
    run_id = bench.train()
    for number in range(6):
        commit(bench, run_id, 10 + number)
        lose(bench, run_id)
        assert settled(bench, run_id, 3).state == "running"
    commit(bench, run_id, 20)
    lose(bench, run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "6 automatic restarts within an hour are enough; it is started again by itself in 5" in (
        str(view.error)
    )
    bench.restart()
    bench.world.clock_s += 3500.0
    assert settled(bench, run_id, 60).state == "running"
    assert newest(bench, run_id).job.restore_step == 20


def test_a_dry_run_says_what_would_be_done_and_does_nothing(bench: Bench) -> None:
    save_automation(bench.root, Automation(dry_run=True))
    run_id = bench.train()
    lose(bench, run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "it would be started again by itself, were this no dry run" in str(view.error)
    assert bench.engine.started == [1]


def test_no_automatic_action_allowed_is_none(bench: Bench) -> None:
    save_automation(bench.root, Automation(max_per_h=0))
    run_id = bench.train()
    lose(bench, run_id)
    assert "no automatic restart is allowed here" in str(settled(bench, run_id).error)
    assert bench.engine.started == [1]


def test_a_machine_that_a_run_is_lost_on_twice_is_not_used_again(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    machines = [machine_of(newest(bench, run_id).job)]
    for _ in range(3):
        lose(bench, run_id)
        view = settled(bench, run_id)
        machines.append(machine_of(newest(bench, run_id).job))
    assert machines == [f"{AWS}/0", f"{AWS}/0", f"{AWS}/1", f"{AWS}/2"]
    assert f"without {AWS}/1" in view.restarted


def test_a_machine_that_was_said_to_go_is_not_used_again(bench: Bench) -> None:
    run_id = bench.train()
    bench.service.notice(run_id, NoticeAsk(within_s=2.0))
    lose(bench, run_id)
    assert newest(bench, run_id).job.exclude == (f"{AWS}/0",)
    assert "taken away, as had been said" in bench.service.run(run_id).restarted


def test_where_no_machine_is_left_the_run_goes_on_at_another_offer_of_its_place(
    bench: Bench,
) -> None:
    spot = Offer("aws-sim", "us-east-1", "m", 1_200_000, market="spot", simulated=True)
    dear = Offer("aws-sim", "us-east-1", "xl", 9_000_000, simulated=True)
    run_id = bench.train()
    add_offers(bench.root, dear, spot)
    commit(bench, run_id, 7)
    refused: list[str] = []
    start = bench.engine._start

    def only_spot(job: Any) -> None:
        if job.placement.market != "spot":
            refused.append(machine_of(job))
            raise Exhausted("no machine is left here; choose another place")
        start(job)

    bench.engine._start = only_spot
    lose(bench, run_id)
    view = settled(bench, run_id, 60)
    assert refused == [f"{AWS}/0", f"{AWS}/0"]
    assert (view.state, view.placement.market) == ("running", "spot")
    assert view.price_micro_usd_per_h == 1_200_000


def test_a_run_goes_on_where_its_spec_allows_it_and_nowhere_that_has_another_store(
    bench: Bench,
) -> None:
    west = Offer("aws-sim", "us-west-2", "m", 9_900_000, simulated=True)
    add_offers(bench.root, west)
    with pytest.raises(UsageError, match="keeps its state in another store"):
        bench.train(restart_on=(GCP,))
    run_id = bench.train(restart_on=("aws-sim:us-west-2",))
    commit(bench, run_id, 7)
    for _ in range(3):
        lose(bench, run_id)
        view = settled(bench, run_id)
    assert (view.state, view.placement.region) == ("running", "us-west-2")
    assert view.price_micro_usd_per_h == 9_900_000


def test_a_run_that_was_stopped_stays_stopped(bench: Bench) -> None:
    run_id = bench.train()
    bench.service.stop(run_id)
    lose(bench, run_id)
    assert settled(bench, run_id).state == "stopped"
    assert bench.engine.started == [1]


def test_a_lost_run_that_waits_to_go_on_can_be_stopped(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    settled(bench, run_id, 3)
    lose(bench, run_id)
    assert bench.service.run(run_id).state == "starting"
    assert "it is started again by itself in 10 s" in str(bench.service.run(run_id).error)
    with pytest.raises(Conflict, match="has not ended; stop it first"):
        bench.service.ask(GcAsk(is_now=True, without=(run_id,)))
    bench.service.stop(run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert str(view.error).endswith("it was stopped; continue it with `cloudshift resume run-1`")
    assert bench.engine.started == [1, 2]


def test_a_conductor_that_dies_while_a_run_waits_starts_it_when_it_is_back(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    settled(bench, run_id, 3)
    lose(bench, run_id)
    bench.restart()
    assert bench.service.run(run_id).state == "starting"
    assert settled(bench, run_id).state == "running"
    assert bench.engine.started == [1, 2, 3]


def test_a_person_need_not_wait_for_it(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    lose(bench, run_id)
    settled(bench, run_id, 3)
    lose(bench, run_id)
    bench.service.resume(run_id)
    assert settled(bench, run_id).state == "running"
    assert bench.engine.started == [1, 2, 3]


def test_a_used_up_budget_keeps_a_lost_run_from_going_on(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=10_000)
    bench.world.clock_s += 60.0
    newest(bench, run_id).say()
    lose(bench, run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "the budget of $0.0100 is used up" in str(view.error)
    assert bench.engine.started == [1]


def test_a_run_whose_checkpoint_is_lost_does_not_begin_anew(bench: Bench) -> None:
    run_id = bench.train()
    commit(bench, run_id, 7)
    store = bench.store("aws-sim")
    for key in list(store.list("")):
        if "/log/" in key:
            store.delete(key)
    lose(bench, run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "no longer holds run-1's checkpoint of step 7" in str(view.error)
    assert bench.engine.started == [1]


def test_a_run_that_was_lost_long_before_that_was_seen_waits_for_a_person(bench: Bench) -> None:
    run_id = bench.train()
    newest(bench, run_id).is_gone = True
    bench.world.clock_s += 3 * 3600.0
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "its agent spoke last 3 h before that was seen" in str(view.error)
    assert bench.engine.started == [1]


def test_a_run_that_another_owner_has_taken_over_is_left_to_it(bench: Bench) -> None:
    run_id = bench.train()
    newest(bench, run_id).say(state="fenced")
    lose(bench, run_id)
    view = settled(bench, run_id)
    assert view.state == "lost"
    assert "another owner has taken" in str(view.error)
    assert bench.engine.started == [1]


def test_a_script_that_fails_is_not_started_again_by_the_conductor(bench: Bench) -> None:
    run_id = bench.train()
    newest(bench, run_id).say(state="failed", error="ValueError: nan")
    lose(bench, run_id)
    assert settled(bench, run_id).state == "failed"
    assert bench.engine.started == [1]


@pytest.mark.parametrize(("restart", "times"), [("auto", 3), ("never", 0)])
def test_the_agent_starts_ranks_again_unless_the_run_is_not_to_be(
    bench: Bench, restart: str, times: int
) -> None:
    run_id = bench.train(restart=restart, spare="off")
    bench.move(run_id)
    for generation in (1, 2):
        job = bench.engine.puppets[run_id, generation].job
        assert (job.restarts, job.spare) == (times, "off")


def test_what_is_no_way_of_restarting_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="restart is one of auto, never"):
        bench.train(restart="sometimes")


LOSS = Loss(
    run_id="run-1", generation=3, at=1000.0, heard_at=990.0, words="gone", step=7, in_vain=0
)


def past(number: int, at: float) -> Restarted:
    return Restarted(at=at, key=f"run.lost/run/run-1 generation {number}", because="gone", step=1)


def test_the_hour_is_counted_from_the_restart_that_stands_in_the_way() -> None:
    restarts = [past(1, 100.0), past(2, 900.0)]
    ruled = decide(LOSS, restarts, Automation(max_per_h=2), 1000.0)
    assert (ruled.verdict, ruled.at) == ("later", 3700.0)
    assert decide(LOSS, restarts, Automation(max_per_h=2), 3699.0).verdict == "later"
    assert decide(LOSS, restarts, Automation(max_per_h=2), 3700.0).verdict == "now"
    assert decide(LOSS, restarts, Automation(max_per_h=3), 1000.0).verdict == "now"


def test_a_loss_is_a_proven_finding_of_its_own() -> None:
    finding = finding_of(LOSS)
    assert finding.deterministic and finding.action == "restart the run"
    assert finding.key == "run.lost/run/run-1 generation 3"
    assert finding.key != finding_of(Loss(**{**LOSS.__dict__, "generation": 4})).key
