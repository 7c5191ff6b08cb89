"""What a machine hears of its own end: passed on once, in time, and answered when all is saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cloudshift_lab.agent.nodes import FollowerStatus, Seen
from cloudshift_lab.agent.notices import MachineNotices, machine_of, notices_of
from cloudshift_lab.core.errors import Unavailable, UsageError
from cloudshift_lab.core.home import save_clouds
from cloudshift_lab.core.placement import Cloud, Clouds, Notices, Placement
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.engines.notices import Notice
from cloudshift_lab.engines.notices_watch import NoticeWatch
from cloudshift_lab.migration.grace import OUTLIVED_S
from cloudshift_lab.sim.metadata import MetadataServer, Preempt, preempt

from .conftest import Attempt, ManualWorld, SwitchableStore, make_job
from .test_follower import Around

LIMIT_S = 60.0


@dataclass
class Agent:
    """Writes down what it is told."""

    is_begun: bool = True
    told: list[tuple[str, float, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    heeded: set[str] = field(default_factory=set)

    def notice(self, name: str, within_s: float, says: str) -> bool:
        if self.is_begun:
            self.told.append((name, within_s, says))
        return self.is_begun

    def has_heeded(self, name: str) -> bool:
        return name in self.heeded

    def note(self, topic: str, message: str) -> None:
        self.notes.append((topic, message))


@dataclass
class Service:
    """A dialect whose words the test decides."""

    said: list[Notice] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    is_away: bool = False
    every_s: float = 0.01

    def look(self) -> tuple[Notice, ...]:
        if self.is_away:
            raise Unavailable("nobody answers; look again")
        return tuple(self.said)

    def acknowledge(self, notice: Notice) -> None:
        self.answered.append(notice.notice_id)

    def close(self) -> None:
        """Nothing waits."""


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def listening(service: Service) -> Iterator[MachineNotices]:
    notices = MachineNotices({}, NoticeWatch(service, again_s=0.01), REAL_WORLD)
    notices.start()
    yield notices
    notices.close()


def tick_until(notices: MachineNotices, agent: Agent, found: object) -> None:
    until = time.monotonic() + LIMIT_S
    while not found():  # type: ignore[operator]
        assert time.monotonic() < until
        notices.tick(agent)
        time.sleep(0.005)


def goes(left_s: float | None = 30.0, notice_id: str = "n-1", *, simulated: bool = False) -> Notice:
    return Notice(notice_id, time.monotonic(), left_s, "Acme takes it", simulated)


# -- from a service --------------------------------------------------------------------------------


def test_a_notice_reaches_the_agent_once_with_the_seconds_that_are_left(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.said = [goes(30.0)]
    tick_until(listening, agent, lambda: agent.told)
    time.sleep(0.1)
    listening.tick(agent)
    ((name, within_s, says),) = agent.told
    assert (name, says) == ("n-1", "Acme takes it")
    assert 0.0 < within_s <= 30.0


def test_what_an_emulator_says_is_called_simulated(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.said = [goes(simulated=True)]
    tick_until(listening, agent, lambda: agent.told)
    assert agent.told[0][2] == "Acme takes it (SIMULATED)"


def test_an_agent_that_has_not_begun_is_told_later_with_fewer_seconds(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    agent.is_begun = False
    service.said = [heard_before(goes(30.0), 10.0)]
    deadline = time.monotonic() + 0.2
    tick_until(listening, agent, lambda: time.monotonic() > deadline)
    agent.is_begun = True
    tick_until(listening, agent, lambda: agent.told)
    assert len(agent.told) == 1
    assert agent.told[0][1] < 20.0


def heard_before(notice: Notice, ago_s: float) -> Notice:
    return Notice(notice.notice_id, notice.heard_at - ago_s, notice.left_s, notice.says)


def test_a_hint_is_a_warning_and_no_notice(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.said = [goes(None)]
    tick_until(listening, agent, lambda: agent.notes)
    assert agent.told == []
    assert agent.notes == [("hint", f"Acme takes it; {THINK}")]


THINK = "think of a move: cloudshift migrate RUN --to CLOUD"


def test_a_service_that_is_away_is_said_once(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.is_away = True
    tick_until(listening, agent, lambda: agent.notes)
    time.sleep(0.1)
    listening.tick(agent)
    assert agent.notes == [("metadata", "nobody answers; look again")]


def test_the_provider_is_answered_once_and_not_before_all_is_saved(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.said = [goes()]
    tick_until(listening, agent, lambda: agent.told)
    listening.tick(agent)
    time.sleep(0.1)  # long enough to be answered
    assert service.answered == []
    agent.heeded.add("n-1")
    tick_until(listening, agent, lambda: service.answered)
    time.sleep(0.05)
    listening.tick(agent)
    assert service.answered == ["n-1"]


def test_a_process_whose_machine_goes_does_not_leave_by_itself(
    service: Service, listening: MachineNotices, agent: Agent
) -> None:
    service.said = [goes()]
    tick_until(listening, agent, lambda: agent.told)
    agent.heeded.add("n-1")
    listening.tick(agent)
    assert not listening.may_leave(agent)


# -- by a signal -----------------------------------------------------------------------------------


def test_a_signal_with_grace_is_a_notice_and_then_the_process_may_leave(agent: Agent) -> None:
    world = ManualWorld()
    notices = MachineNotices({"SIGTERM": 30.0}, None, world)
    assert notices.signals == (signal.SIGTERM,)
    assert notices.signalled(signal.SIGTERM)
    world.time += 1.0
    notices.tick(agent)
    assert agent.told == [("signal-SIGTERM", 29.0, "SIGTERM was sent to this machine")]
    assert not notices.may_leave(agent)
    agent.heeded.add("signal-SIGTERM")
    assert notices.may_leave(agent)


def test_the_same_signal_again_is_the_same_notice(agent: Agent) -> None:
    notices = MachineNotices({"SIGTERM": 30.0}, None, ManualWorld())
    for _ in range(3):
        notices.signalled(signal.SIGTERM)
        notices.tick(agent)
    assert len(agent.told) == 1


def test_a_signal_that_is_no_notice_here_keeps_its_meaning(agent: Agent) -> None:
    notices = MachineNotices({"SIGUSR1": 120.0}, None, ManualWorld())
    assert not notices.signalled(signal.SIGTERM)
    notices.tick(agent)
    assert agent.told == []


@pytest.mark.parametrize(("ends_in_s", "left_s"), [(90.0, 90.0), (5000.0, 120.0), (-5.0, 120.0)])
def test_a_jobs_time_limit_counts_when_it_comes_before_the_signals_seconds(
    agent: Agent, ends_in_s: float, left_s: float
) -> None:
    world = ManualWorld()
    notices = MachineNotices({"SIGUSR1": 120.0}, None, world, ends_at=world.time + ends_in_s)
    notices.signalled(signal.SIGUSR1)
    notices.tick(agent)
    assert agent.told[0][1] == left_s


@pytest.mark.parametrize("name", ["SIGKILL", "SIGNONE", "TERM"])
def test_a_signal_that_cannot_be_heard_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        MachineNotices({name: 30.0}, None, ManualWorld())


# -- from other nodes ------------------------------------------------------------------------------


def follower(until: float | None, *, at: float = 5_000.0) -> FollowerStatus:
    return FollowerStatus(
        run_id="run-a", generation=1, state="running", beat=1, at=at, notice_until=until,
        notice_from="Acme takes it",
    )  # fmt: skip


def test_what_a_follower_hears_concerns_the_run_whatever_its_clock_says(agent: Agent) -> None:
    world = ManualWorld()
    seen: list[Seen | None] = [None, Seen(follower(5_030.0), world.time - 2.0)]
    notices = MachineNotices({}, None, world, followers=lambda: seen)
    for _ in range(2):
        notices.tick(agent)
    seen[1] = Seen(follower(5_030.0, at=5_004.0), world.time)
    notices.tick(agent)
    assert agent.told == [("node-2-5030", 28.0, "node 2: Acme takes it")]


def test_a_follower_tells_its_leader_and_forgets_it_when_it_was_spared() -> None:
    around = Around()
    around.tick()
    assert around.follower.notice("n-1", 30.0, "Acme takes it")
    assert around.follower.notice("n-2", 60.0, "somebody else")
    status = around.tick(1)
    assert status.notice_until == pytest.approx(around.world.time + 30.0, abs=1.0)
    assert status.notice_from == "Acme takes it"
    for _ in range(40):
        around.say()
        around.world.time += 1.5
        around.tick(1)
    assert around.status().notice_until is None


# -- at the agent itself ---------------------------------------------------------------------------


def test_an_agent_drains_on_what_its_machine_heard_and_says_who_said_so(source: Attempt) -> None:
    assert not source.agent.notice("n-1", 60.0, "Acme takes it"), "it has not begun"
    source.tick()
    source.run_to(12)
    assert source.agent.notice("n-1", 60.0, "Acme takes it")
    status = source.tick()
    assert source.ranks.told[-1] == "drain"
    assert status.notice_from == "Acme takes it"
    assert not source.agent.has_heeded("n-1")
    source.drain_to(13)
    assert source.tick().state == "drained"
    assert source.agent.has_heeded("n-1")
    assert source.log.sync().commits[-1].step == 13


def test_an_agent_that_leaves_keeps_the_run_and_says_that_it_is_drained(source: Attempt) -> None:
    source.tick()
    source.run_to(12)
    source.agent.notice("n-1", 60.0, "SIGTERM")
    source.tick()
    source.drain_to(13)
    source.tick()
    source.agent.leave()
    status = source.tick()
    assert source.agent.finished
    assert status.state == "drained"
    assert status.notice_until is not None
    assert source.log.sync().owner == source.job.owner


@pytest.mark.parametrize(("nodes_up", "told"), [(1, "drain"), (2, "start from 13")])
def test_a_run_goes_on_when_all_of_its_machines_were_spared(
    world: ManualWorld, nodes_up: int, told: str
) -> None:
    job = make_job(placement=Placement("local", "here", "m", nodes=2))
    source = Attempt(world, SwitchableStore("memory://spared"), job)
    source.tick()
    source.run_to(12)
    source.agent.notice("node-1-5030", 60.0, "node 1: Acme takes it")
    source.tick()
    source.drain_to(13)
    source.ranks.view = replace(source.ranks.view, nodes_up=nodes_up)
    source.tick()
    world.time += 60.0 + OUTLIVED_S
    source.tick()
    assert source.ranks.told[-1] == told


# -- as the cloud's settings say -------------------------------------------------------------------


def test_nobody_listens_where_the_cloud_does_not_say_so(tmp_path: Path) -> None:
    save_clouds(tmp_path, Clouds((Cloud("aws-sim", "a", store_url="memory://"),)))
    job = make_job(home=str(tmp_path))
    notices = notices_of(job, {"GCE_METADATA_HOST": "127.0.0.1:1"}, REAL_WORLD)
    assert notices.signals == ()
    assert notices._watch is None


def test_each_machine_of_an_emulator_has_its_own_address(tmp_path: Path, agent: Agent) -> None:
    job = make_job(home=str(tmp_path))
    with MetadataServer() as server:
        settings = Notices("azure", f"{server.url}/machine/{{machine}}", every_s=0.01)
        cloud = Cloud(job.placement.cloud, "x", store_url="memory://", notices=settings)
        save_clouds(tmp_path, Clouds((cloud,)))
        notices = notices_of(job, {}, REAL_WORLD)
        notices.start()
        try:
            tick_until(notices, agent, lambda: server.machines.state().machines)
            assert server.machines.state().machines == (machine_of(job),)
            preempt(server.port, Preempt(in_s=60.0, machine=job.run_id))
            tick_until(notices, agent, lambda: agent.told)
        finally:
            notices.close()
    assert "SIMULATED" in agent.told[0][2]
