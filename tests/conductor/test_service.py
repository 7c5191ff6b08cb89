from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudshift_lab.conductor.claim import Claim, claim_key
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.service import ConductorService
from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.errors import (
    Conflict,
    Denied,
    Exhausted,
    Fenced,
    NotFound,
    StaleDecision,
    Unavailable,
    UsageError,
)
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.placement import Clouds
from cloudshift_lab.core.plan import Decision, MigrationView
from cloudshift_lab.core.run import RunSpec
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.migration import Receipt, check_chain
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import Store
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.spool import spool_key

from .bench import AWS, GCP, SCRIPT, Bench, bench, cloud

__all__ = ["bench"]

# -- starting ----------------------------------------------------------------------------------


def test_a_run_starts_its_first_generation_and_shows_where_and_for_how_much(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.run(run_id)
    assert (view.state, view.generation, view.placement.target) == ("running", 1, AWS)
    assert view.price_micro_usd_per_h == 3_600_000
    assert "2026-07-01" in view.price_source
    assert view.simulated
    assert view.step is not None
    assert bench.service.run("gpt") == bench.service.run(run_id)


def test_the_script_is_frozen_so_that_a_later_edit_changes_nothing(bench: Bench) -> None:
    script = bench.root / "train.py"
    script.write_text(SCRIPT)
    run_id = bench.train(script=str(script))
    script.write_text("raise SystemExit")
    job = bench.engine.puppets[run_id, 1].job
    assert Path(job.script).read_text() == SCRIPT
    assert job.env["PYTHONPATH"] == str(bench.root)


def test_a_syntax_error_names_the_line_and_starts_nothing(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"line 2 .*: x = = 3"):
        bench.train(script="a = 1\nx = = 3\n")
    assert bench.engine.started == []
    assert bench.service.runs() == ()
    assert not (bench.root / "runs").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"target": "gcp-sim:us-central"}, "did you mean 'gcp-sim:us-central1'"),
        ({"target": "azure"}, "no cloud called 'azure'; choose one of: .*aws-sim:us-east-1"),
        ({"name": "run-7"}, "looks like an id"),
        ({"name": "a b"}, "cannot name a run"),
        ({"ranks_per_node": 0}, "1 to 64 ranks"),
        ({"save_policy": "0"}, "no checkpoint interval"),
        ({"save_policy": "often"}, "30s, 5m, 1h"),
        ({"keep": "some"}, "which steps to keep"),
        ({"script": "/nowhere/at/all.py"}, "cannot read '/nowhere/at/all.py'"),
        ({"script": "train.py"}, "relative path"),
        ({"script": "  \n \n"}, "is empty"),
    ],
)
def test_a_wrong_spec_is_one_clear_message_and_starts_nothing(
    bench: Bench, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bench.train(**spec)
    assert bench.engine.started == []


def test_a_name_is_used_once(bench: Bench) -> None:
    bench.train("gpt")
    with pytest.raises(UsageError, match=r"'gpt' exists already \(run-1\)"):
        bench.train("gpt")
    assert bench.train("gpt-2") == "run-2"


class Refusing:
    """A store that answers every write with one error."""

    url = "memory://refusing"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def refuse(*args: Any, **named: Any) -> Any:
            raise self._error

        return refuse


@pytest.mark.parametrize(
    "error",
    [Denied("wrong credentials; mend clouds.json"), Denied("read-only; use another store"),
     Unavailable("no answer; start the cloud"), Exhausted("disk full; free space")],
)  # fmt: skip
def test_a_store_that_cannot_carry_a_run_is_said_before_anything_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(bench.service.places, "store", lambda _name, _url: Refusing(error))
    with pytest.raises(type(error), match=str(error)):
        bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS))
    assert bench.engine.started == []
    assert bench.service.runs() == ()


def test_an_id_that_the_bucket_knows_already_is_not_used_again(bench: Bench) -> None:
    store = bench.store("aws-sim")
    RunLog(store, "run-1", bench.world).acquire(generation=1, owner="somebody", nonce="n")
    assert bench.train() == "run-2"


def test_two_state_directories_never_take_the_same_id_in_one_bucket(bench: Bench) -> None:
    other = ConductorService(bench.root / "other", bench.engine, bench.world)
    save_clouds(bench.root / "other", bench.service.places.clouds())
    bench.engine.prepare = lambda puppet: setattr(puppet, "is_frozen", True)
    names = [
        service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS)).run_id
        for service in (bench.service, other)
    ]
    other.telemetry.close()
    assert names == ["run-1", "run-2"]


def test_a_claim_whose_race_was_lost_takes_the_next_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bench.store("aws-sim")
    create = store.create

    def rival_first(key: str, data: bytes) -> bool:
        if key == claim_key("run-1"):
            create(key, b'{"run_id":"run-1","owner":"a rival"}')
        return create(key, data)

    monkeypatch.setattr(store, "create", rival_first)
    assert bench.train() == "run-2"
    job = bench.engine.puppets["run-2", 1].job
    assert from_json(store.get(claim_key("run-2")), Claim) == Claim("run-2", job.owner)


def test_every_attempt_has_an_owner_of_its_own_that_survives_a_restart(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    bench.move(run_id)
    bench.engine.puppets[run_id, 2].is_gone = True
    bench.step()
    bench.service.resume(run_id)
    owners = [bench.engine.puppets[run_id, number].job.owner for number in (1, 2, 3)]
    assert [owner.rpartition(":")[0] for owner in owners] == [
        "run-1:start", "run-1:mig-1", "run-1:resume-3",
    ]  # fmt: skip
    assert len({owner.rpartition(":")[2] for owner in owners}) == 3
    bench.restart()
    attempts = bench.service._registry.find(run_id).record.attempts
    assert [attempt.job.owner for attempt in attempts.values()] == owners


def test_an_unknown_run_lists_the_known_ones(bench: Bench) -> None:
    with pytest.raises(NotFound, match="none yet"):
        bench.service.run("x")
    bench.train()
    with pytest.raises(NotFound, match=r"no run called 'x'; choose one of: run-1 \(gpt\)"):
        bench.service.run("x")


# -- the end of a run --------------------------------------------------------------------------


def test_a_failing_script_shows_the_rank_and_its_traceback(bench: Bench) -> None:
    run_id = bench.train()
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="failed", error="ValueError: nan", error_rank=1, traceback="Traceback ...")
    puppet.is_gone = True
    bench.step()
    view = bench.service.run(run_id)
    assert (view.state, view.error_rank) == ("failed", 1)
    assert (view.error, view.traceback) == ("ValueError: nan", "Traceback ...")
    assert view.ended_at is not None and view.price_micro_usd_per_h == 0


def test_an_agent_that_vanished_makes_the_run_lost_with_advice(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    view = bench.service.run(run_id)
    assert view.state == "lost"
    assert view.error is not None and "cloudshift resume run-1" in view.error


@pytest.mark.parametrize(("saved", "said"), [(None, "nothing was saved"), (7, "step 7 is saved")])
def test_a_stopped_agent_that_ended_without_a_last_save_says_what_is_saved(
    bench: Bench, saved: int | None, said: str
) -> None:
    run_id = bench.train()
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(committed_step=saved)
    bench.service.stop(run_id)
    puppet.is_gone = True
    bench.step()
    view = bench.service.run(run_id)
    assert (view.state, view.error) == ("stopped", f"ended without a last save; {said}")
    assert view.checkpoint_step == saved


def test_a_finished_run_costs_nothing_more(bench: Bench) -> None:
    run_id = bench.train()
    bench.world.clock_s = 1800.0
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="finished")
    puppet.is_gone = True
    bench.step(0)
    spent = bench.service.run(run_id).spent_micro_usd
    assert spent == pytest.approx(1_800_000, abs=10)
    bench.world.clock_s += HOUR_S
    assert bench.service.cost(run_id).total_micro_usd == spent


def test_stopping_asks_the_agent_and_stopping_twice_changes_nothing(bench: Bench) -> None:
    run_id = bench.train()
    assert bench.service.stop(run_id).state == "stopping"
    bench.step()
    bench.step()
    bench.step()
    assert bench.engine.puppets[run_id, 1].obeyed == ["stop"]
    assert bench.service.run(run_id).state == "stopped"
    assert bench.service.stop(run_id).state == "stopped"


@pytest.mark.parametrize(("nodes", "is_ended"), [(1, False), (2, True)])
def test_nodes_that_do_not_follow_their_leader_are_ended(
    bench: Bench, nodes: int, is_ended: bool
) -> None:
    run_id = bench.train(nodes=nodes)
    ended: list[int] = []
    stop = bench.engine.stop
    bench.engine.stop = lambda handle, grace_s: (
        ended.append(handle.generation) or stop(handle, grace_s)
    )
    bench.service.stop(run_id)
    bench.step()
    bench.step()
    assert bench.service.run(run_id).state == "stopped"
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    bench.step()
    assert not ended, "they have a while to follow"
    bench.step(30.0)
    bench.step(30.0)
    assert bool(ended) == is_ended


def test_a_stopped_run_is_resumed_where_it_was_under_a_new_generation(bench: Bench) -> None:
    run_id = bench.train()
    moved = bench.move(run_id)
    bench.service.stop(run_id)
    for _ in range(4):
        bench.step()
    assert bench.service.run(run_id).state == "stopped"
    assert bench.service.resume(run_id).state == "starting"
    bench.step()
    bench.restart()
    for _ in range(3):
        bench.step()
    view = bench.service.run(run_id)
    assert (view.state, view.generation, view.placement.target) == ("running", 3, GCP)
    assert (view.error, view.ended_at) == (None, None)
    job = bench.engine.puppets[run_id, 3].job
    assert (job.standby, job.restore_step, job.source_url) == (False, moved.sealed_step, None)
    assert [line.label for line in bench.service.cost(run_id).lines if "attempt" in line.label] == [
        "attempt 1", "attempt 2", "attempt 3",
    ]  # fmt: skip
    assert bench.move(run_id, AWS).phase == "source_retired"
    assert bench.service.run(run_id).placement.target == AWS


def commit(puppet: Any, step: int) -> None:
    puppet.log.commit(
        generation=puppet.job.generation, step=step, manifest_key=f"m{step}",
        manifest_digest=f"d{step}", nonce=f"commit-{step}",
    )  # fmt: skip
    puppet.say(committed_step=step, committed_at=puppet.world.now())


def test_a_resumed_run_continues_at_least_from_what_is_known_to_be_saved(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    commit(bench.engine.puppets[run_id, 1], 7)
    for generation in (1, 2, 3):
        bench.step()
        bench.engine.puppets[run_id, generation].is_gone = True
        bench.step()
        view = bench.service.run(run_id)
        assert view.state == "lost" and view.error is not None
        assert "step 7 is saved" in view.error
        bench.restart()
        bench.service.resume(run_id)
        bench.step()
        assert bench.engine.puppets[run_id, generation + 1].job.restore_step == 7


def test_a_run_that_never_saved_begins_again_when_resumed(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    bench.service.resume(run_id)
    assert bench.engine.puppets[run_id, 2].job.restore_step is None


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_whose_bucket_was_emptied_is_not_started_again_from_nothing(
    bench: Bench, moved: bool
) -> None:
    run_id = bench.train(restart="never")
    commit(bench.engine.puppets[run_id, 1], 1)
    bench.step()
    step = 1
    if moved:
        step = bench.move(run_id).sealed_step or 0
    started = list(bench.engine.started)
    bench.engine.puppets[run_id, started[-1]].is_gone = True
    bench.step()
    store = bench.store("gcp-sim" if moved else "aws-sim")
    kept = {key: store.get(key) for key in store.list("")}
    for key in kept:
        store.delete(key)
    with pytest.raises(NotFound, match=f"no longer holds run-1's checkpoint of step {step}; "):
        bench.service.resume(run_id)
    bench.step()
    assert bench.service.run(run_id).state == "lost"
    assert bench.engine.started == started
    for key, data in kept.items():
        store.put(key, data)
    bench.service.resume(run_id)
    for _ in range(3):
        bench.step()
    assert bench.service.run(run_id).state == "running"


def test_a_lost_run_is_resumed_and_its_old_agent_is_fenced(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    zombie = bench.engine.puppets[run_id, 1]
    zombie.is_gone = True
    bench.step()
    bench.service.resume(run_id)
    for _ in range(3):
        bench.step()
    assert bench.service.run(run_id).state == "running"
    with pytest.raises(Fenced):
        zombie.log.commit(generation=1, step=9, manifest_key="k", manifest_digest="d", nonce="late")


def test_what_cannot_be_resumed_says_why(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=10_000)
    with pytest.raises(UsageError, match="run-1 has not ended"):
        bench.service.resume(run_id)
    bench.world.clock_s += 60.0
    for _ in range(4):
        bench.step()
    with pytest.raises(Exhausted, match=r"budget of \$0\.0100 is used up"):
        bench.service.resume(run_id)
    other = bench.train("other")
    puppet = bench.engine.puppets[other, 1]
    puppet.say(state="finished")
    puppet.is_gone = True
    bench.step()
    with pytest.raises(UsageError, match="has finished; nothing is left"):
        bench.service.resume(other)


def test_a_used_up_budget_stops_the_run_and_says_so(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=10_000)
    bench.world.clock_s += 60.0
    for _ in range(4):
        bench.step()
    view = bench.service.run(run_id)
    assert view.state == "stopped"
    assert view.error is not None and "budget of $0.0100 is used up" in view.error


def test_a_run_whose_start_was_cut_off_is_started_by_the_next_conductor(bench: Bench) -> None:
    bench.engine.refuse = Unavailable("killed here; never mind")
    with pytest.raises(Unavailable):
        bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS))
    assert bench.engine.started == []
    bench.engine.refuse = None
    bench.restart()
    bench.step()
    bench.step()
    assert bench.engine.started == [1]
    assert bench.service.run("gpt").state == "running"


@pytest.mark.parametrize("error", [UsageError("no agent can be started here; mend it"),
                                   OSError(28, "No space left on device")])  # fmt: skip
def test_a_run_that_cannot_be_started_has_failed_and_is_not_tried_for_ever(
    bench: Bench, error: Exception
) -> None:
    bench.engine.refuse = error
    with pytest.raises(type(error)):
        bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS))
    bench.engine.refuse = None
    bench.step()
    bench.restart()
    bench.step(HOUR_S)
    view = bench.service.run("gpt")
    assert view.state == "failed"
    assert view.error is not None and view.error.startswith("could not be started: ")
    assert (view.spent_micro_usd, view.price_micro_usd_per_h) == (0, 0)
    assert bench.engine.started == []
    assert bench.service.resume("gpt").state == "starting"
    bench.step()
    bench.step()
    assert bench.service.run("gpt").state == "running"


def test_a_run_that_cannot_be_resumed_or_started_later_has_failed(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    bench.engine.refuse = Unavailable("not now; try again")
    with pytest.raises(Unavailable):
        bench.service.resume(run_id)
    bench.engine.refuse = UsageError("no agent can be started here; mend it")
    bench.step()
    bench.engine.refuse = None
    bench.step()
    assert bench.service.run(run_id).state == "failed"
    assert bench.engine.started == [1]


# -- moves -------------------------------------------------------------------------------------


def test_a_move_is_priced_first_and_happens_after_the_decision(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    assert (view.phase, view.migration_id) == ("proposed", "mig-1")
    assert view.plan.verdict in ("move", "stay")
    assert view.plan.bill.transfer_bytes == 1000
    assert view.plan.bill.simulated
    assert view.plan.expires_at == view.plan.created_at + 600
    for _ in range(5):
        bench.step()
    assert bench.engine.started == [1]
    assert bench.service.run(run_id).migration_id == "mig-1"
    done = bench.settle(bench.approve(view).migration_id)
    assert done.phase == "source_retired", done.error
    after = bench.service.run(run_id)
    assert (after.placement.target, after.generation) == (GCP, 2)
    assert after.price_micro_usd_per_h == 1_800_000
    assert after.migration_id is None


def test_a_plan_expects_the_pause_that_the_last_move_had(bench: Bench) -> None:
    run_id = bench.train()
    first = bench.service.migrate(
        run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
    )
    bench.approve(first)
    done = bench.settle(first.migration_id)
    assert done.pause_s is not None
    assert first.plan.bill.pause_s > 4.0  # assumed, since nothing was measured yet
    second = bench.service.migrate(
        run_id, MoveAsk(to=AWS, expires_s=600, closing="copy", rehearse=0)
    )
    assert second.plan.bill.pause_s == pytest.approx(done.pause_s, abs=1.1)  # and one step
    assert second.plan.bill.pause_s != first.plan.bill.pause_s


def test_both_attempts_are_billed_while_they_overlap_and_lines_sum_exactly(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.approve(
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    )
    bench.settle(view.migration_id, "copying")
    assert bench.service.run(run_id).price_micro_usd_per_h == 5_400_000
    bench.settle(view.migration_id)
    cost = bench.service.cost(run_id)
    assert [line.label for line in cost.lines] == [
        "attempt 1", "attempt 2", "mig-1 egress", "mig-1 requests",
    ]  # fmt: skip
    assert cost.total_micro_usd == sum(line.amount_micro_usd for line in cost.lines)
    assert cost.lines[2].amount_micro_usd == round(1000 * 90_000 / 2**30)
    assert bench.service.run(run_id).price_micro_usd_per_h == 1_800_000


def test_a_finished_move_leaves_a_chained_receipt_here_and_in_the_bucket(bench: Bench) -> None:
    run_id = bench.train()
    first = bench.move(run_id)
    bench.step()
    second = bench.move(run_id, AWS)
    receipts = []
    for view, name in ((first, "gcp-sim"), (second, "aws-sim")):
        bench.settle(view.migration_id)
        key = bench.service.migration(view.migration_id).receipt
        assert key == f"runs/{run_id}/receipts/{view.migration_id}.json"
        data = bench.store(name).get(key)
        local = bench.root / "runs" / run_id / "receipts" / f"{view.migration_id}.json"
        assert local.read_bytes() == data
        receipts.append(from_json(data, Receipt))
    check_chain(receipts)
    assert receipts[0].decision is not None and receipts[0].decision.by == "ada"
    assert receipts[0].actual_micro_usd is not None and receipts[0].actual_micro_usd > 0
    assert bench.service.run(run_id).generation == 3


def test_a_restarted_conductor_goes_on_in_every_phase(bench: Bench) -> None:
    phases = ("provisioning", "precopying", "draining", "copying", "verifying", "committing",
              "committed", "resumed")  # fmt: skip
    for number, phase in enumerate(phases, 1):
        run_id = bench.train(f"gpt-{number}")
        view = bench.approve(
            bench.service.migrate(
                run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
            )
        )
        bench.settle(view.migration_id, phase)
        bench.restart()
        done = bench.settle(view.migration_id)
        assert done.phase == "source_retired", f"{phase}: {done.error}"
        assert bench.service.run(run_id).placement.target == GCP
        attempts = bench.service.cost(run_id).lines
        assert [line.label for line in attempts][:2] == ["attempt 1", "attempt 2"]


def test_a_move_that_failed_leaves_the_run_and_the_next_one_has_a_fresh_generation(
    bench: Bench,
) -> None:
    run_id = bench.train()
    bench.engine.prepare = lambda puppet: puppet.fail.update({"verify", "catch_up"})
    failed = bench.move(run_id)
    assert failed.phase == "rolled_back"
    assert failed.error is not None and "a chunk is corrupt" in failed.error
    bench.step()
    assert bench.service.run(run_id).state == "running"
    assert bench.service.run(run_id).price_micro_usd_per_h == 3_600_000
    bench.engine.prepare = lambda _: None
    assert bench.move(run_id).phase == "source_retired"
    assert bench.service.run(run_id).generation == 3


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (AWS, "is at aws-sim:us-east-1 already; choose another place: .*gcp-sim:us-central1"),
        ("aws-sim", "is at aws-sim:us-east-1 already"),
        ("gcp-sim:mars", "no region 'mars'"),
        ("gpc-sim:us-central1", "did you mean 'gcp-sim:us-central1'"),
    ],
)
def test_an_impossible_target_says_what_is_possible(bench: Bench, to: str, message: str) -> None:
    run_id = bench.train()
    with pytest.raises(UsageError, match=message):
        bench.service.migrate(run_id, MoveAsk(to=to, expires_s=600, closing="copy", rehearse=0))
    assert bench.service.migrations(None) == ()


def test_a_second_move_is_refused_by_the_name_of_the_open_one(bench: Bench) -> None:
    run_id = bench.train()
    first = bench.service.migrate(
        run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
    )
    with pytest.raises(Conflict, match="mig-1 of run-1 to gcp-sim:us-central1 is still proposed"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    bench.approve(first, "reject")
    assert (
        bench.service.migrate(
            run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
        ).migration_id
        == "mig-2"
    )


def test_a_run_that_does_not_run_cannot_move(bench: Bench) -> None:
    run_id = bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS)).run_id
    with pytest.raises(UsageError, match="still starting"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    bench.step()
    bench.step()
    bench.service.stop(run_id)
    with pytest.raises(UsageError, match="is stopping"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    for _ in range(3):
        bench.step()
    with pytest.raises(UsageError, match="run-1 is stopped; only a running run can move"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))


def test_a_policy_can_decide_at_once_or_refuse_for_ever(bench: Bench) -> None:
    auto = bench.train("auto", approve="auto")
    view = bench.service.migrate(auto, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    assert view.decision is not None and view.decision.by == "policy: auto"
    assert bench.settle(view.migration_id).phase == "source_retired"
    never = bench.train("never", approve="never")
    with pytest.raises(UsageError, match="approve='never'"):
        bench.service.migrate(never, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))


def test_decisions_are_idempotent_bound_to_the_plan_and_end_with_it(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    other = Decision(decision_id="d", plan_digest="0" * 64, verdict="approve", by="bob")
    with pytest.raises(StaleDecision, match="not the one that was shown"):
        bench.service.decide(view.migration_id, other)
    bench.approve(view, "reject")
    bench.approve(view, "reject")
    late = Decision(decision_id="l", plan_digest=view.plan.digest, verdict="approve", by="bob")
    with pytest.raises(StaleDecision, match="decided already: reject by ada"):
        bench.service.decide(view.migration_id, late)
    with pytest.raises(NotFound, match="no migration called 'mig-9'; choose one of: mig-1"):
        bench.service.decide("mig-9", late)


def test_an_expired_plan_cannot_be_approved(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=60, closing="copy", rehearse=0))
    bench.step(61.0)
    assert bench.service.migration(view.migration_id).phase == "expired"
    with pytest.raises(StaleDecision) as caught:
        bench.approve(view)
    assert caught.value.facts["reason"] == "expired"


def test_a_run_that_ends_takes_its_open_plan_with_it(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="finished")
    puppet.is_gone = True
    bench.step()
    bench.step()
    assert bench.service.migration(view.migration_id).phase == "rejected"
    with pytest.raises(StaleDecision, match="called off"):
        bench.approve(view)


def test_stopping_a_moving_run_rolls_the_move_back_then_stops_it(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.approve(
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    )
    bench.settle(view.migration_id, "copying")
    bench.service.stop(run_id)
    assert bench.settle(view.migration_id).phase == "rolled_back"
    for _ in range(4):
        bench.step()
    assert bench.service.run(run_id).state == "stopped"
    assert bench.engine.puppets[run_id, 2].is_gone


def test_another_run_of_the_same_id_in_the_target_is_never_mixed_with_ours(bench: Bench) -> None:
    run_id = bench.train()
    store = bench.store("gcp-sim")
    RunLog(store, run_id, bench.world).acquire(generation=1, owner="somebody", nonce="n")
    with pytest.raises(UsageError, match="holds another run-1 already"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))


def test_a_run_stays_in_its_store_when_the_cloud_gets_another_one(bench: Bench) -> None:
    run_id = bench.train()
    before = bench.store("aws-sim")
    clouds = bench.service.places.clouds().clouds
    new_url = f"memory://new-{bench.root.name}"
    save_clouds(
        bench.root,
        Clouds(
            clouds=tuple(
                msgspec.structs.replace(cloud, store_url=new_url)
                if cloud.name == "aws-sim"
                else cloud
                for cloud in clouds
            )
        ),
    )
    bench.restart()
    bench.step()
    view = bench.service.run(run_id)
    assert (view.state, view.error) == ("running", None)
    done = bench.move(run_id)
    assert done.phase == "source_retired", done.error
    assert RunLog(before, run_id, bench.world).sync().records[-1].kind == "handover"
    assert bench.store("aws-sim").url == new_url
    assert bench.store("aws-sim").list("runs/") == []
    assert done.receipt is not None and bench.store("gcp-sim").size(done.receipt) is not None


def test_an_id_that_another_directory_has_only_claimed_at_the_target_is_not_used(
    bench: Bench,
) -> None:
    run_id = bench.train()
    store = bench.store("gcp-sim")
    store.create(claim_key(run_id), b'{"run_id":"run-1","owner":"somebody"}')
    with pytest.raises(UsageError, match="holds another run-1 already"):
        bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    store.delete(claim_key(run_id))
    plan = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    bench.approve(plan, "reject")
    assert bench.move(run_id).phase == "source_retired"
    owner = bench.engine.puppets[run_id, 1].job.owner
    assert from_json(store.get(claim_key(run_id)), Claim) == Claim(run_id, owner)


# -- telemetry, restart and the rest -----------------------------------------------------------


def rows(run_id: str, at: float, steps: range) -> bytes:
    return encode(
        "step",
        [
            StepRow(
                ts=at + step, run_id=run_id, generation=1, rank=0, step=step, loss=5.0 - step,
                tokens=100, step_s=1.0,
            )
            for step in steps
        ],
    )  # fmt: skip


def test_telemetry_shows_in_the_run_and_its_series_and_a_batch_counts_once(bench: Bench) -> None:
    run_id = bench.train()
    data = rows(run_id, bench.world.now(), range(1, 4))
    before = bench.service.version()
    bench.service.ingest(run_id, batch="b1", table="step", data=data).result()
    bench.service.ingest(run_id, batch="b1", table="step", data=data).result()
    assert bench.service.version() == before + 1
    bench.world.clock_s += 1
    view = bench.service.run(run_id)
    assert (view.step, view.loss, view.tokens_per_s) == (3, 2.0, 100.0)
    assert view.losses == ((1, 4.0), (2, 3.0), (3, 2.0))
    series = bench.service.series(run_id, points=50)
    assert series.step == (1, 2, 3)
    assert series.usd_per_h[-1] == 3.6
    assert list(series.cost_usd) == sorted(series.cost_usd)


def test_spooled_telemetry_is_taken_in_and_removed_from_the_bucket(bench: Bench) -> None:
    run_id = bench.train()
    store: Store = bench.store("aws-sim")
    key = spool_key(run_id, "b7", "step")
    store.put(key, rows(run_id, bench.world.now(), range(10, 12)))
    bench.step(30.0)
    assert store.size(key) is None
    assert bench.service.run(run_id).step == 11


def test_the_last_batch_of_an_agent_that_spooled_it_at_its_end_is_not_missed(
    bench: Bench,
) -> None:
    run_id = bench.train()
    puppet = bench.engine.puppets[run_id, 1]
    puppet.say(state="finished")
    bench.step()
    assert bench.service.run(run_id).state == "finished"
    store: Store = bench.store("aws-sim")
    store.put(spool_key(run_id, "last", "step"), rows(run_id, bench.world.now(), range(50, 51)))
    puppet.is_gone = True
    bench.step()
    assert bench.service.run(run_id).step == 50
    assert not bench.service._registry.find(run_id).is_live


def test_a_move_is_marked_in_the_series(bench: Bench) -> None:
    run_id = bench.train()
    done = bench.move(run_id)
    series = bench.service.series(run_id, points=50)
    assert [(mark.migration_id, mark.step) for mark in series.moves] == [
        ("mig-1", done.sealed_step)
    ]
    assert (series.moves[0].source, series.moves[0].target) == (AWS, GCP)
    assert series.cost_at[-1] == bench.world.now()


def test_a_damaged_journal_keeps_no_other_run_away(bench: Bench) -> None:
    bench.service.migrate(
        bench.train("one"), MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
    )
    bench.train("two")
    journal = bench.root / "runs" / "run-1" / "journal.jsonl"
    data = bytearray(journal.read_bytes())
    data[40] ^= 1
    journal.write_bytes(bytes(data))
    bench.restart()
    assert [view.run_id for view in bench.service.runs()] == ["run-2"]
    with pytest.raises(NotFound, match="line 1 is damaged"):
        bench.service.run("run-1")
    assert bench.train("three") == "run-3"


def test_a_damaged_last_line_of_a_move_shows_with_the_doctor_and_stays(bench: Bench) -> None:
    run_id = bench.train()
    migration_id = bench.move(run_id).migration_id
    path = bench.root / "runs" / run_id / "migrations" / f"{migration_id}.jsonl"
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(bytes(data))
    bench.restart()
    check = next(check for check in bench.service.doctor() if check.name == run_id)
    assert not check.ok and "restore the file from a copy" in check.detail
    bench.step()
    assert path.read_bytes() == data


def test_what_was_cut_off_in_its_very_first_line_never_was(bench: Bench) -> None:
    run_id = bench.train()
    bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    (bench.root / "runs" / run_id / "migrations" / "mig-1.jsonl").write_bytes(b'{"check":"12')
    torn = bench.root / "runs" / "run-2"
    torn.mkdir()
    (torn / "journal.jsonl").write_bytes(b'{"check":"12')
    bench.restart()
    assert [view.run_id for view in bench.service.runs()] == [run_id]
    assert bench.service.migrations(None) == ()
    bench.step()
    assert (
        bench.service.migrate(
            run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
        ).migration_id
        == "mig-2"
    )
    assert bench.train("next") == "run-3"


def test_a_full_disk_starts_nothing_and_says_what_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Exhausted, match="free disk space, then try again"):
            bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS))
    assert bench.engine.started == []
    run_id = bench.train()
    view = bench.service.migrate(run_id, MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Exhausted):
            bench.approve(view)
        bench.step()
    assert bench.service.migration(view.migration_id).phase == "proposed"
    assert bench.settle(bench.approve(view).migration_id).phase == "source_retired"


def test_a_leftover_of_an_ended_attempt_is_ended(bench: Bench) -> None:
    run_id = bench.train()
    bench.engine.puppets[run_id, 1].say(state="finished")
    bench.step()
    assert bench.service.run(run_id).state == "finished"
    bench.step(60.0)
    assert not bench.engine.puppets[run_id, 1].is_gone
    bench.step(60.0)
    assert bench.engine.puppets[run_id, 1].is_gone
    bench.step()
    assert not bench.service._registry.find(run_id).is_live
    bench.restart()
    assert not bench.service._registry.find(run_id).is_live
    assert bench.service.run(run_id).state == "finished"


def test_a_store_that_is_away_is_shown_as_trouble_and_forgotten_when_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = bench.train()
    tender = bench.service._registry.find(run_id)
    refusing: Any = Refusing(Unavailable("no answer; start the cloud"))
    with monkeypatch.context() as patch:
        patch.setattr(tender.side(tender.owner).line, "_store", refusing)
        bench.step()
        view = bench.service.run(run_id)
        assert (view.state, view.error) == ("running", "no answer; start the cloud")
    bench.step()
    assert bench.service.run(run_id).error is None


def test_targets_are_priced_and_marked_simulated(bench: Bench) -> None:
    targets = {target.target: target for target in bench.service.targets()}
    assert set(targets) == {"local:here", AWS, GCP}
    assert targets[GCP].price_micro_usd_per_h == 1_800_000
    assert targets[GCP].simulated and not targets["local:here"].simulated


def test_the_doctor_names_every_store_and_what_is_damaged(bench: Bench) -> None:
    bench.train()
    (bench.root / "runs" / "run-1" / "journal.jsonl").write_bytes(b"x\ny\n")
    bench.restart()
    checks = {check.name: check for check in bench.service.doctor()}
    assert {"conductor", "telemetry", "disk", "torch", "store aws-sim"} <= set(checks)
    assert checks["store gcp-sim"].ok
    assert not checks["run-1"].ok and checks["run-1"].advice


def test_logs_come_from_the_engine(bench: Bench) -> None:
    run_id = bench.train()
    assert bench.service.logs(run_id, rank=1, tail=10) == "log of run-1 generation 1 rank 1"


def test_sql_reads_and_cannot_write(bench: Bench) -> None:
    import pyarrow as pa

    data = bench.service.sql("SELECT 41 + 1 AS answer")
    assert pa.ipc.open_stream(data).read_all().to_pydict() == {"answer": [42]}
    with pytest.raises(UsageError):
        bench.service.sql("DROP TABLE step")


class Killed(BaseException):
    """kill -9 at this very point."""


class Fuse:
    """Kills the conductor before or after its n-th durable write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.passed = 0
        real = Journal._write

        def write(journal: Journal, line: bytes) -> None:
            self.boundary()
            real(journal, line)
            self.boundary()

        monkeypatch.setattr(Journal, "_write", write)

    def boundary(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise Killed


def insist(bench: Bench) -> MigrationView:
    """What a person does who was cut off: look what is there, and ask for what is missing."""
    if not bench.service.runs():
        bench.service.train(RunSpec(name="gpt", script=SCRIPT, target=AWS))
    bench.step()
    bench.step()
    moves = bench.service.migrations(None)
    view = (
        moves[0]
        if moves
        else bench.service.migrate(
            "gpt", MoveAsk(to=GCP, expires_s=600, closing="copy", rehearse=0)
        )
    )
    if view.phase == "proposed":
        bench.approve(view)
    done = bench.settle(view.migration_id)
    bench.step()
    bench.service.stop("gpt")
    for _ in range(6):
        bench.step()
    return done


def outcome(bench: Bench) -> tuple[object, ...]:
    run, move = bench.service.run("gpt"), bench.service.migrations("gpt")[0]
    lines = len(bench.service.cost("gpt").lines)
    receipt = move.receipt is not None
    return run.state, run.placement.target, move.phase, receipt, lines


def test_a_conductor_killed_at_any_write_of_any_journal_ends_where_it_would_have(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fuse = Fuse(monkeypatch)
    insist(bench)
    smooth, boundaries = outcome(bench), fuse.passed
    assert smooth[0] == "stopped" and smooth[2] == "source_retired"
    assert boundaries > 30
    for at in range(1, boundaries + 1):
        again = elsewhere(bench, tmp_path / f"kill-{at}")
        fuse.at, fuse.passed = at, 0
        try:
            insist(again)
        except Killed:
            again.restart()
            insist(again)
        assert fuse.passed >= at
        assert outcome(again) == smooth, f"killed at boundary {at}"
        assert len(again.engine.started) == 2, f"killed at boundary {at}"
        again.service.telemetry.close()
        fuse.at = None


def elsewhere(bench: Bench, root: Path) -> Bench:
    """The same clouds with empty stores, another state directory, other agents."""
    root.mkdir()
    clouds = (
        cloud("aws-sim", "us-east-1", 3_600_000, url=f"memory://aws-{root}"),
        cloud("gcp-sim", "us-central1", 1_800_000, url=f"memory://gcp-{root}"),
    )
    save_clouds(root, Clouds(clouds=clouds))
    engine = type(bench.engine)(bench.service.places.store, bench.world)
    return Bench(root, bench.world, engine)
