"""What a move costs and what it was measured by: meters, bills, rules and receipts agree."""

from __future__ import annotations

from typing import Any

import msgspec

from cloudshift_lab.core.asks import MoveAsk
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Clouds, EgressTier
from cloudshift_lab.core.plan import MigrationView

from .bench import AWS, GCP, Bench, bench

__all__ = ["bench"]
EGRESS_USED = 10**12


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
