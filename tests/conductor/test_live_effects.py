from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloudshift_lab.core.orders import OrderResult
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import Decision, Fallback
from cloudshift_lab.migration import Saga
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.memory import MemoryStore

from .move_scene import Scene, kill_at

REPLAY: dict[str, Any] = {"closing": "replay", "rehearsal_steps": 3}
STORE_BOUNDARIES = 130
TWO_NODES = Placement("gcp-sim", "us-central1", "m", nodes=2)
ELSEWHERE = Fallback(Placement("azure-sim", "west", "m", nodes=2), "memory://azure-sim")


@pytest.fixture
def replayed(two_clouds: Any) -> Scene:
    return Scene(two_clouds, **REPLAY)


def with_third_cloud(clouds: Any) -> Any:
    clouds.stores["azure-sim"] = MemoryStore("memory://azure-sim")
    return clouds


def assert_replayed(scene: Scene, saga: Saga) -> None:
    assert saga.phase == "source_retired", saga.error
    assert scene.kinds("aws-sim") == ["acquire", "commit", "commit", "handover"]
    assert scene.kinds("gcp-sim") == ["acquire", "commit"]
    target = scene.log("gcp-sim").sync()
    assert target.last_commit is not None
    assert (target.last_commit.step, target.last_commit.manifest_digest) == (
        saga.sealed_step,
        saga.manifest_digest,
    )
    assert target.last_commit.nonce.endswith(":first"), "the target saved the step itself"
    assert scene.puppet(1).is_gone
    assert scene.engine.started == [1, 2]


def test_a_replayed_move_carries_no_sealed_step_and_says_how_long_it_stood_still(
    replayed: Scene,
) -> None:
    saga = replayed.play()
    assert_replayed(replayed, saga)
    assert replayed.puppet(1).obeyed == ["save", "drain", "retire"]
    assert replayed.puppet(2).obeyed == ["precopy", "rehearse", "catch_up", "go"]
    assert saga.bytes_moved == 500
    assert saga.pause_s is not None
    assert saga.still_s is not None
    assert saga.still_s < saga.pause_s
    assert saga.bytes_per_s == 2e6


def test_orders_name_what_is_to_be_rehearsed_and_that_the_ranks_stay(replayed: Scene) -> None:
    replayed.play()
    orders = {order.kind: order for order in replayed.puppet(2).orders}
    assert (orders["precopy"].replay, orders["precopy"].num_steps) == (True, 3)
    assert (orders["rehearse"].num_steps, orders["rehearse"].tolerance) == (3, 0.0)
    assert orders["go"].replay
    assert orders["catch_up"].step == replayed.puppet(1).step
    save = next(order for order in replayed.puppet(1).orders if order.kind == "save")
    assert save.standalone, "only it has to be copied, and not what it builds on"


@pytest.mark.parametrize("at", range(1, STORE_BOUNDARIES, 2))
def test_a_conductor_killed_at_any_store_call_still_closes_by_replay(
    replayed: Scene, at: int
) -> None:
    assert_replayed(replayed, kill_at(replayed, at))


def test_a_state_that_differs_after_the_replay_is_copied_instead(replayed: Scene) -> None:
    replayed.engine.prepare = prepare_mismatch
    saga = replayed.play()
    assert saga.phase == "source_retired", saga.error
    assert saga.closing == "copy"
    assert replayed.puppet(2).obeyed[-4:] == ["catch_up", "copy", "verify", "go"]
    last = replayed.log("gcp-sim").sync().last_commit
    assert last is not None
    assert last.nonce.endswith(":step"), "the sealed step was carried over"


def prepare_mismatch(puppet: Any) -> None:
    puppet.fail.add("catch_up")
    puppet.fail_as = "Mismatch"


def test_losses_that_are_near_are_closed_by_a_copy(replayed: Scene) -> None:
    replayed.engine.prepare = prepare_near
    saga = replayed.play()
    assert (saga.phase, saga.closing, saga.plan.closing) == ("source_retired", "copy", "replay")
    assert (saga.apart, saga.apart_step) == (3e-5, 14)
    assert "catch_up" not in replayed.puppet(2).obeyed
    last = replayed.log("gcp-sim").sync().last_commit
    assert last is not None
    assert last.nonce.endswith(":step"), "the sealed step was carried over"


def prepare_near(puppet: Any) -> None:
    puppet.apart = (3e-5, 14)


def test_a_rehearsal_that_differs_brings_the_move_back(two_clouds: Any) -> None:
    scene = Scene(two_clouds, rehearsal_steps=3)

    def prepare(puppet: Any) -> None:
        puppet.fail.add("rehearse")
        puppet.fail_as = "Mismatch"

    scene.engine.prepare = prepare
    saga = scene.play()
    assert (saga.phase, saga.error_kind) == ("rolled_back", "Mismatch")
    assert "drain" not in scene.puppet(1).obeyed
    assert scene.puppet(1).status.state == "running"


def test_a_source_that_cannot_save_just_now_is_copied_as_it_is(replayed: Scene) -> None:
    replayed.puppet(1).fail.add("save")
    saga = replayed.play()
    assert saga.phase == "source_retired", saga.error
    assert replayed.puppet(1).obeyed == ["save", "drain", "retire"]


def test_a_source_that_never_answers_a_save_is_not_waited_for_for_ever(replayed: Scene) -> None:
    replayed.puppet(1).mute.add("save")
    assert replayed.play().phase == "source_retired"


def test_pushing_orders_the_source_to_carry_and_the_target_to_prove(two_clouds: Any) -> None:
    scene = Scene(two_clouds, carrier="push")
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    assert scene.puppet(1).obeyed == ["precopy", "drain", "copy", "retire"]
    assert scene.puppet(2).obeyed == ["verify", "go"]
    pushed = next(order for order in scene.puppet(1).orders if order.kind == "copy")
    assert (pushed.to_cloud, pushed.to_url) == ("gcp-sim", "memory://gcp-sim")


# -- nodes that are missing --------------------------------------------------------------------


def half(puppet: Any) -> None:
    """The first target's second node does not come up."""
    if puppet.job.generation == 2:
        puppet.nodes_up = 1


@pytest.mark.parametrize("policy", ["roll-back", "wait", "shrink", "elsewhere"])
def test_missing_nodes_are_waited_for_a_while_before_the_policy_is_asked(
    two_clouds: Any, policy: Any
) -> None:
    scene = Scene(with_third_cloud(two_clouds), target=TWO_NODES, missing_nodes=policy,
                  fallbacks=(ELSEWHERE,))  # fmt: skip
    scene.engine.prepare = half
    driver = scene.driver()
    for _ in range(80):
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    assert (driver.saga.phase, driver.saga.failures) == ("provisioning", 0)
    scene.puppet(2).nodes_up = 2
    assert scene.play().phase == "source_retired"
    assert scene.engine.started == [1, 2]


def test_missing_nodes_bring_a_move_back_by_default(two_clouds: Any) -> None:
    scene = Scene(two_clouds, target=TWO_NODES)
    scene.engine.prepare = half
    saga = scene.play()
    assert (saga.phase, saga.error_kind) == ("rolled_back", "NodesMissing")
    assert "only 1 of the target's 2 nodes are up" in str(saga.error)
    assert scene.puppet(2).is_gone


def test_a_shrunk_move_begins_again_with_the_nodes_there_are(two_clouds: Any) -> None:
    scene = Scene(two_clouds, target=TWO_NODES, missing_nodes="shrink", min_nodes=1)
    scene.engine.prepare = half
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    assert saga.partial == "1 of 2 nodes came up; the run goes on with 1"
    assert scene.engine.started == [1, 2, 3]
    assert scene.puppet(2).is_gone
    assert scene.puppet(3).job.placement.nodes == 1
    assert scene.puppet(3).job.owner != scene.puppet(2).job.owner
    assert scene.log("gcp-sim").sync().generation == 3


def test_a_move_goes_elsewhere_and_the_half_that_wakes_late_is_fenced(two_clouds: Any) -> None:
    scene = Scene(with_third_cloud(two_clouds), target=TWO_NODES, missing_nodes="elsewhere",
                  fallbacks=(ELSEWHERE,))  # fmt: skip
    scene.engine.prepare = half
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    assert scene.puppet(3).job.placement == ELSEWHERE.placement
    assert scene.puppet(3).job.store_url == ELSEWHERE.url
    assert scene.kinds("gcp-sim") == []
    assert scene.kinds("azure-sim") == ["acquire", "commit"]
    handover = RunLog(scene.clouds.stores["aws-sim"], "run-1", scene.world).sync().records[-1]
    assert (handover.kind, handover.to_url) == ("handover", "memory://azure-sim")
    assert scene.puppet(2).is_gone


@pytest.mark.parametrize("at", range(1, 160, 3))
def test_a_conductor_killed_anywhere_still_goes_elsewhere(two_clouds: Any, at: int) -> None:
    scene = Scene(with_third_cloud(two_clouds), target=TWO_NODES, missing_nodes="elsewhere",
                  fallbacks=(ELSEWHERE,))  # fmt: skip
    scene.engine.prepare = half
    saga = kill_at(scene, at)
    assert saga.phase == "source_retired", saga.error
    assert scene.kinds("azure-sim") == ["acquire", "commit"]
    assert scene.kinds("gcp-sim") == []
    assert scene.puppet(2).is_gone


def test_a_node_that_dies_during_the_copy_counts_as_missing(two_clouds: Any) -> None:
    scene = Scene(two_clouds, target=TWO_NODES, missing_nodes="shrink", min_nodes=1)
    scene.engine.prepare = lambda puppet: puppet.mute.add("copy")
    scene.play(until="copying")
    scene.engine.prepare = lambda _puppet: None
    scene.puppet(2).nodes_up = 1
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    assert scene.puppet(3).job.placement.nodes == 1
    assert scene.puppet(1).obeyed.count("drain") == 1, "the sealed step stays sealed"


# -- machines that go --------------------------------------------------------------------------


def test_a_source_with_notice_drains_at_once_and_the_rest_follows(replayed: Scene) -> None:
    replayed.engine.prepare = lambda puppet: puppet.mute.add("rehearse")
    replayed.play(until="rehearsing")
    driver = replayed.driver()
    driver.notice("source", replayed.world.now() + 30.0)
    assert driver.saga.effect == "drain"
    saga = replayed.play()
    assert saga.phase == "source_retired", saga.error
    assert (saga.closing, saga.lost_steps) == ("copy", 0)
    assert saga.sealed_step == replayed.puppet(1).step


def test_a_source_that_went_before_it_drained_leaves_its_newest_commit(replayed: Scene) -> None:
    replayed.puppet(1).mute.add("drain")
    replayed.play(until="precopying")
    replayed.play(until="rehearsing")
    driver = replayed.driver()
    driver.notice("source", replayed.world.now() + 10.0)
    for _ in range(10):
        driver.tick()
        replayed.engine.tick()
        replayed.world.clock_s += 0.5
    assert driver.saga.phase == "draining"
    source = replayed.puppet(1)
    source.is_gone = True
    saga = replayed.play()
    assert saga.phase == "source_retired", saga.error
    committed = replayed.log("aws-sim").sync().last_commit
    assert committed is not None
    assert saga.sealed_step == committed.step
    assert saga.lost_steps == source.step - (committed.step or 0) > 0
    draining = next(entry for entry in saga.timeline if entry.phase == "copying")
    assert f"{saga.lost_steps} are lost" in draining.detail


def test_without_a_notice_a_source_that_dies_is_not_moved(replayed: Scene) -> None:
    replayed.puppet(1).mute.add("drain")
    replayed.play(until="draining")
    replayed.puppet(1).is_gone = True
    saga = replayed.play(limit_s=600)
    assert saga.phase == "rolled_back"
    assert "the source's agent is gone" in str(saga.error)


# -- a target that has the run and not its newest step yet ---------------------------------------


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_a_target_that_ends_before_it_has_the_replayed_step_is_started_again(
    replayed: Scene, state: str
) -> None:
    replayed.play(until="committed")
    target = replayed.puppet(2)
    target.say(state=state)
    target.is_gone = True
    saga = replayed.play()
    assert saga.phase == "source_retired", saga.error
    assert replayed.engine.started == [1, 2, 2]
    assert replayed.puppet(2).status.state == "running"
    assert replayed.kinds("gcp-sim") == ["acquire", "commit"]


def test_a_source_is_not_retired_while_a_target_without_its_step_says_that_it_failed(
    replayed: Scene,
) -> None:
    replayed.play(until="committed")
    replayed.puppet(2).mute.add("go")
    replayed.puppet(2).say(state="failed")
    driver = replayed.driver()
    for _ in range(20):
        driver.tick()
        replayed.engine.tick()
        replayed.world.clock_s += 0.5
    assert driver.saga.phase == "committed"
    assert not replayed.puppet(1).is_gone
    assert replayed.engine.started == [1, 2]


def test_a_target_that_failed_with_the_step_in_its_log_ends_the_move(two_clouds: Any) -> None:
    scene = Scene(two_clouds)
    scene.play(until="committed")
    scene.puppet(2).mute.add("go")
    scene.puppet(2).say(state="failed")
    saga = scene.play()
    assert saga.phase == "source_retired"
    assert scene.engine.started == [1, 2]


def test_a_node_that_goes_after_the_commit_is_started_again(two_clouds: Any) -> None:
    scene = Scene(two_clouds, target=TWO_NODES)
    scene.engine.prepare = lambda puppet: puppet.mute.add("go")
    scene.play(until="committed")
    scene.puppet(2).nodes_up = 1
    driver = scene.driver()
    for _ in range(100):
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    assert scene.engine.revived == []
    for _ in range(30):
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    assert scene.engine.revived == [2]
    assert driver.saga.phase == "committed"


# -- money -------------------------------------------------------------------------------------


def test_a_move_that_would_cost_more_than_its_limit_is_undone(two_clouds: Any) -> None:
    scene = Scene(two_clouds, limit_micro_usd=1_000_000)
    scene.engine.prepare = lambda puppet: puppet.mute.add("precopy")
    begun = scene.world.clock_s
    scene.meter = lambda _saga: int((scene.world.clock_s - begun) * 10_000)
    saga = scene.play()
    assert (saga.phase, saga.error_kind) == ("rolled_back", "Exhausted")
    assert saga.overspent_micro_usd is not None
    assert 0.9 * 1_000_000 <= saga.overspent_micro_usd <= 1_000_000
    assert scene.puppet(1).status.state == "running"


def worse_bill(scene: Scene) -> Any:
    bill = msgspec.structs.replace(scene.plan.bill, total_micro_usd=5_000_000)
    return lambda _saga, _here_s, _there_s: bill


def test_a_bill_that_the_rehearsal_made_worse_is_asked_for_again(two_clouds: Any) -> None:
    scene = Scene(two_clouds, rehearsal_steps=3)
    scene.reprice = worse_bill(scene)
    saga = scene.play(until="asking")
    assert saga.plan.bill.total_micro_usd == 5_000_000
    assert saga.plan.digest != scene.plan.digest
    driver = scene.driver()
    driver.decide(Decision("dec-2", saga.plan.digest, "approve", "ada", scene.world.now()))
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error


def test_a_worse_bill_that_nobody_approves_is_undone(two_clouds: Any) -> None:
    scene = Scene(two_clouds, rehearsal_steps=3)
    scene.reprice = worse_bill(scene)
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert "nobody decided on the new bill in time" in str(saga.error)
    assert scene.puppet(1).obeyed.count("drain") == 0


def test_what_is_under_way_is_shown_with_its_progress(scene_in_copy: Scene) -> None:
    going = scene_in_copy.effects.going
    assert going is not None
    assert (going.done_bytes, going.total_bytes, going.eta_s) == (300, 1000, 7.0)
    assert going.detail == "round 1"


@pytest.fixture
def scene_in_copy(two_clouds: Any) -> Scene:
    scene = Scene(two_clouds)
    scene.engine.prepare = lambda puppet: puppet.mute.add("copy")
    driver = scene.driver()
    while driver.saga.phase != "copying":
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    driver.tick()
    told = OrderResult("running", "round 1", 300, total_bytes=1000, bytes_per_s=100.0, eta_s=7.0)
    scene.puppet(2).say(results={"mig-1:copy": told})
    driver.tick()
    return scene
