"""When the ranks are asked for a state by the clock, and what a save is measured to cost."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.cadence import ASK_AGAIN_S, Cadence
from cloudshift_lab.agent.pace import Pace
from cloudshift_lab.agent.protocols import RanksView
from cloudshift_lab.core.save_policy import FIRST_SAVE_S

from .conftest import Attempt, ManualWorld, ScriptedRanks, SwitchableStore, make_job


class Scene:
    """Ranks that take a second a step, and longer beside a save."""

    def __init__(self, policy: str, *, slow_s: float = 0.0) -> None:
        self.world = ManualWorld()
        self.ranks = ScriptedRanks()
        self.cadence = Cadence(make_job(save_policy=policy), self.ranks, self.world)
        self.slow_s = slow_s
        self.num_steps, self.steps_s = 0, 0.0
        self.staged: int | None = None
        self.is_saving = False

    @property
    def asked(self) -> int:
        return self.ranks.told.count("capture")

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            seconds = 1.0 + (self.slow_s if self.is_saving else 0.0)
            self.num_steps += 1
            self.steps_s += seconds
            self.world.time += seconds
            self.look()

    def look(self) -> None:
        view = RanksView(
            state="running", step=self.num_steps, staged_step=self.staged,
            num_steps=self.num_steps, steps_s=self.steps_s,
        )  # fmt: skip
        self.cadence.tick(view, is_saving=self.is_saving)

    def save(self, num_steps: int) -> None:
        """The ranks stage what was asked for, and it is committed so many steps later."""
        self.staged, self.is_saving = self.num_steps, True
        self.look()
        self.run(num_steps)
        self.is_saving = False
        self.look()


def test_a_time_is_kept_and_counted_from_the_commit_before() -> None:
    scene = Scene("30s")
    scene.run(30)
    assert scene.asked == 0
    scene.run(1)
    assert scene.asked == 1
    scene.save(20)
    scene.run(29)
    assert scene.asked == 1
    scene.run(1)
    assert scene.asked == 2


def test_no_save_is_asked_for_before_the_last_is_committed() -> None:
    scene = Scene("2s")
    scene.run(3)
    assert scene.asked == 1
    scene.staged, scene.is_saving = 3, True
    scene.run(500)
    assert scene.asked == 1


def test_what_was_asked_for_in_vain_is_asked_for_again() -> None:
    scene = Scene("2s")
    scene.run(3)
    scene.run(int(ASK_AGAIN_S) - 1)
    assert scene.asked == 1
    scene.run(5)
    assert scene.asked == 2


def test_steps_are_the_ranks_own_business() -> None:
    scene = Scene("5")
    scene.run(50)
    assert scene.asked == 0
    assert scene.cadence.words == "every 5 steps"


def test_nothing_is_asked_of_ranks_that_do_not_train() -> None:
    world, ranks = ManualWorld(), ScriptedRanks()
    cadence = Cadence(make_job(save_policy="1s"), ranks, world)
    for state in ("starting", "gate", "drained", "finished", "failed", "absent"):
        world.time += 100
        cadence.tick(RanksView(state=state, num_steps=9), is_saving=False)  # type: ignore[arg-type]
    assert ranks.told == []


def test_auto_saves_early_measures_and_then_follows_young_and_daly() -> None:
    scene = Scene("auto", slow_s=0.02)
    scene.run(int(FIRST_SAVE_S) + 1)
    assert scene.asked == 1
    scene.save(10)
    cost = scene.cadence.cost
    assert cost is not None
    assert cost.lost_s == pytest.approx(0.2)
    assert "Young/Daly: a save costs 0.2 s, failures assumed every 24 h" in scene.cadence.words
    scene.run(180)
    assert scene.asked == 1
    scene.run(10)
    assert scene.asked == 2


def test_a_slow_store_makes_saves_rarer_and_nothing_else() -> None:
    scene = Scene("auto")
    scene.run(int(FIRST_SAVE_S) + 1)
    scene.save(400)
    assert "a save takes 400 s" in scene.cadence.words
    scene.run(790)
    assert scene.asked == 1
    scene.run(20)
    assert scene.asked == 2


def test_after_a_restart_of_the_ranks_the_clock_begins_anew() -> None:
    scene = Scene("30s")
    scene.run(29)
    scene.cadence.restart()
    scene.num_steps, scene.steps_s = 0, 0.0
    scene.run(30)
    assert scene.asked == 0
    scene.run(2)
    assert scene.asked == 1


def test_a_pace_without_quiet_steps_claims_nothing() -> None:
    pace = Pace()
    pace.look(0, 0.0, now=0.0, is_saving=True)
    pace.look(5, 5.0, now=5.0, is_saving=False)
    assert pace.cost is None


def test_later_saves_count_more_and_a_lucky_one_costs_nothing_less_than_nothing() -> None:
    pace, steps, seconds = Pace(), 0, 0.0
    for step_s in (2.0, 1.0, 0.5):
        for saving, each_s in ((False, 1.0), (True, step_s)):
            for _ in range(4):
                steps, seconds = steps + 1, seconds + each_s
                pace.look(steps, seconds, now=seconds, is_saving=saving)
    pace.look(steps, seconds, now=seconds, is_saving=False)
    assert pace.cost is not None
    assert 0 <= pace.cost.lost_s < 2.0


def test_the_agent_asks_and_says_how_often_and_why(world: ManualWorld) -> None:
    attempt = Attempt(world, SwitchableStore("memory://source"), make_job(save_policy="30s"))
    attempt.tick()
    attempt.ranks.view = RanksView(state="running", step=5, num_steps=5, steps_s=5.0)
    attempt.tick()
    assert "capture" not in attempt.ranks.told
    world.time += 31
    attempt.tick()
    assert attempt.ranks.told.count("capture") == 1
    assert attempt.published.saves.policy == "every 30 s"


def test_what_a_save_was_is_in_the_status(source: Attempt) -> None:
    source.tick()
    source.run_to(10, staged=10)
    source.tick(12)
    saves = source.published.saves
    assert (saves.raw_bytes, saves.new_bytes > 0, saves.stored_bytes > 0) == (48, True, True)
    assert saves.save_s is not None and saves.save_s >= 0
    assert saves.policy == "every 10 steps"


def test_a_ranks_own_warning_is_shown(source: Attempt) -> None:
    source.tick()
    source.ranks.view = RanksView(state="running", step=1, warning="captures block: tied hooks")
    source.tick(10)
    assert "captures block: tied hooks" in source.published.warnings
