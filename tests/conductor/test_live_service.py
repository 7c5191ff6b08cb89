from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloudshift_lab.core.asks import FuturesAsk, MoveAsk, NoticeAsk
from cloudshift_lab.core.errors import Corrupt, StaleDecision, UsageError
from cloudshift_lab.core.home import load_clouds, save_clouds
from cloudshift_lab.core.money import MICRO
from cloudshift_lab.core.placement import Clouds
from cloudshift_lab.core.plan import Decision, Futures, MigrationView, Spread
from cloudshift_lab.core.run import SaveStats
from cloudshift_lab.migration import GENESIS, LOSS_TOLERANCE, check_chain

from .bench import AWS, GCP, Bench, bench, cloud

__all__ = ["bench"]
THIRD = "azure-sim:west"


def offered(bench: Bench, run_id: str, **ask: Any) -> MigrationView:
    return bench.service.migrate(run_id, MoveAsk(to=GCP, **ask))


def add_third(bench: Bench, tmp_path: Path) -> None:
    known = [each for each in load_clouds(tmp_path).clouds if each.name != "local"]
    third = cloud("azure-sim", "west", 900_000, url=f"memory://azure-{tmp_path.name}")
    save_clouds(tmp_path, Clouds(clouds=(*known, third)))


def local_seconds(bench: Bench, clock: str) -> float:
    """Seconds from now until the local clock shows ``HH:MM``."""
    now = datetime.fromtimestamp(bench.world.now()).astimezone()
    hour, minute = map(int, clock.split(":"))
    then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (then - now).total_seconds() % 86_400


# -- plans -------------------------------------------------------------------------------------


def test_a_plan_between_equal_machines_shows_both_closings(bench: Bench) -> None:
    run_id = bench.train()
    bench.engine.puppets[run_id, 1].say(saves=SaveStats(save_s=1.5))
    bench.step()
    plan = offered(bench, run_id, closing="auto", rehearse=3).plan
    assert {closing.kind for closing in plan.closings} == {"copy", "replay"}
    assert plan.tolerance == LOSS_TOLERANCE
    replay = next(closing for closing in plan.closings if closing.kind == "replay")
    assert replay.replayed_steps > 0
    assert f"about {replay.replayed_steps} steps" in replay.basis
    assert [item.label for item in plan.bill.items].count(
        "both run while the target rehearses 3 steps"
    ) == 1


def test_unequal_machines_leave_the_replay_out_and_say_why(bench: Bench, tmp_path: Path) -> None:
    run_id = bench.train()
    clouds = load_clouds(tmp_path).clouds
    changed = tuple(
        msgspec.structs.replace(
            each,
            offers=tuple(
                msgspec.structs.replace(offer, instance_type=f"big-{each.name}")
                for offer in each.offers
            ),
        )
        if each.name == "gcp-sim"
        else each
        for each in clouds
    )
    save_clouds(tmp_path, Clouds(clouds=changed))
    plan = offered(bench, run_id, rehearse=3).plan
    assert [closing.kind for closing in plan.closings] == ["copy"]
    assert "m and big-gcp-sim may compute other bits" in plan.closings[0].basis
    assert plan.tolerance == LOSS_TOLERANCE
    bench.approve(bench.service.migrations(run_id)[0], "reject")
    with pytest.raises(UsageError, match="cannot be closed by 'replay': steps are not repeated"):
        offered(bench, run_id, closing="replay")


def test_machines_of_other_names_but_equal_hardware_count_as_equal(
    bench: Bench, tmp_path: Path
) -> None:
    run_id = bench.train()
    clouds = tuple(
        msgspec.structs.replace(
            each,
            offers=tuple(
                msgspec.structs.replace(offer, hardware="1 x L4", instance_type="m")
                if each.name == "aws-sim"
                else msgspec.structs.replace(offer, hardware="1 x L4", instance_type="other")
                for offer in each.offers
            ),
        )
        for each in load_clouds(tmp_path).clouds
    )
    save_clouds(tmp_path, Clouds(clouds=clouds))
    bench.engine.puppets[run_id, 1].say(saves=SaveStats(save_s=1.5))
    bench.step()
    closings = offered(bench, run_id, rehearse=3).plan.closings
    assert {closing.kind for closing in closings} == {"copy", "replay"}


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        ({"rehearse": -1}, "rehearses 0 to 1000 steps, not -1"),
        ({"closing": "replay", "rehearse": 0}, "rehearse at least 1"),
        ({"min_nodes": 2}, "min_nodes must be 1 to 1"),
        ({"approvals": 0}, "1 to 9 can be asked"),
        ({"limit_micro_usd": 0}, "must be above 0"),
        ({"expires_s": 0.0}, "expires_s must be above 0"),
        ({"missing_nodes": "elsewhere"}, "name at least one"),
        (
            {"missing_nodes": "wait", "elsewhere": (AWS,)},
            "with missing nodes 'wait' only the first of gcp-sim:us-central1, aws-sim:us-east-1 ",
        ),
        ({"elsewhere": (AWS,)}, "with missing nodes 'roll-back' only the first of"),
        ({"missing_nodes": "elsewhere", "elsewhere": (AWS,)}, "is at aws-sim:us-east-1 already"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_one_line(
    bench: Bench, ask: dict[str, Any], told: str
) -> None:
    run_id = bench.train()
    with pytest.raises(UsageError, match=told):
        offered(bench, run_id, **ask)
    assert bench.service.migrations(run_id) == ()


def test_the_limit_is_twice_what_is_paid_once_and_room_for_waiting_unless_given(
    bench: Bench,
) -> None:
    run_id = bench.train()
    plan = offered(bench, run_id).plan
    assert plan.limit_micro_usd >= 2 * plan.bill.one_off_micro_usd + MICRO
    bench.approve(bench.service.migrations(run_id)[0], "reject")
    assert offered(bench, run_id, limit_micro_usd=7).plan.limit_micro_usd == 7


def test_a_move_that_reaches_its_limit_is_undone(bench: Bench) -> None:
    run_id = bench.train()
    view = offered(bench, run_id, limit_micro_usd=20_000)
    bench.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    bench.approve(view)
    ended = bench.settle(view.migration_id)
    assert ended.phase == "rolled_back"
    assert "its limit is $0.02" in str(ended.error)
    receipt = bench.service.receipts(run_id)[-1]
    assert receipt.overspent_micro_usd is not None
    assert 0.95 * 20_000 <= receipt.overspent_micro_usd <= 20_000
    assert bench.service.run(run_id).state == "running"


def test_the_link_is_measured_by_earlier_moves_between_the_same_clouds(bench: Bench) -> None:
    run_id = bench.train()
    bench.move(run_id)
    bench.step()
    bench.step()
    bench.move(run_id, AWS)
    bench.step()
    bench.step()
    closings = offered(bench, run_id).plan.closings
    assert any("2.0 MB/s (measured)" in closing.basis for closing in closings)


# -- who approves ------------------------------------------------------------------------------


def by_hand(view: MigrationView, who: str, verdict: Any = "approve") -> Decision:
    return Decision(f"dec-{who}", view.plan.digest, verdict, who)


def test_two_different_people_must_approve_when_two_are_asked_for(bench: Bench) -> None:
    run_id = bench.train(approve="ask approvers 2")
    view = offered(bench, run_id)
    assert view.plan.approvals_needed == 2
    view = bench.service.decide(view.migration_id, by_hand(view, "ada"))
    assert (view.phase, len(view.approvals)) == ("proposed", 1)
    with pytest.raises(StaleDecision, match="approved by ada already"):
        bench.service.decide(view.migration_id, Decision("x", view.plan.digest, "approve", "ada"))
    view = bench.service.decide(view.migration_id, by_hand(view, "bob"))
    assert view.phase == "provisioning"
    assert [one.by for one in view.approvals] == ["ada", "bob"]


def test_a_rule_and_a_person_are_two_approvers(bench: Bench) -> None:
    run_id = bench.train(approve="auto approvers 2")
    view = offered(bench, run_id)
    assert [one.by for one in view.approvals] == ["policy: auto approvers 2"]
    bench.step()
    assert len(bench.service.migration(view.migration_id).approvals) == 1
    view = bench.service.decide(view.migration_id, by_hand(view, "ada"))
    assert view.phase == "provisioning"


def test_one_reject_is_enough(bench: Bench) -> None:
    run_id = bench.train(approve="ask approvers 3")
    view = offered(bench, run_id)
    bench.service.decide(view.migration_id, by_hand(view, "ada"))
    view = bench.service.decide(view.migration_id, by_hand(view, "bob", "reject"))
    assert view.phase == "rejected"


def test_a_rule_about_the_price_approves_below_it_and_says_the_figures(bench: Bench) -> None:
    run_id = bench.train(approve="auto if price < 2/h")
    view = offered(bench, run_id)
    assert view.phase == "provisioning"
    assert view.decision is not None
    assert view.decision.by == "policy: auto if price < 2/h (price 1.80 < 2.00 USD/h)"


def test_a_rule_about_the_price_asks_above_it_and_says_why(bench: Bench) -> None:
    run_id = bench.train(approve="auto if price < 1/h")
    view = offered(bench, run_id)
    assert view.phase == "proposed"
    assert "price 1.80 is not < 1.00 USD/h" in view.waiting
    assert bench.approve(view).waiting == ""


def test_a_rule_for_the_night_approves_when_the_night_comes(bench: Bench) -> None:
    run_id = bench.train(approve="auto if at 22:00-06:00 expires 1d")
    bench.step(local_seconds(bench, "12:00"))
    view = offered(bench, run_id)
    bench.step(60.0)
    assert bench.service.migration(view.migration_id).phase == "proposed"
    bench.step(local_seconds(bench, "22:01"))
    view = bench.service.migration(view.migration_id)
    assert view.phase != "proposed"
    assert view.decision is not None
    assert view.decision.by.startswith("policy: auto if at 22:00-06:00")


def test_quiet_hours_are_shown_as_the_reason_to_wait(bench: Bench) -> None:
    run_id = bench.train(approve="ask quiet 23:00-07:00")
    bench.step(local_seconds(bench, "23:30"))
    view = offered(bench, run_id, expires_s=80_000.0)
    assert "nobody is asked before 07:00" in view.waiting


def test_a_question_of_the_quiet_hours_outlives_them(bench: Bench) -> None:
    run_id = bench.train(approve="ask quiet 23:00-07:00")
    bench.step(local_seconds(bench, "23:30"))
    plan = offered(bench, run_id).plan
    left_s = local_seconds(bench, "07:00")
    assert plan.expires_at - plan.created_at == pytest.approx(left_s + 600.0, abs=5.0)


def test_a_wrong_rule_starts_nothing(bench: Bench) -> None:
    with pytest.raises(UsageError):
        bench.train(approve="sometimes")
    assert bench.service.runs() == ()


# -- places ------------------------------------------------------------------------------------


def test_a_target_that_does_not_come_up_sends_the_run_elsewhere_at_that_price(
    bench: Bench, tmp_path: Path
) -> None:
    add_third(bench, tmp_path)
    run_id = bench.train()

    def prepare(puppet: Any) -> None:
        if puppet.job.placement.cloud == "gcp-sim":
            puppet.is_gone = True

    bench.engine.prepare = prepare
    view = offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,))
    bench.approve(view)
    ended = bench.settle(view.migration_id)
    assert ended.phase == "source_retired", ended.error
    run = bench.service.run(run_id)
    assert (run.placement.target, run.generation) == (THIRD, 3)
    bench.step()
    assert bench.service.run(run_id).price_micro_usd_per_h == 900_000
    (receipt,) = bench.service.receipts(run_id)
    assert receipt.target is not None
    assert (receipt.target.target, receipt.tries) == (THIRD, 1)
    bench.restart()
    assert bench.service.run(run_id).placement.target == THIRD


def third_at(bench: Bench, tmp_path: Path, price: int, **offer: Any) -> None:
    """A third cloud, sold at a price of its own."""
    known = [each for each in load_clouds(tmp_path).clouds if each.name != "local"]
    third = cloud("azure-sim", "west", price, url=f"memory://azure-{tmp_path.name}")
    offers = tuple(msgspec.structs.replace(each, **offer) for each in third.offers)
    third = msgspec.structs.replace(third, offers=offers)
    save_clouds(tmp_path, Clouds(clouds=(*known, third)))


def only_elsewhere_comes_up(bench: Bench) -> None:
    def prepare(puppet: Any) -> None:
        puppet.is_gone = puppet.job.placement.cloud == "gcp-sim"

    bench.engine.prepare = prepare


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("auto if price < 2/h", "price 90.00 is not < 2.00 USD/h"),
        ("auto if break-even < 4h", "it never pays for itself"),
    ],
)
def test_a_rule_is_judged_at_the_dearest_place_where_the_move_may_end(
    bench: Bench, tmp_path: Path, rule: str, told: str
) -> None:
    third_at(bench, tmp_path, 90_000_000)
    run_id = bench.train(approve=rule)
    view = offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,))
    assert view.phase == "proposed"
    assert told in view.waiting
    assert f"should it go to {THIRD}" in view.waiting


@pytest.mark.parametrize("rehearse", [0, 3])
def test_a_dearer_place_elsewhere_is_asked_for_with_its_own_bill(
    bench: Bench, tmp_path: Path, rehearse: int
) -> None:
    third_at(bench, tmp_path, 90_000_000)
    run_id = bench.train()
    only_elsewhere_comes_up(bench)
    view = offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,), rehearse=rehearse)
    bench.approve(view)
    asking = bench.settle(view.migration_id, until="asking")
    assert asking.phase == "asking", asking.error
    assert asking.plan.bill.total_micro_usd > 80_000_000
    bench.approve_again(asking)
    assert bench.settle(view.migration_id).phase == "source_retired"


def test_a_place_that_is_not_sold_any_more_keeps_the_price_of_the_plan(
    bench: Bench, tmp_path: Path
) -> None:
    third_at(bench, tmp_path, 900_000)
    run_id = bench.train()
    only_elsewhere_comes_up(bench)
    view = offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,))
    third_at(bench, tmp_path, 900_000, instance_type="another")
    bench.approve(view)
    assert bench.settle(view.migration_id).phase == "source_retired"
    assert bench.service.run(run_id).price_micro_usd_per_h == 900_000


def test_a_source_that_is_not_sold_any_more_costs_what_it_cost(
    bench: Bench, tmp_path: Path
) -> None:
    run_id = bench.train()
    known = [each for each in load_clouds(tmp_path).clouds if each.name != "local"]
    renamed = tuple(msgspec.structs.replace(o, instance_type="new") for o in known[0].offers)
    known[0] = msgspec.structs.replace(known[0], offers=renamed)
    save_clouds(tmp_path, Clouds(clouds=tuple(known)))
    assert offered(bench, run_id).plan.bill.saving_micro_usd_per_h == 1_800_000


def test_a_fallback_of_other_hardware_takes_no_closing_from_the_target(
    bench: Bench, tmp_path: Path
) -> None:
    third_at(bench, tmp_path, 900_000, instance_type="other")
    run_id = bench.train()
    bench.engine.puppets[run_id, 1].say(saves=SaveStats(save_s=1.5))
    bench.step()
    plan = offered(bench, run_id, missing_nodes="elsewhere", elsewhere=(THIRD,)).plan
    assert {closing.kind for closing in plan.closings} == {"copy", "replay"}
    assert plan.tolerance == LOSS_TOLERANCE


# -- notices -----------------------------------------------------------------------------------


def test_a_notice_without_a_move_is_passed_on_and_shown(bench: Bench) -> None:
    run_id = bench.train()
    told = bench.service.notice(run_id, NoticeAsk(within_s=120.0))
    assert told.finishes
    assert "are enough to save the newest step" in told.words
    bench.step()
    bench.step()
    (order,) = [o for o in bench.engine.puppets[run_id, 1].orders if o.kind == "notice"]
    assert order.within_s == pytest.approx(120.0, abs=5.0)
    view = bench.service.run(run_id)
    assert (view.notice_until, view.notice) == (told.deadline, told.words)
    bench.restart()
    bench.step()
    assert bench.service.run(run_id).notice == told.words
    orders = [o for o in bench.engine.puppets[run_id, 1].orders if o.kind == "notice"]
    assert len(orders) == 1


def test_what_cannot_be_saved_in_time_is_said_beforehand(bench: Bench) -> None:
    run_id = bench.train()
    puppet = bench.engine.puppets[run_id, 1]
    puppet.step = 9
    puppet.say(saves=SaveStats(save_s=60.0), committed_step=4)
    bench.step()
    told = bench.service.notice(run_id, NoticeAsk(within_s=30.0))
    assert not told.finishes
    assert told.lost_steps >= 5
    assert "will be lost" in told.words


def test_a_machine_that_went_after_its_notice_says_so(bench: Bench) -> None:
    run_id = bench.train(restart="never")
    bench.service.notice(run_id, NoticeAsk(within_s=1.0))
    bench.engine.puppets[run_id, 1].is_gone = True
    bench.step()
    bench.step()
    view = bench.service.run(run_id)
    assert view.state == "lost"
    assert "taken away, as had been said" in str(view.error)
    with pytest.raises(UsageError, match="is lost"):
        bench.service.notice(run_id, NoticeAsk(within_s=1.0))


def test_a_notice_for_the_source_of_a_move_drains_it_at_once(bench: Bench) -> None:
    run_id = bench.train()
    view = offered(bench, run_id)
    bench.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    bench.approve(view)
    bench.settle(view.migration_id, until="precopying")
    told = bench.service.notice(run_id, NoticeAsk(within_s=30.0))
    assert told.migration_id == view.migration_id
    assert bench.service.migration(view.migration_id).phase == "draining"
    assert bench.service.migration(view.migration_id).notice_s == pytest.approx(30.0, abs=1.0)
    ended = bench.settle(view.migration_id)
    assert ended.phase == "source_retired", ended.error


def test_a_notice_for_the_target_brings_a_move_back(bench: Bench) -> None:
    run_id = bench.train()
    with pytest.raises(UsageError, match="has no target"):
        bench.service.notice(run_id, NoticeAsk(within_s=30.0, side="target"))
    view = bench.approve(offered(bench, run_id))
    told = bench.service.notice(run_id, NoticeAsk(within_s=30.0, side="target"))
    assert told.does == ("roll back",)
    assert bench.settle(view.migration_id).phase == "rolled_back"


# -- receipts and futures ----------------------------------------------------------------------


def test_receipts_are_listed_in_their_chain_with_what_they_cost(
    bench: Bench, tmp_path: Path
) -> None:
    run_id = bench.train()
    assert bench.service.receipts(run_id) == ()
    bench.move(run_id)
    bench.step()
    bench.step()
    bench.move(run_id, AWS)
    first, second = bench.service.receipts("gpt")
    assert (first.previous, second.previous) == (GENESIS, first.digest)
    assert check_chain([first, second]) == second.digest
    assert first.actual_micro_usd is not None
    (path,) = (tmp_path / "runs" / run_id / "receipts").glob("mig-1.*")
    path.unlink()
    with pytest.raises(Corrupt, match="the receipt of 'mig-1' is missing"):
        bench.service.receipts(run_id)


def test_two_receipts_behind_the_same_one_are_named(bench: Bench, tmp_path: Path) -> None:
    run_id = bench.train()
    bench.move(run_id)
    bench.step()
    (path,) = (tmp_path / "runs" / run_id / "receipts").glob("mig-1.*")
    (one,) = bench.service.receipts(run_id)
    twin = msgspec.structs.replace(one, migration_id="mig-9")
    path.with_name("mig-9.json").write_bytes(msgspec.json.encode(twin))
    with pytest.raises(Corrupt, match=r"'mig-1'.*'mig-9'|'mig-9'.*'mig-1'"):
        bench.service.receipts(run_id)


class Oracle:
    """Answers when told to, as the process that draws futures would."""

    def __init__(self) -> None:
        self.asked: list[tuple[FuturesAsk, Any]] = []

    def tell(self, ask: FuturesAsk, told: Any) -> None:
        self.asked.append((ask, told))

    def close(self) -> None:
        self.asked.clear()


def test_futures_are_shown_once_they_are_drawn_and_hold_up_nothing(bench: Bench) -> None:
    run_id = bench.train()
    oracle = Oracle()
    bench.service._fortune = oracle  # type: ignore[assignment]
    view = offered(bench, run_id)
    assert view.futures is None
    ((ask, told),) = oracle.asked
    assert ask.plan == view.plan
    assert ask.price_micro_usd_per_h == (3_600_000, 1_800_000)
    spread = Spread(1.0, 2.0, 3.0)
    version = bench.service.version()
    told(Futures(1000, spread, spread, spread, 0.1, 0.0, "drawn"))
    assert bench.service.version() > version
    shown = bench.service.migration(view.migration_id).futures
    assert shown is not None
    assert shown.pause_s == spread


@pytest.mark.parametrize(("asked", "found"), [(None, LOSS_TOLERANCE), (0.0, 0.0), (0.02, 0.02)])
def test_a_plan_takes_over_how_far_losses_may_be_apart(
    bench: Bench, asked: float | None, found: float
) -> None:
    run_id = bench.train()
    assert offered(bench, run_id, tolerance=asked).plan.tolerance == found


def test_a_tolerance_that_means_nothing_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="0 to 1 apart"):
        offered(bench, bench.train(), tolerance=-0.1)
