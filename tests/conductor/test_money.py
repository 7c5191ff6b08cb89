"""What a move costs and what it was measured by: meters, bills, rules and receipts agree."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudshift_lab.conductor.pricing import limit_of
from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.orders import OrderResult
from cloudshift_lab.core.placement import Clouds, EgressTier
from cloudshift_lab.core.plan import MigrationView

from .bench import AWS, GCP, Bench, bench
from .test_live_service import THIRD, add_third, local_seconds

__all__ = ["bench"]
EGRESS_USED = 10**12
GB = 10**9
EGRESS_MICRO_USD_PER_GB = 90_000


def offered(bench: Bench, run_id: str, **ask: Any) -> MigrationView:
    return bench.service.migrate(run_id, MoveAsk(to=GCP, **ask))


def move_of(bench: Bench, view: MigrationView) -> Any:
    return bench.service._registry.find(view.run_id).moves[view.migration_id]


def two_moves_on(bench: Bench, run_id: str) -> None:
    bench.step()
    bench.step()


def slow_rehearsal(bench: Bench, **spec: Any) -> MigrationView:
    """A move whose target turns out to be twenty times slower than its source."""
    run_id = bench.train(**spec)
    bench.engine.puppets[run_id, 1].say(step_s=0.05)
    bench.step()
    view = offered(bench, run_id, rehearse=3)
    if view.phase == "proposed":
        bench.approve(view)
    for _ in range(60):
        view = bench.service.migration(view.migration_id)
        if view.phase in ("asking", "source_retired", "rolled_back"):
            break
        bench.step()
    bench.step()
    return bench.service.migration(view.migration_id)


def test_the_meter_counts_egress_from_where_the_month_stands(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.move(run_id)
    move = move_of(bench, view)
    saga = msgspec.structs.replace(move.saga, bytes_moved=10**9)
    clouds = bench.service.places.clouds()
    paid = move.spent_micro_usd(saga)
    free_first = (EgressTier(up_to_gb=100, micro_usd_per_gb=0), *clouds.find("aws-sim").egress)
    changed = tuple(
        msgspec.structs.replace(each, egress=free_first) if each.name == "aws-sim" else each
        for each in clouds.clouds
        if each.name != "local"
    )
    save_clouds(bench.root, Clouds(clouds=changed))
    assert move.spent_micro_usd(saga) < paid
    inputs = msgspec.structs.replace(move.opened.inputs, egress_used_bytes=EGRESS_USED)
    move.opened = msgspec.structs.replace(move.opened, inputs=inputs)
    assert move.spent_micro_usd(saga) == paid


def test_what_a_move_cost_ends_with_the_first_new_step_and_has_the_source_s_pause(
    bench: Bench,
) -> None:
    run_id = bench.train()
    move = move_of(bench, bench.move(run_id))
    saga = msgspec.structs.replace(move.saga, bytes_moved=0)
    target = move._record.attempts[move.generations[-1]]
    assert saga.pause_s is not None
    until_it_trains_s = saga.drained_at + saga.pause_s - target.started.at
    expected = (until_it_trains_s * 1_800_000 + saga.pause_s * 3_600_000) / 3600
    assert abs(move.spent_micro_usd(saga) - expected) <= 2


def test_a_move_that_came_back_measures_no_start_and_no_pause(bench: Bench) -> None:
    run_id = bench.train()
    bench.engine.prepare = lambda puppet: puppet.fail.add("verify")
    view = bench.approve(offered(bench, run_id, closing="copy"))
    assert bench.settle(view.migration_id).phase == "rolled_back"
    bench.step()
    inputs = move_of(bench, offered(bench, run_id)).opened.inputs
    assert inputs.provision_s == 20.0
    plan = bench.service.migrations(run_id)[0].plan
    assert "prove, commit and restore 4.0 s (assumed)" in plan.closings[-1].basis


def test_a_start_is_measured_only_at_the_same_cloud(bench: Bench) -> None:
    run_id = bench.train()
    bench.move(run_id)
    two_moves_on(bench, run_id)
    back = bench.service.migrate(run_id, MoveAsk(to=AWS))
    assert move_of(bench, back).opened.inputs.provision_s == 20.0
    bench.settle(bench.approve(back).migration_id)
    two_moves_on(bench, run_id)
    assert move_of(bench, offered(bench, run_id)).opened.inputs.provision_s < 20.0


def test_what_was_measured_last_counts_whichever_run_it_was_measured_on(bench: Bench) -> None:
    first, second = bench.train("first"), bench.train("second")
    for run_id, bytes_per_s in ((second, 2e6), (first, 1e6)):
        move = move_of(bench, bench.move(run_id))
        move.driver.saga = msgspec.structs.replace(move.saga, bytes_per_s=bytes_per_s)
        bench.step()
    run_id = bench.train("third")
    tender = bench.service._registry.find(run_id)
    ask = bench.service._planner.futures_ask(tender, offered(bench, run_id).plan)
    assert ask.bytes_per_s == 1e6


def test_a_rule_without_a_break_even_does_not_approve_a_worse_bill(bench: Bench) -> None:
    view = slow_rehearsal(bench, approve="auto if price < 2/h")
    assert view.phase == "asking", view.error
    assert "the bill is worse as measured" in view.waiting
    assert bench.settle(bench.approve_again(view).migration_id).phase == "source_retired"


def test_a_rule_with_a_break_even_judges_the_worse_bill_itself(bench: Bench) -> None:
    view = slow_rehearsal(bench, approve="auto if break-even < 4h")
    assert view.phase == "asking", view.error
    assert "it never pays for itself" in view.waiting


# -- bytes that came to nothing --------------------------------------------------------------


def copying(bench: Bench, run_id: str, **ask: Any) -> tuple[MigrationView, Any, str]:
    """A move whose target has copied 5 GB and says no more; its target and its order."""
    bench.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    view = bench.approve(offered(bench, run_id, **ask))
    assert bench.settle(view.migration_id, "precopying").phase == "precopying"
    target, order_id = begun(bench, view)
    say(target, order_id, OrderResult(state="running", num_bytes=5 * GB))
    return view, target, order_id


def begun(bench: Bench, view: MigrationView) -> tuple[Any, str]:
    """The present target and its order to copy, once it has one."""
    for _ in range(60):
        target = bench.engine.puppets[view.run_id, move_of(bench, view).generations[-1]]
        orders = [order.order_id for order in target.orders if order.kind == "precopy"]
        if orders and not target.is_gone:
            return target, orders[0]
        bench.step()
    raise AssertionError("nothing is copied")


def say(target: Any, order_id: str, result: OrderResult) -> None:
    target.say(results={**target.status.results, order_id: result})


def failed(*, num_bytes: int = 0) -> OrderResult:
    return OrderResult(state="failed", error_kind="Corrupt", error="no", num_bytes=num_bytes)


def test_a_try_that_failed_cost_what_it_had_carried(bench: Bench) -> None:
    run_id = bench.train()
    view, target, order_id = copying(bench, run_id, limit_micro_usd=10**9)
    bench.step()
    say(target, order_id, failed())
    ended = bench.settle(view.migration_id)
    bench.step()
    assert (ended.phase, ended.bytes_moved) == ("rolled_back", 5 * GB)
    receipt = bench.service.receipts(run_id)[-1]
    assert receipt.bytes_moved == 5 * GB
    assert receipt.actual_micro_usd is not None
    assert receipt.actual_micro_usd >= 5 * GB * EGRESS_MICRO_USD_PER_GB / 2**30
    assert any("egress" in line.label for line in bench.service.cost(run_id).lines)


def test_a_try_that_failed_while_no_conductor_looked_cost_what_it_had_carried(
    bench: Bench,
) -> None:
    run_id = bench.train()
    view, target, order_id = copying(bench, run_id, limit_micro_usd=10**9)
    say(target, order_id, failed(num_bytes=6 * GB))
    bench.restart()
    assert bench.settle(view.migration_id).bytes_moved == 6 * GB


def test_a_move_that_is_called_off_cost_what_it_had_carried(bench: Bench) -> None:
    run_id = bench.train()
    view, *_ = copying(bench, run_id, limit_micro_usd=10**9)
    bench.step()
    bench.service.stop(run_id)
    assert bench.settle(view.migration_id).bytes_moved == 5 * GB


def test_bytes_of_a_pending_effect_are_counted_once_however_it_ends(bench: Bench) -> None:
    run_id = bench.train()
    view, target, order_id = copying(bench, run_id, limit_micro_usd=10**9)
    bench.step()
    move = move_of(bench, view)
    spent = move.spent_micro_usd(move.saga)
    say(target, order_id, failed())
    move.tick()
    assert move.saga.phase.startswith("roll")
    after = move.spent_micro_usd(move.saga)
    assert abs(after - spent) < EGRESS_MICRO_USD_PER_GB


def test_the_limit_is_for_all_tries_together(bench: Bench, tmp_path: Any) -> None:
    add_third(bench, tmp_path)
    run_id = bench.train()
    limit = 8 * EGRESS_MICRO_USD_PER_GB
    view, target, order_id = copying(
        bench, run_id, limit_micro_usd=limit, missing_nodes="elsewhere", elsewhere=(THIRD,)
    )
    bench.step()
    target.is_gone = True
    say(target, order_id, OrderResult(state="failed", error_kind="NodesMissing", error="no"))
    bench.step()
    second, order_id = begun(bench, view)
    say(second, order_id, OrderResult(state="running", num_bytes=4 * GB))
    ended = bench.settle(view.migration_id)
    bench.step()
    assert ended.phase == "rolled_back", ended.error
    assert "its limit is $0.72" in str(ended.error)
    assert ended.bytes_moved == 9 * GB


# -- a worse bill ------------------------------------------------------------------------------


def dearer_elsewhere(bench: Bench, root: Any, **ask: Any) -> MigrationView:
    """A move that goes elsewhere, at ten times the price, and asks about that."""
    add_third(bench, root)
    run_id = bench.train()
    clouds = tuple(
        msgspec.structs.replace(
            each,
            offers=tuple(
                msgspec.structs.replace(
                    offer, price_micro_usd_per_h=10 * offer.price_micro_usd_per_h
                )
                for offer in each.offers
            ),
        )
        if each.name == THIRD.partition(":")[0]
        else each
        for each in bench.service.places.clouds().clouds
        if each.name != "local"
    )
    save_clouds(root, Clouds(clouds=clouds))

    def prepare(puppet: Any) -> None:
        puppet.is_gone = puppet.job.placement.cloud == "gcp-sim"

    bench.engine.prepare = prepare
    view = bench.approve(
        offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,), **ask)
    )
    return bench.settle(view.migration_id, "asking")


def test_the_limit_of_a_new_bill_follows_from_it_and_counts_once_approved(
    bench: Bench, tmp_path: Any
) -> None:
    view = dearer_elsewhere(bench, tmp_path)
    assert view.phase == "asking", view.error
    move = move_of(bench, view)
    rule = limit_of(view.plan.bill, move._inputs_of(move.saga))
    assert view.plan.limit_micro_usd == rule
    assert move.saga.limit_micro_usd < rule
    assert bench.approve_again(view).plan.limit_micro_usd == rule
    assert move.saga.limit_micro_usd == rule


def test_a_limit_that_a_person_gave_is_not_raised_by_a_new_bill(
    bench: Bench, tmp_path: Any
) -> None:
    view = dearer_elsewhere(bench, tmp_path, limit_micro_usd=3_000_000)
    assert (view.phase, view.plan.limit_micro_usd) == ("asking", 3_000_000)
    bench.approve_again(view)
    assert move_of(bench, view).saga.limit_micro_usd == 3_000_000


def asked_at_night(bench: Bench, **ask: Any) -> MigrationView:
    """A move whose worse bill comes up at half past eleven, when nobody may be asked."""
    run_id = bench.train(approve="ask quiet 23:00-07:00")
    bench.step(local_seconds(bench, "23:30"))
    bench.engine.puppets[run_id, 1].say(step_s=0.05)
    bench.step()
    bench.approve(offered(bench, run_id, rehearse=3, **ask))
    view = bench.settle(bench.service.migrations(run_id)[0].migration_id, "asking")
    bench.step()
    return bench.service.migration(view.migration_id)


def test_a_question_that_comes_up_at_night_stands_until_people_were_awake(bench: Bench) -> None:
    view = asked_at_night(bench, limit_micro_usd=10**9)
    left_s = local_seconds(bench, "07:00")
    assert view.phase == "asking", view.error
    assert view.plan.expires_at - bench.world.now() == pytest.approx(left_s + 600.0, abs=2.0)
    assert "nobody is asked before 07:00" in view.waiting
    assert "waits at $1.80/h, the question stands until 07:10" in view.waiting
    bench.step(left_s + 590.0)
    assert bench.service.migration(view.migration_id).phase == "asking"
    assert bench.settle(bench.approve_again(view).migration_id).phase == "source_retired"


def test_a_target_is_not_held_through_the_night_for_more_than_the_limit(bench: Bench) -> None:
    view = asked_at_night(bench)
    view = bench.settle(view.migration_id)
    assert view.phase == "rolled_back"
    assert "nobody is asked before 07:00" in str(view.error)
    assert "propose it again when somebody can be asked" in str(view.error)
    bench.step()
    assert bench.service.run(view.run_id).state == "running"
    cost = bench.service.receipts(view.run_id)[-1].actual_micro_usd
    assert cost is not None and cost < 100_000
