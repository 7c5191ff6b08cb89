"""When the ranks are asked for a state by the clock, and what a save is measured to cost."""

from __future__ import annotations

import pytest

from cloudshift_lab.agent.cadence import ASK_AGAIN_S, Cadence
from cloudshift_lab.agent.pace import Pace
from cloudshift_lab.agent.protocols import RanksView
from cloudshift_lab.core.save_policy import FIRST_SAVE_S

from .conftest import Attempt, ManualWorld, ScriptedRanks, SwitchableStore, make_job


class Scene:
    """Ranks that take a second or so a step, and longer beside a save."""

    def __init__(self, policy: str, *, slow_s: float = 0.0, step_s: float = 1.0) -> None:
        self.step_s = step_s
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
            seconds = self.step_s + (self.slow_s if self.is_saving else 0.0)
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


class Training:
    """Ranks that agree on a capture within two steps, stall for it, and a saver beside them.

    Time passes in ticks, as it does for the agent, and not in steps.
    """

    def __init__(self, *, step_s: float, stall_s: float, upload_s: float) -> None:
        self.world, self.ranks = ManualWorld(), ScriptedRanks()
        self.cadence = Cadence(make_job(save_policy="auto"), self.ranks, self.world)
        self.step_s, self.stall_s, self.upload_s = step_s, stall_s, upload_s
        self.began: list[float] = []
        self._started = self.world.time
        self._served = self._agreed = self._num_steps = 0
        self._steps_s = 0.0
        self._step_began, self._step_ends = self._started, self._started + step_s
        self._staged: int | None = None
        self._staged_at = self._committed_at = float("-inf")

    @property
    def saves(self) -> int:
        return len(self.began)

    def run(self, seconds: float) -> None:
        end = self.world.time + seconds
        while self.world.time < end:
            self.world.time += 0.05
            self._tick()

    def _tick(self) -> None:
        now = self.world.time
        if now >= self._step_ends:
            self._end_step(now)
        is_saving = self._staged_at <= now < self._committed_at
        view = RanksView(
            state="running", num_steps=self._num_steps, steps_s=self._steps_s,
            staged_step=self._staged if now >= self._staged_at else None,
        )  # fmt: skip
        self.cadence.tick(view, is_saving=is_saving)

    def _end_step(self, now: float) -> None:
        self._num_steps += 1
        self._steps_s += now - self._step_began
        self._step_began, self._step_ends = now, now + self.step_s
        is_due = self._agreed > self._served and now >= self._committed_at
        if is_due:
            self._served = self._agreed
            self.began.append(now - self._started)
            self._step_ends += self.stall_s
            self._staged, self._staged_at = self._num_steps, now + self.stall_s
            self._committed_at = self._staged_at + self.upload_s
        self._agreed = self.ranks.told.count("capture")


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
    scene.run(1)
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
    scene.run(1)
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
    for step_s in (2.0, 1.0, 0.5):  # which lose 4, 0 and, less than nothing, 0 seconds
        for saving, each_s in ((False, 1.0), (True, step_s)):
            for _ in range(4):
                steps, seconds = steps + 1, seconds + each_s
                pace.look(steps, seconds, now=seconds, is_saving=saving)
    pace.look(steps + 1, seconds + 1.0, now=seconds + 1.0, is_saving=False)
    assert pace.cost is not None
    assert pace.cost.lost_s == pytest.approx(1.0), "the mean would be 4/3, the newest 0"


@pytest.mark.parametrize("step_s", [0.05, 1.0, 46.0, 90.0, 300.0])
def test_auto_learns_the_cost_from_its_first_save_however_long_a_step_takes(step_s: float) -> None:
    training = Training(step_s=step_s, stall_s=2.0, upload_s=10.0)
    while training.saves < 2:
        training.run(step_s)
    cost = training.cadence.cost
    assert cost is not None
    assert cost.lost_s == pytest.approx(2.0, abs=0.3)
    assert cost.save_s == pytest.approx(10.0, abs=0.3)
    between = training.began[1] - training.began[0]
    best_s = 590.0  # Young/Daly of 2 s lost every time and a failure a day
    assert between == pytest.approx(best_s, abs=20.0 + 4 * step_s)
    assert training.began[0] <= max(FIRST_SAVE_S, 3 * step_s) + 5 * step_s + 1.0


@pytest.mark.parametrize("step_s", [70.0, 400.0])
def test_ranks_that_take_minutes_a_step_are_asked_once_for_each_save(step_s: float) -> None:
    training = Training(step_s=step_s, stall_s=2.0, upload_s=10.0)
    training.run(6_000.0)
    assert training.ranks.told.count("capture") - training.saves in (0, 1)
    assert training.saves <= 6_000.0 / 590.0


def test_a_first_save_does_not_wait_for_steps_of_an_hour() -> None:
    training = Training(step_s=4000.0, stall_s=2.0, upload_s=10.0)
    training.run(2 * 4000.0 + 100.0)
    assert "capture" in training.ranks.told


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
