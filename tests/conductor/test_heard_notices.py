"""What a machine hears of its own end reaches the conductor through the agent's word."""

from __future__ import annotations

import pytest

from cloudshift_lab.core.asks import MoveAsk, NoticeAsk

from .bench import GCP, Bench, bench

__all__ = ["bench"]
SAYS = "AWS is about to terminate this spot instance (SIMULATED)"


def hear(bench: Bench, run_id: str, in_s: float, *, generation: int = 1) -> None:
    puppet = bench.engine.puppets[run_id, generation]
    puppet.say(notice_until=bench.world.now() + in_s, notice_from=SAYS)


def notices_sent(bench: Bench, run_id: str, generation: int = 1) -> int:
    orders = bench.engine.puppets[run_id, generation].orders
    return sum(order.kind == "notice" for order in orders)


def test_what_the_machine_heard_is_shown_with_who_said_it_and_what_can_be_saved(
    bench: Bench,
) -> None:
    run_id = bench.train()
    hear(bench, run_id, 120.0)
    bench.step()
    bench.step()
    view = bench.service.run(run_id)
    assert view.notice_until == pytest.approx(bench.world.now() + 118.0, abs=2.0)
    assert view.notice.startswith(f"{SAYS}: 1 min 59 s are enough to save the newest step")


def test_an_agent_that_said_it_is_not_told_again(bench: Bench) -> None:
    run_id = bench.train()
    hear(bench, run_id, 120.0)
    for _ in range(5):
        bench.step()
    assert notices_sent(bench, run_id) == 0
    told = [event for event in journal(bench, run_id) if '"notice"' in event]
    assert len(told) == 1, "it is kept once, however often it is read"


def journal(bench: Bench, run_id: str) -> list[str]:
    files = (bench.root / "runs" / run_id).glob("*.jsonl")
    return [line for file in files for line in file.read_text().splitlines()]


def test_a_sooner_end_than_a_person_said_counts(bench: Bench) -> None:
    run_id = bench.train()
    bench.service.notice(run_id, NoticeAsk(within_s=500.0))
    hear(bench, run_id, 30.0)
    bench.step()
    until = bench.service.run(run_id).notice_until
    assert until is not None and until < bench.world.now() + 31.0


def test_a_drained_run_says_what_is_saved_and_what_to_do_next(bench: Bench) -> None:
    run_id = bench.train()
    hear(bench, run_id, 120.0)
    bench.engine.puppets[run_id, 1].say(state="drained", committed_step=7)
    bench.step()
    bench.step()
    notice = bench.service.run(run_id).notice
    assert notice.startswith(f"{SAYS}: step 7 is saved")
    assert f"cloudshift migrate {run_id} --to CLOUD" in notice
    assert f"cloudshift resume {run_id}" in notice


def test_a_machine_that_was_spared_is_not_said_to_go_any_more(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    hear(bench, run_id, 1.0)
    bench.step()
    bench.engine.puppets[run_id, 1].say(notice_until=None)
    for _ in range(40):
        bench.step()
    view = bench.service.run(run_id)
    assert (view.notice_until, view.notice) == (None, "")
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    bench.step()
    assert "ended without a word" in str(bench.service.run(run_id).error)


def test_a_spared_machine_may_be_given_another_notice(bench: Bench) -> None:
    run_id = bench.train()
    hear(bench, run_id, 1.0)
    bench.step()
    bench.engine.puppets[run_id, 1].say(notice_until=None)
    for _ in range(40):
        bench.step()
    hear(bench, run_id, 60.0)
    bench.step()
    assert bench.service.run(run_id).notice_until is not None


def test_a_machine_that_went_as_it_had_heard_says_so(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    hear(bench, run_id, 2.0)
    bench.step()
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step(100.0)
    bench.step()
    view = bench.service.run(run_id)
    assert view.state == "lost"
    assert "taken away, as had been said [simulated]" in str(view.error)
    assert "cloudshift resume" in str(view.error)


def test_a_machine_that_went_before_its_notice_was_read_says_so(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    hear(bench, run_id, 30.0)
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    view = bench.service.run(run_id)
    assert view.state == "lost"
    assert "taken away, as had been said [simulated]" in str(view.error)


def test_a_source_that_heard_of_its_end_drains_its_move_at_once(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600))
    bench.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    bench.approve(view)
    bench.settle(view.migration_id, until="precopying")
    hear(bench, run_id, 60.0)
    bench.step()
    assert bench.service.migration(view.migration_id).phase == "draining"
    assert bench.settle(view.migration_id).phase == "source_retired"


def test_a_target_that_heard_of_its_end_brings_its_move_back(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600))
    bench.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    bench.approve(view)
    bench.settle(view.migration_id, until="precopying")
    hear(bench, run_id, 60.0, generation=2)
    bench.step()
    bench.step()
    assert bench.settle(view.migration_id).phase == "rolled_back"
    assert bench.service.run(run_id).notice == ""


def test_a_notice_is_told_once_and_not_also_as_a_trouble(bench: Bench) -> None:
    run_id = bench.train()
    hear(bench, run_id, 120.0)
    bench.engine.puppets[run_id, 1].say(
        warnings=("the disk is slow; look at it", f"{SAYS}: this machine goes in 120 s: hurry")
    )
    bench.step()
    bench.step()
    view = bench.service.run(run_id)
    assert view.notice.startswith(SAYS)
    assert view.error == "the disk is slow; look at it"
