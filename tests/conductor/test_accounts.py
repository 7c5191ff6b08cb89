"""Accounts of whole runs: the ledger is what the attempts were paid, and other ways beside it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudshift_lab.core.costs import Account
from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.money import HOUR_S
from cloudshift_lab.core.orders import OrderResult
from cloudshift_lab.core.placement import Clouds
from cloudshift_lab.market.focus import focus_rows
from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.schema import StepRow

from .bench import AWS, GCP, Bench, bench
from .test_money import GB, copying, say

__all__ = ["bench"]
RANKS = 2


def send(
    bench: Bench, run_id: str, steps: range, *, step_s: float = 1.0, generation: int = 1,
    tokens: int | None = 1000,
) -> None:  # fmt: skip
    """Both ranks report these steps, the last of which ends now."""
    now = bench.world.now()
    rows = [
        StepRow(
            ts=now - step_s * (steps[-1] - step), run_id=run_id, generation=generation, rank=rank,
            step=step, loss=2.0, step_s=step_s, tokens=tokens,
        )
        for step in steps
        for rank in range(RANKS)
    ]  # fmt: skip
    name = f"{run_id}-{generation}-{steps}-{now}"
    bench.service.ingest(run_id, batch=name, table="step", data=encode("step", rows)).result()


def train_until(bench: Bench, clock_s: float) -> None:
    """Let time pass; the agents go on."""
    bench.world.clock_s = clock_s
    bench.step(0.0)


def account_of(bench: Bench, run_id: str) -> Account:
    account = bench.service.cost(run_id).account
    assert account is not None
    return account


def sums(bench: Bench, run_id: str) -> dict[str, int]:
    """What an account has by kind, after its sums are checked against the lines."""
    view = bench.service.cost(run_id)
    ledger = account_of(bench, run_id).ledger
    assert ledger.total_micro_usd == view.total_micro_usd
    assert sum(entry.micro_usd for entry in ledger.entries) == view.total_micro_usd
    assert sum(ledger.by_kind.values()) == view.total_micro_usd
    charges = bench.service.charges(run_id)
    assert sum(charge.micro_usd for charge in charges) == view.total_micro_usd
    return {kind: amount for kind, amount in ledger.by_kind.items() if amount}


def moved(bench: Bench) -> str:
    """A run that trained 100 s at one place, moved, and trained 200 s at another."""
    run_id = bench.train()
    train_until(bench, 110.0)
    send(bench, run_id, range(1, 101))
    view = bench.move(run_id)
    assert view.phase == "source_retired", view.error
    bench.step()
    train_until(bench, bench.world.clock_s + 200.0)
    send(bench, run_id, range(101, 301), generation=2)
    return run_id


def test_time_goes_into_the_ledger_as_it_went(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 110.0)
    send(bench, run_id, range(1, 101))
    train_until(bench, 120.0)
    assert sums(bench, run_id) == {"overhead": 10_000, "compute": 110_000}
    ledger = account_of(bench, run_id).ledger
    assert (ledger.steps, ledger.tokens) == (100, 200_000)
    assert ledger.micro_usd_per_million_tokens == 600_000


def test_steps_that_are_done_again_are_lost_work(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 100.0)
    send(bench, run_id, range(1, 101))
    train_until(bench, 160.0)
    send(bench, run_id, range(71, 101))
    found = sums(bench, run_id)
    assert found["lost_work"] == pytest.approx(30_000, abs=1_100)
    assert found["overhead"] == pytest.approx(30_000, abs=1_100)
    assert account_of(bench, run_id).ledger.steps == 100


def test_without_telemetry_all_time_counts_since_the_agent_s_first_step(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 100.0)
    assert set(sums(bench, run_id)) == {"overhead", "compute"}
    account = account_of(bench, run_id)
    assert account.ledger.micro_usd_per_million_tokens is None
    assert "no step has been reported yet" in account.notes[0]


def test_a_move_is_entered_with_both_its_sides(bench: Bench) -> None:
    run_id = moved(bench)
    found = sums(bench, run_id)
    assert set(found) == {"compute", "overlap", "overhead", "requests"}, "500 B leave for nothing"
    entries = account_of(bench, run_id).ledger.entries
    overlap = [entry for entry in entries if entry.kind == "overlap"]
    assert {entry.migration_id for entry in overlap} == {"mig-1"}
    assert {entry.placement.target for entry in overlap} == {AWS, GCP}
    assert all(entry.simulated for entry in entries)
    assert all("simulated" in entry.basis for entry in entries if entry.seconds)


def test_every_line_of_a_finished_move_s_bill_is_within_2_percent_of_the_ledger(
    bench: Bench,
) -> None:
    checks = account_of(bench, moved(bench)).checks
    assert {check.kind for check in checks} == {
        "egress", "requests", "overlap", "transfer", "pause", "compute",
    }  # fmt: skip
    for check in checks:
        off = abs(check.settled_micro_usd - check.ledger_micro_usd)
        assert off <= 0.02 * abs(check.ledger_micro_usd) + 3, check
    assert sum(abs(check.ledger_micro_usd) for check in checks) > 100_000


def test_a_move_that_came_back_is_all_overlap_and_has_no_bill_to_check(bench: Bench) -> None:
    run_id = bench.train()
    bench.engine.prepare = lambda puppet: puppet.fail.update({"verify", "catch_up"})
    assert bench.move(run_id).phase == "rolled_back"
    bench.step()
    sums(bench, run_id)
    account = account_of(bench, run_id)
    target = [entry for entry in account.ledger.entries if entry.generation == 2]
    assert target and all(entry.kind in ("overlap", "overhead") for entry in target)
    assert account.checks == ()


def test_sums_hold_in_every_phase_of_a_move_and_after_a_restart(bench: Bench) -> None:
    run_id = bench.train()
    view = bench.approve(bench.service.migrate(run_id, _ask(GCP)))
    for phase in ("provisioning", "precopying", "draining", "committing", "resumed", ""):
        bench.settle(view.migration_id, phase)
        sums(bench, run_id)
    bench.restart()
    sums(bench, run_id)


def _ask(to: str) -> Any:
    from cloudshift_lab.core.asks import MoveAsk

    return MoveAsk(to=to, expires_s=600)


def test_what_a_move_carried_stays_paid_when_its_clouds_are_not_configured_any_more(
    bench: Bench,
) -> None:
    run_id = bench.train()
    view, target, order_id = copying(bench, run_id, limit_micro_usd=10**9)
    say(target, order_id, OrderResult(state="done", num_bytes=12 * GB))
    assert bench.settle(view.migration_id).phase == "source_retired"
    for _ in range(3):
        bench.step()
    train_until(bench, bench.world.clock_s + 100.0)
    before = bench.service.cost(run_id)
    save_clouds(bench.root, Clouds(clouds=()))
    after = bench.service.cost(run_id)
    assert after.total_micro_usd == before.total_micro_usd
    assert sums(bench, run_id)["egress"] == pytest.approx(12 * GB * 90_000 / 2**30, rel=1e-6)
    check = next(each for each in account_of(bench, run_id).checks if each.kind == "egress")
    assert check.apart == 0.0


# -- other ways --------------------------------------------------------------------------------


def reprice(bench: Bench, cloud: str, micro_usd: int) -> None:
    """An offer's price changes."""
    changed = tuple(
        msgspec.structs.replace(
            each,
            offers=tuple(
                msgspec.structs.replace(offer, price_micro_usd_per_h=micro_usd)
                for offer in each.offers
            ),
        )
        if each.name == cloud
        else each
        for each in bench.service.places.clouds().clouds
        if each.name != "local"
    )
    save_clouds(bench.root, Clouds(clouds=changed))


def ways(bench: Bench, run_id: str) -> dict[str, Any]:
    return {each.name: each for each in account_of(bench, run_id).otherwise}


def test_other_ways_are_told_with_their_regret(bench: Bench) -> None:
    run_id = moved(bench)
    found = ways(bench, run_id)
    total = bench.service.cost(run_id).total_micro_usd
    for each in found.values():
        assert each.regret_micro_usd == total - each.micro_usd
    assert found["never moved"].regret_micro_usd < 0, "moving to half the price was worth it"
    assert found["perfect foresight"].micro_usd <= found["always cheapest"].micro_usd
    assert found["always cheapest"].basis.startswith(GCP)


def test_a_move_that_was_not_worth_it_says_so(bench: Bench) -> None:
    run_id = bench.train(target=GCP)
    train_until(bench, 110.0)
    send(bench, run_id, range(1, 101))
    bench.move(run_id, AWS)
    bench.step()
    train_until(bench, bench.world.clock_s + 200.0)
    send(bench, run_id, range(101, 301), generation=2)
    assert ways(bench, run_id)["never moved"].regret_micro_usd > 0


def test_prices_are_recorded_as_they_change_and_survive_a_restart(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 1000.0)
    reprice(bench, "gcp-sim", 36_000)
    bench.step()
    train_until(bench, 2000.0)
    bench.restart()
    train_until(bench, 2010.0)
    send(bench, run_id, range(1, 2001))
    seen = bench.service._around.prices
    offer = next(each for each in seen.offers() if each.cloud == "gcp-sim")
    assert [price for _, price in seen.prices(offer)] == [1_800_000, 36_000]
    found = ways(bench, run_id)["perfect foresight"]
    assert found.micro_usd == pytest.approx(1_000 * 500 + 1_010 * 10, rel=0.05)
    assert len((bench.root / "prices.jsonl").read_bytes().splitlines()) == 4


def test_a_damaged_price_book_is_named_and_budgets_are_kept_all_the_same(bench: Bench) -> None:
    run_id = bench.train(budget_micro_usd=1_000_000)
    path = bench.root / "prices.jsonl"
    path.write_bytes(path.read_bytes().replace(b"gcp-sim", b"aws-sim", 1))
    bench.restart()
    bench.step(3600.0)
    view = bench.service.run(run_id)
    assert (view.state, "prices.jsonl is damaged" in str(view.error)) == ("stopping", True)
    with pytest.raises(Corrupt, match=r"prices\.jsonl is damaged; move it away to begin anew"):
        bench.service.cost(run_id)


# -- to the end --------------------------------------------------------------------------------


def test_the_whole_is_forecast_up_to_a_step(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 110.0)
    send(bench, run_id, range(1, 101))
    account = bench.service.cost(run_id, until=1100).account
    assert account is not None and account.finish is not None
    cost = account.finish.total_micro_usd
    assert cost.p50 == pytest.approx(110_000 + 1_000_000, rel=0.02)
    assert cost.p10 <= cost.p50 <= cost.p90
    with pytest.raises(UsageError, match="at step 100 already"):
        bench.service.cost(run_id, until=50)


def test_without_a_step_nothing_is_forecast_and_it_says_how_to_ask(bench: Bench) -> None:
    account = account_of(bench, moved(bench))
    assert account.finish is None
    assert any("say up to which step" in note for note in account.notes)


def test_charges_are_cut_at_full_hours_and_become_focus_rows(bench: Bench) -> None:
    run_id = bench.train()
    train_until(bench, 3 * HOUR_S)
    charges = bench.service.charges(run_id)
    assert len({charge.begin // HOUR_S for charge in charges}) >= 3
    rows = focus_rows(charges, run_id=run_id, name="gpt")
    assert sum(float(str(row["BilledCost"])) for row in rows) == pytest.approx(10.8)
    assert {row["ProviderName"] for row in rows} == {"aws-sim"}
