from __future__ import annotations

from typing import Any

import pytest

from cloudshift_lab.core.errors import NotFound, Unavailable
from cloudshift_lab.migration import Saga

from .move_scene import Scene, kill_at


@pytest.fixture
def scene(two_clouds: Any) -> Scene:
    return Scene(two_clouds)


def assert_moved(scene: Scene, saga: Saga) -> None:
    assert saga.phase == "source_retired", saga.error
    assert scene.kinds("aws-sim") == ["acquire", "commit", "handover"]
    assert scene.kinds("gcp-sim") == ["acquire", "commit"]
    target = scene.log("gcp-sim").sync()
    assert (target.generation, target.owner) == (2, "run-1:mig-1")
    assert target.last_commit is not None
    assert target.last_commit.step == saga.sealed_step
    assert scene.puppet(1).is_gone
    assert scene.puppet(2).status.state == "running"
    assert scene.engine.started == [1, 2]


def test_a_move_hands_the_run_over_once_and_names_what_was_carried(scene: Scene) -> None:
    saga = scene.play()
    assert_moved(scene, saga)
    assert (saga.bytes_moved, saga.pause_bytes) == (1000, 500)
    assert saga.pause_s is not None and saga.pause_s > 0
    assert saga.commit_seq == 2
    base = scene.log("gcp-sim").sync().records[0].base
    assert base is not None
    handover = scene.log("aws-sim").sync().records[2]
    assert (base.url, base.seq, base.digest) == ("memory://aws-sim", 2, handover.digest)
    assert scene.puppet(1).obeyed == ["drain", "retire"]
    assert scene.puppet(2).obeyed == ["precopy", "copy", "verify", "go"]


def test_no_step_is_lost_or_done_twice(scene: Scene) -> None:
    saga = scene.play()
    assert saga.sealed_step == scene.puppet(1).step
    assert scene.puppet(2).step > scene.puppet(1).step


def count_store_calls(two_clouds: Any, *, fail: dict[int, str]) -> int:
    scene = Scene(two_clouds)
    scene.engine.prepare = lambda p: p.fail.update({fail.get(p.job.generation, "")})
    calls = []
    scene.tap = lambda name, key: calls.append((name, key))
    scene.play()
    return len(calls)


STORE_BOUNDARIES = 90


@pytest.mark.parametrize("at", range(1, STORE_BOUNDARIES))
def test_a_conductor_killed_at_any_store_call_still_moves_the_run(scene: Scene, at: int) -> None:
    assert_moved(scene, kill_at(scene, at))


def test_the_boundaries_above_cover_a_whole_move(two_clouds: Any) -> None:
    assert count_store_calls(two_clouds, fail={}) < STORE_BOUNDARIES


@pytest.mark.parametrize("at", range(1, STORE_BOUNDARIES))
def test_a_conductor_killed_at_any_store_call_still_rolls_back(scene: Scene, at: int) -> None:
    scene.engine.prepare = lambda puppet: puppet.fail.add("verify")
    saga = kill_at(scene, at)
    assert saga.phase == "rolled_back"
    assert saga.error == "verify failed at the target: a chunk is corrupt"
    assert scene.kinds("aws-sim") == ["acquire", "commit", "cancel"]
    assert scene.kinds("gcp-sim") == []
    assert scene.puppet(1).status.state == "running"
    assert scene.puppet(2).is_gone


@pytest.mark.parametrize(
    ("name", "part"), [("create", "log/000000000002"), ("create", "log/000000000000"),
                       ("create", "log/000000000001")],
)  # fmt: skip
def test_a_log_record_whose_answer_was_lost_is_not_written_twice(
    scene: Scene, name: str, part: str
) -> None:
    lost = []

    def tap(called: str, key: str) -> None:
        if called == name and part in key and len(lost) < 2:
            lost.append(key)
            if len(lost) == 2:
                raise Unavailable("the answer was lost; try again")

    scene.tap = tap
    assert_moved(scene, scene.play())
    assert len(lost) == 2


def test_a_store_that_is_away_during_the_commit_brings_the_run_back(scene: Scene) -> None:
    def tap(called: str, key: str) -> None:
        if called == "create" and "/log/" in key and scene.world.clock_s < 4000:
            scene.world.clock_s += 10
            raise Unavailable("no answer; try again")

    scene.tap = tap
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert "handover" not in scene.kinds("aws-sim")
    assert scene.puppet(1).status.state == "running"


def test_a_handover_that_landed_unseen_makes_the_saga_go_forward(scene: Scene) -> None:
    """The log answers late: the record landed, every read of the log then fails for long."""
    landed = []

    def tap(called: str, key: str) -> None:
        if called == "create" and "log/000000000002" in key:
            landed.append(key)
        if len(landed) >= 2 and "/log/" in key and len(landed) < 120:
            landed.append(key)
            scene.world.clock_s += 10
            raise Unavailable("no answer; try again")

    scene.tap = tap
    saga = scene.play()
    assert_moved(scene, saga)
    assert "rolling_back" in [entry.phase for entry in saga.timeline]


@pytest.mark.parametrize("kind", ["precopy", "copy", "verify"])
def test_a_failure_at_the_target_before_the_commit_lets_the_source_go_on(
    scene: Scene, kind: str
) -> None:
    scene.engine.prepare = lambda puppet: puppet.fail.add(kind)
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert saga.error is not None and saga.error.startswith(f"{kind} failed at the target")
    before = scene.puppet(1).step
    scene.engine.tick()
    assert scene.puppet(1).step == before + 1


def test_a_target_that_dies_before_the_commit_rolls_the_move_back(scene: Scene) -> None:
    scene.play(until="copying")
    scene.puppet(2).is_gone = True
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert saga.error is not None and "the target's agent is gone" in saga.error
    assert scene.puppet(1).status.state == "running"


def test_a_target_that_falls_silent_before_the_commit_rolls_the_move_back(scene: Scene) -> None:
    scene.play(until="copying")
    scene.puppet(2).is_frozen = True
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert saga.error is not None and "has said nothing for" in saga.error


@pytest.mark.parametrize("has_last_word", [True, False])
def test_a_target_that_ended_while_the_conductor_was_away_is_not_given_the_run(
    scene: Scene, has_last_word: bool
) -> None:
    scene.play(until="committing")
    scene.puppet(2).is_gone = True
    if has_last_word:
        scene.puppet(2).say(state="failed", error="out of memory")
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert "handover" not in scene.kinds("aws-sim")
    assert scene.puppet(1).status.state == "running"


def test_a_target_that_dies_after_the_commit_is_started_again_and_goes(scene: Scene) -> None:
    scene.play(until="committed")
    scene.puppet(2).is_gone = True
    saga = scene.play()
    assert saga.phase == "source_retired"
    assert scene.engine.started == [1, 2, 2]
    assert scene.puppet(2).status.state == "running"


def test_a_target_that_cannot_go_at_once_is_asked_again(scene: Scene) -> None:
    scene.play(until="committed")
    scene.puppet(2).fail.add("go")
    driver = scene.driver()
    for _ in range(10):
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    assert driver.saga.failures > 0
    scene.puppet(2).fail.clear()
    assert scene.play().phase == "source_retired"
    assert scene.puppet(2).status.state == "running"


def test_a_target_frozen_after_the_commit_is_ended_and_started_again(scene: Scene) -> None:
    scene.play(until="committed")
    scene.puppet(2).is_frozen = True
    assert scene.play().phase == "source_retired"
    assert scene.engine.started == [1, 2, 2]


def test_a_source_that_dies_while_draining_rolls_back_and_is_not_waited_for(scene: Scene) -> None:
    scene.puppet(1).mute.add("drain")
    scene.play(until="draining")
    scene.puppet(1).is_gone = True
    saga = scene.play(limit_s=600)
    assert saga.phase == "rolled_back"
    assert saga.error is not None and "the source's agent is gone" in saga.error
    assert scene.puppet(2).is_gone


def test_a_source_that_finished_meanwhile_is_not_moved(scene: Scene) -> None:
    scene.play(until="draining")
    scene.puppet(1).is_gone = True
    scene.puppet(1).say(state="finished")
    saga = scene.play(limit_s=600)
    assert saga.phase == "rolled_back"
    assert saga.error is not None and "the source has finished meanwhile" in saga.error


def test_a_source_that_does_not_retire_is_ended(scene: Scene) -> None:
    scene.puppet(1).mute.add("retire")
    saga = scene.play()
    assert saga.phase == "source_retired"
    assert scene.puppet(1).is_gone


def test_an_unreachable_source_store_does_not_keep_the_source_alive(scene: Scene) -> None:
    scene.play(until="resumed")

    def tap(_called: str, key: str) -> None:
        if "/1" in key:
            raise Unavailable("no answer; try again")

    scene.tap = tap
    assert scene.play().phase == "source_retired"
    assert scene.puppet(1).is_gone


def test_an_engine_that_refuses_the_target_changes_nothing(scene: Scene) -> None:
    scene.engine.refuse = NotFound("no interpreter; install one")
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert saga.error == "no interpreter; install one"
    assert scene.puppet(1).status.state == "running"


def test_within_one_store_the_same_log_goes_on(two_clouds: Any) -> None:
    scene = Scene(two_clouds, target_cloud="aws-sim")
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    assert scene.kinds("aws-sim") == ["acquire", "commit", "handover", "acquire"]
    assert scene.puppet(2).status.state == "running"


@pytest.mark.parametrize("cloud", ["aws-sim", "gcp-sim"])
def test_a_generation_that_was_burnt_by_a_rollback_is_skipped(two_clouds: Any, cloud: str) -> None:
    scene = Scene(two_clouds, target_cloud=cloud, generation=4)
    saga = scene.play()
    assert saga.phase == "source_retired", saga.error
    state = scene.log(cloud).sync()
    assert (state.generation, state.owner) == (4, "run-1:mig-1")
    again = scene.driver()
    assert again.saga == saga


def test_a_newer_checkpoint_than_the_sealed_one_stops_the_commit(scene: Scene) -> None:
    scene.play(until="committing")
    scene.log("aws-sim").commit(
        generation=1, step=99, manifest_key="k", manifest_digest="other", nonce="n"
    )
    saga = scene.play()
    assert saga.phase == "rolled_back"
    assert saga.error is not None and "newest checkpoint is step 99" in saga.error


def test_a_move_is_not_over_before_the_target_has_a_commit_of_its_own(scene: Scene) -> None:
    scene.play(until="committing")
    target = scene.puppet(2)
    target.saves_late = True
    driver = scene.driver()
    for _ in range(100):
        driver.tick()
        scene.engine.tick()
        scene.world.clock_s += 0.5
    assert target.status.first_step_at is not None
    assert driver.saga.phase == "committed"
    assert not scene.puppet(1).is_gone
    target.say(committed_step=driver.saga.sealed_step)
    assert scene.play().phase == "source_retired"
