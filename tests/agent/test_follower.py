"""A follower beside a scripted leader, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from cloudshift_lab.agent.follower import LEAD_PATIENCE_S, LEAD_SILENCE_S, Follower
from cloudshift_lab.agent.nodes import SILENCE_S, FollowerStatus, LeadWord, follower_key, lead_key
from cloudshift_lab.agent.protocols import RankError, RanksView
from cloudshift_lab.agent.torchrun import Meeting
from cloudshift_lab.checkpoint.saving import FailedAnswer, Outcome, WrittenAnswer
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.staging import Control, Go
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.log import RunLog

from .conftest import ManualWorld, SwitchableStore, make_job


@dataclass
class Ranks:
    """What a follower needs of its ranks."""

    view: RanksView = field(default_factory=RanksView)
    told: list[str] = field(default_factory=list)
    control: Control = field(default_factory=Control)

    def poll(self) -> RanksView:
        return self.view

    def prepare_again(self, control: Control) -> None:
        self.mirror(control)

    def mirror(self, control: Control) -> None:
        self.control = control

    def launch(self, meeting: Meeting) -> None:
        self.told.append(f"launch at {meeting.port}")
        self.view = RanksView(state="gate")

    def kill(self) -> None:
        self.told.append("kill")
        self.view = RanksView()


@dataclass
class Saver:
    """A saver whose outcomes the test decides."""

    busy: bool = False
    outcome: Outcome | None = None
    told: list[str] = field(default_factory=list)

    def start(self, step: int, incarnation: str, *, standalone: bool = False) -> None:
        self.busy = True
        self.told.append(f"save {step} for {incarnation}")

    def poll(self) -> Outcome | None:
        outcome, self.outcome = self.outcome, None
        self.busy = self.busy and outcome is None
        return outcome

    def abandon(self) -> None:
        self.told.append("abandon")

    def learn(self, manifest_key: str, _manifest_digest: str) -> None:
        self.told.append(f"learn {manifest_key}")

    def close(self) -> None:
        self.told.append("close")


class Around:
    """One follower and the leader's word."""

    def __init__(self) -> None:
        self.world = ManualWorld()
        self.store = SwitchableStore("memory://nodes")
        self.job = make_job(2, placement=Placement("local", "here", "m", nodes=2), node=1)
        self.ranks, self.saver = Ranks(), Saver()
        self.word = LeadWord("lead-a")
        self.follower = Follower(
            self.job, store=self.store, world=self.world,
            ranks=self.ranks, saver=self.saver, prove=self._prove,  # type: ignore[arg-type]
        )  # fmt: skip
        self.asked: list[tuple[int, str, str]] = []
        self.takes_s = 0.0
        self.beats: list[int] = []

    def _prove(self, step: int, key: str, digest: str) -> tuple[str, ...]:
        self.asked.append((step, key, digest))
        for _ in range(int(self.takes_s)):
            self.world.time += 1.0
            self.follower.talk()
            self.beats.append(self.status().beat)
        return ("model/0.weight",)

    def say(self, **changes: object) -> None:
        self.word = msgspec.structs.replace(self.word, beat=self.word.beat + 1, **changes)
        self.store.put(lead_key(self.job.run_id, 2), to_json(self.word))

    def tick(self, times: int = 4) -> FollowerStatus:
        for _ in range(times):
            self.follower.tick()
            self.world.time += 0.25
        return self.status()

    def status(self) -> FollowerStatus:
        """What it has told last."""
        data = self.store.get(follower_key(self.job.run_id, 2, 1))
        return from_json(data, FollowerStatus)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.25) + 1):
            self.follower.tick()
            self.world.time += 0.25

    def up(self, start: int = 1) -> FollowerStatus:
        """Meet a leader that then starts the ranks."""
        self.say()
        self.tick()
        self.say(start=start, is_up=True, address="a", port=7)
        return self.tick()


@pytest.fixture
def around() -> Around:
    return Around()


def test_it_starts_its_ranks_where_and_when_the_leader_says(around: Around) -> None:
    around.say()
    assert around.tick().lead == "lead-a"
    assert set(around.ranks.told) == {"kill"}
    status = around.up()
    assert around.ranks.told[-1] == "launch at 7"
    assert (status.start, status.ranks, status.state) == (1, "gate", "standby")
    around.say(control=Control(go=Go(5), limit=9))
    around.tick()
    assert around.ranks.control == Control(go=Go(5), limit=9)
    around.say(start=2, port=8)
    assert around.tick().start == 2
    assert around.ranks.told[-1] == "launch at 8"


def test_a_start_that_was_begun_without_it_is_not_for_it(around: Around) -> None:
    around.say(start=3, is_up=True, address="a", port=7)
    assert around.tick().start == 0
    assert "launch at 7" not in around.ranks.told
    around.say(start=4, port=8)
    around.tick()
    assert around.ranks.told[-1] == "launch at 8"


def test_another_process_that_leads_is_followed_from_its_next_start_on(around: Around) -> None:
    around.up()
    around.say(lead="lead-b", start=0, is_up=False)
    status = around.tick()
    assert (status.lead, status.start) == ("lead-b", 0)
    assert around.ranks.told[-1] == "kill"


def test_it_ends_with_the_attempt(around: Around) -> None:
    around.up()
    around.say(is_over=True)
    assert around.tick().state == "stopped"
    assert around.follower.finished
    assert around.ranks.told[-1] == "kill"


def test_the_last_word_of_a_leader_that_it_never_followed_is_not_for_it(around: Around) -> None:
    around.say(is_over=True)
    assert around.tick().state == "starting"
    around.say(lead="lead-b", is_over=False)
    assert around.tick().lead == "lead-b"
    around.say(lead="lead-c", is_over=True)
    assert around.tick().state == "starting"
    around.say(lead="lead-b")
    assert around.tick().state == "stopped"


def test_a_leader_that_only_ever_said_its_last_word_is_not_waited_for(around: Around) -> None:
    around.say(is_over=True)
    around.wait(LEAD_PATIENCE_S - 2.0)
    assert not around.follower.finished
    around.wait(3.0)
    assert around.follower.finished


def test_it_ends_when_the_leader_falls_silent(around: Around) -> None:
    around.up()
    around.wait(LEAD_SILENCE_S - 2.0)
    assert not around.follower.finished
    around.say()
    around.wait(LEAD_SILENCE_S - 2.0)
    assert not around.follower.finished
    around.wait(3.0)
    assert around.follower.finished
    assert "fell silent" in str(around.tick().error)


def test_a_store_that_is_away_is_not_the_leaders_silence(around: Around) -> None:
    around.up()
    around.store.is_down = True
    around.wait(3 * LEAD_SILENCE_S)
    around.store.is_down = False
    around.tick()
    assert not around.follower.finished
    assert around.ranks.view.state == "gate"


def test_it_does_not_wait_for_ever_for_a_leader_that_never_comes(around: Around) -> None:
    around.wait(LEAD_PATIENCE_S - 2.0)
    assert not around.follower.finished
    around.wait(3.0)
    assert around.follower.finished


@pytest.mark.parametrize("is_up", [False, True])
def test_it_ends_when_the_log_has_passed_its_generation(around: Around, is_up: bool) -> None:
    if is_up:
        around.up()
    log = RunLog(around.store, around.job.run_id, around.world)
    log.acquire(generation=3, owner="o", nonce="n")
    around.say(start=9, is_up=True, port=9)
    around.wait(6.0)
    assert around.tick().state == "fenced"
    assert around.ranks.told[-1] == "kill"


def test_it_saves_its_share_of_what_the_leader_saves_and_learns_what_was_committed(
    around: Around,
) -> None:
    around.up()
    around.ranks.view = RanksView(state="running", staged_step=10)
    around.tick()
    assert around.saver.told == []
    around.say(save=1, save_step=10)
    around.tick()
    assert around.saver.told == ["save 10 for lead-a.1.1"]
    around.saver.outcome = WrittenAnswer(10, 1, 1, 1)
    around.tick()
    around.say(manifest_key="k", manifest_digest="d")
    around.tick()
    assert around.saver.told == ["save 10 for lead-a.1.1", "learn k"]


def test_a_save_that_failed_is_tried_again_until_another_is_begun(around: Around) -> None:
    around.up()
    around.ranks.view = RanksView(state="running", staged_step=10)
    around.say(save=1, save_step=10)
    around.tick()
    around.saver.outcome = FailedAnswer(10, "Unavailable", "the store is away; again later")
    assert "the store is away; again later" in around.tick(2).warnings
    around.tick(8)
    assert around.saver.told == ["save 10 for lead-a.1.1"] * 2
    around.ranks.view = RanksView(state="drained", staged_step=12, staged_last=True)
    around.say(save=2, save_step=12)
    assert around.tick().staged_last
    assert around.saver.told[2:] == ["abandon"]
    around.saver.outcome = FailedAnswer(10, "Conflict", "step 10 gave way; that one is saved")
    assert "step 10 gave way; that one is saved" not in around.tick(8).warnings
    assert around.saver.told[3:] == ["save 12 for lead-a.1.2"]


def test_it_compares_its_share_with_a_sealed_step_once_that_is_staged(around: Around) -> None:
    around.up()
    around.say(proof=1, proof_step=16, sealed_key="k", sealed_digest="d")
    assert around.tick().proof == 0
    around.ranks.view = RanksView(state="held", staged_step=16, held_step=16)
    status = around.tick()
    assert (status.proof, status.different) == (1, ("model/0.weight",))
    assert around.asked == [(16, "k", "d")]


def test_it_goes_on_beating_while_it_compares_for_long(around: Around) -> None:
    around.up()
    around.ranks.view = RanksView(state="held", staged_step=16, held_step=16)
    before = around.tick().beat
    around.takes_s = 40.0
    around.say(proof=1, proof_step=16, sealed_key="k", sealed_digest="d")
    status = around.tick()
    assert around.beats[-1] >= before + 40.0 / SILENCE_S
    assert status.beat > around.beats[-1]
    assert (status.proof, status.different) == (1, ("model/0.weight",))


def test_it_says_why_its_ranks_failed_and_stays_for_the_next_start(around: Around) -> None:
    around.up()
    around.ranks.view = RanksView(state="failed", error=RankError(1, "ValueError: no", "trace"))
    status = around.tick()
    assert (status.ranks, status.error, status.error_rank) == ("failed", "ValueError: no", 1)
    around.say(start=2, port=8)
    status = around.tick()
    assert (status.ranks, status.error, status.start) == ("gate", None, 2)
