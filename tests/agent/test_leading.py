"""Several nodes as one: what the agent of node 0 sees of ranks that it does not run itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from cloudshift_lab.agent.leading import LAST_WORDS_S, PROOF_S, LedRanks, LedSaver, prove_with
from cloudshift_lab.agent.nodes import FollowerStatus, LeadWord, Seen, lead_key
from cloudshift_lab.agent.nodes import Line as RealLine
from cloudshift_lab.agent.protocols import RankError, RanksView, Restore
from cloudshift_lab.agent.torchrun import Meeting
from cloudshift_lab.checkpoint import Checkpoint, open_checkpoint
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.staging import Control
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.memory import MemoryStore

from .conftest import ManualWorld, SwitchableStore, make_job, save_step


@dataclass
class Local:
    """The ranks of node 0."""

    view: RanksView = field(default_factory=RanksView)
    told: list[str] = field(default_factory=list)
    control: Control = field(default_factory=Control)

    def prepare(self, _restore: Restore | None, *, standby: bool) -> None:
        self.told.append(f"prepare {standby}")

    def prepare_again(self) -> None:
        self.told.append("prepare again")

    def launch(self, _meeting: Meeting) -> None:
        self.told.append("launch")
        self.view = RanksView(state="starting")

    def free_port(self) -> int:
        return 7

    def limit(self, step: int | None) -> None:
        self.control = Control(limit=step)

    def poll(self) -> RanksView:
        return self.view

    def kill(self) -> None:
        self.told.append("kill")
        self.view = RanksView()


@dataclass
class Line:
    """Followers that say what the test makes them say."""

    world: ManualWorld
    word: LeadWord = field(default_factory=lambda: LeadWord("lead-a"))
    seen: list[Seen | None] = field(default_factory=lambda: [None])

    def say(self, **changes: object) -> None:
        self.word = msgspec.structs.replace(self.word, **changes)

    def followers(self) -> list[Seen | None]:
        return self.seen

    def hear(self, agent: str = "one", **fields: object) -> None:
        status = FollowerStatus(
            "run-a", 1, "standby", 1, 0.0, agent=agent, lead="lead-a", **fields,  # type: ignore[arg-type]
        )  # fmt: skip
        self.seen = [Seen(status, self.world.time)]


class Led:
    """Two nodes, of which one is ours."""

    def __init__(self) -> None:
        self.world = ManualWorld()
        self.local, self.line = Local(), Line(self.world)
        self.ranks = LedRanks(self.local, self.line, self.world)  # type: ignore[arg-type]

    def launched(self) -> None:
        self.line.hear()
        self.ranks.start(None, standby=True)
        self.ranks.poll()

    def at(self, ours: RanksView, **theirs: object) -> RanksView:
        """What both are together."""
        self.local.view = ours
        self.line.hear(start=self.line.word.start, **theirs)
        return self.ranks.poll()


@pytest.fixture
def led() -> Led:
    return Led()


def test_ranks_start_when_the_agents_of_all_nodes_are_there(led: Led) -> None:
    led.ranks.start(None, standby=True)
    view = led.ranks.poll()
    assert (view.state, view.nodes_up, led.local.told[-1]) == ("starting", 1, "prepare True")
    led.line.hear()
    assert led.ranks.poll().nodes_up == 2
    assert led.local.told[-1] == "launch"
    assert (led.line.word.start, led.line.word.is_up, led.line.word.port) == (1, True, 7)


@pytest.mark.parametrize(("state", "until"), [("gate", "starting"), ("drained", "running")])
def test_a_state_counts_once_all_nodes_are_in_it(led: Led, state: str, until: str) -> None:
    led.launched()
    ours = RanksView(state=state)  # type: ignore[arg-type]
    assert led.at(ours, ranks="running").state == until
    assert led.at(ours, ranks=state).state == state


def test_a_step_is_staged_once_all_nodes_have_staged_it(led: Led) -> None:
    led.launched()
    ours = RanksView(state="drained", staged_step=20, staged_last=True)
    view = led.at(ours, ranks="drained", staged_step=10)
    assert (view.staged_step, view.staged_last) == (10, False)
    view = led.at(ours, ranks="drained", staged_step=20)
    assert (view.staged_step, view.staged_last) == (20, False)
    view = led.at(ours, ranks="drained", staged_step=20, staged_last=True)
    assert (view.staged_step, view.staged_last) == (20, True)


def test_what_our_ranks_are_told_the_others_hear(led: Led) -> None:
    led.launched()
    led.ranks.limit(9)
    assert led.line.word.control == Control(limit=9)


def test_a_node_replaced_at_the_gate_is_met_anew_by_all(led: Led) -> None:
    led.launched()
    led.at(RanksView(state="gate"), ranks="gate")
    led.line.hear(agent="two", start=0)
    led.ranks.poll()
    assert led.local.told[-2:] == ["prepare again", "launch"]
    assert led.line.word.start == 2


def test_the_cause_of_a_failure_is_told_by_the_node_that_knows_it(led: Led) -> None:
    led.launched()
    lost = RankError(0, "RuntimeError: connection closed by peer")
    ours = RanksView(state="failed", error=lost)
    assert led.at(ours, ranks="running").state != "failed"
    view = led.at(ours, ranks="failed", error="ValueError: no", error_rank=1, traceback="trace")
    assert (view.state, view.nodes_up) == ("failed", 2)
    assert view.error == RankError(1, "ValueError: no", "trace")
    assert led.ranks.poll() == view


def test_a_node_that_says_nothing_more_is_the_cause_when_none_is_told(led: Led) -> None:
    led.launched()
    led.at(RanksView(state="running"), ranks="running")
    lost = RankError(0, "RuntimeError: connection closed by peer")
    led.world.time += 1.0
    led.local.view = RanksView(state="failed", error=lost)
    assert led.ranks.poll().state != "failed"
    led.world.time += LAST_WORDS_S
    view = led.ranks.poll()
    assert (view.state, view.nodes_up) == ("failed", 1)
    assert view.error is not None and view.error.message.startswith("NodesMissing: 1 of 2")


def test_a_replayed_step_is_proved_by_all_nodes(led: Led) -> None:
    def sealed_of() -> Checkpoint:
        store = MemoryStore("memory://sealed")
        saved = save_step(store, "run-a", 16, generation=1)
        return open_checkpoint(store, "run-a", saved.manifest_key, digest=saved.manifest_digest)

    sealed = sealed_of()
    led.launched()
    line: Any = led.line

    def own() -> tuple[str, ...]:
        assert line.word.sealed_key == sealed.manifest_key
        led.at(RanksView(state="held"), ranks="held", proof=1, different=("b",))
        return ("a",)

    told_at: list[float] = []

    def talk() -> None:
        told_at.append(led.world.time)

    assert prove_with(line, sealed, own, led.world, talk=talk) == ("a", "b")
    assert told_at == []
    began = led.world.time
    silent = prove_with(line, sealed, lambda: (), led.world, talk=talk)
    assert silent == ("the share of a node that gave no answer",)
    gaps = [later - at for at, later in pairwise([began, *told_at, led.world.time])]
    assert sum(gaps) >= PROOF_S
    assert max(gaps) <= 1.0


def test_a_new_leaders_word_replaces_that_of_a_dead_one_before_anything_else_is_done() -> None:
    store, world = MemoryStore("memory://led"), ManualWorld()
    job = make_job(placement=Placement("local", "here", "m", nodes=2))
    key = lead_key(job.run_id, job.generation)
    store.put(key, to_json(LeadWord("dead", is_over=True)))
    line = RealLine(store, job, world)
    try:
        word = from_json(store.get(key), LeadWord)
        assert (word.lead, word.is_over) == (line.word.lead, False)
    finally:
        line.close()
    assert from_json(store.get(key), LeadWord).is_over


def test_a_leader_whose_store_is_away_speaks_once_it_is_back() -> None:
    store, world = SwitchableStore("memory://away"), ManualWorld()
    store.is_down = True
    job = make_job(placement=Placement("local", "here", "m", nodes=2))
    line = RealLine(store, job, world)
    store.is_down = False
    line.close()
    word = from_json(store.get(lead_key(job.run_id, job.generation)), LeadWord)
    assert word.lead == line.word.lead


def test_each_save_has_a_name_of_its_own_for_all_nodes() -> None:
    line = Line(ManualWorld())
    started: list[tuple[int, str]] = []

    class Own:
        def start(self, step: int, incarnation: str, *, standalone: bool = False) -> None:
            started.append((step, incarnation))

    saver = LedSaver(Own(), line)  # type: ignore[arg-type]
    saver.start(10)
    saver.start(10)
    assert started == [(10, "lead-a.0.1"), (10, "lead-a.0.2")]
    assert (line.word.save, line.word.save_step) == (2, 10)
