"""A simulated engine: each attempt is an actor that runs the production ``NodeAgent``.

The machines of an attempt can be taken away, and of several some may never come up, or die.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloudshift_lab.agent.node import NodeAgent
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.engines.engine import Handle, Observation
from cloudshift_lab.sim.mischief import Mischief, MischiefRates
from cloudshift_lab.sim.ranks import Drift, Executed, Script, SimRanks, SimSaver
from cloudshift_lab.sim.scheduler import Actor, Scheduler, SimWorld, derived_random
from cloudshift_lab.storage.store import Store

TICK_S = 1.0
TTL_S = 30.0
FOREVER_S = 1e9
_SAVER_RATES = MischiefRates(crash=0.0, freeze=0.01, freeze_s=30.0, calm_at_s=150.0)


@dataclass
class Process:
    """One life of an attempt's agent with its ranks and its saver."""

    job: JobSpec
    ranks: SimRanks
    saver: SimSaver
    actor: Actor | None = None
    stop_asked: bool = False
    lost: bool = False
    ended_at_s: float | None = None
    agent: NodeAgent | None = field(default=None)


@dataclass(frozen=True)
class NodeFate:
    """When one node of an attempt is there, virtual seconds after the attempt's start."""

    up_s: float = 0.0
    down_s: float = FOREVER_S


class SimEngine:
    """An ``engines.Engine`` whose machines are actors.

    Args:
        scheduler: Clock and baton.
        open_store: Opens a cloud's store by its name.
        mischief: Crashes and freezes agents.
        rates: How often.
        script: What the ranks do.
        executed: Told every step of every attempt.
        rehearsed: Told every step that an attempt repeats before the run is its own.
        lost: Told the generation of every agent that dies without a last word.
    """

    agent_type: type[NodeAgent] = NodeAgent
    saver_type: type[SimSaver] = SimSaver

    def __init__(
        self,
        scheduler: Scheduler,
        open_store: Callable[[str], Store],
        *,
        mischief: Mischief,
        rates: MischiefRates,
        script: Script,
        executed: Executed,
        rehearsed: Executed,
        lost: Callable[[int], None],
    ) -> None:
        self._lost = lost
        self._scheduler = scheduler
        self._open_store = open_store
        self._mischief = mischief
        self._rates = rates
        self._script = script
        self._executed = executed
        self._rehearsed = rehearsed
        self._random = derived_random(scheduler.seed, "engine")
        self._lives: dict[int, list[Process]] = {}
        self._begun_at_s: dict[int, float] = {}
        self._over_at_s: dict[int, float] = {}
        self.fates: dict[int, tuple[NodeFate, ...]] = {}
        self.taken: set[int] = set()

    def submit(self, job: JobSpec) -> Handle:
        self._yield("submit")
        if not self._lives.get(job.generation):
            self._start(job)
        self._yield("submitted")
        return _handle(job)

    def revive(self, job: JobSpec) -> Handle:
        self._yield("revive")
        if not self.is_alive(job.generation):
            self._start(job)
        return _handle(job)

    def find(self, run_id: str, generation: int) -> Handle | None:
        del run_id  # an engine of one run
        lives = self._lives.get(generation)
        return _handle(lives[-1].job) if lives else None

    def observe(self, handle: Handle) -> Observation:
        process = self._lives[handle.generation][-1]
        if process.lost:
            return Observation("lost")
        if process.actor is not None and process.actor.done:
            return Observation("exited", 0)
        return Observation("running")

    def stop(self, handle: Handle, grace_s: float) -> Observation:
        process = self._lives[handle.generation][-1]
        process.stop_asked = grace_s > 0
        self._yield("stop")
        until_s = self._scheduler.clock_s + grace_s
        while self.is_alive(handle.generation) and self._scheduler.clock_s < until_s:
            self._scheduler.pause(1.0)
        if self.is_alive(handle.generation):
            self.lose(handle.generation, after_s=0.0)
        return self.observe(handle)

    def logs(self, handle: Handle, rank: int | None = None, tail: int = 200) -> str:
        return f"attempt {handle.generation}, rank {rank}, last {tail} lines: nothing"

    def is_alive(self, generation: int) -> bool:
        """Whether the attempt's newest agent process exists."""
        lives = self._lives.get(generation)
        if not lives:
            return False
        process = lives[-1]
        return not process.lost and process.actor is not None and not process.actor.done

    def alive(self) -> list[int]:
        """Generations whose agent process exists."""
        return [generation for generation in self._lives if self.is_alive(generation)]

    def ended_for_s(self, generation: int) -> float:
        """How long ago the attempt's newest agent ended by itself; 0 when it did not."""
        lives = self._lives.get(generation)
        ended_at_s = lives[-1].ended_at_s if lives else None
        return 0.0 if ended_at_s is None else self._scheduler.clock_s - ended_at_s

    def actor(self, generation: int) -> Actor | None:
        """The newest agent of an attempt."""
        lives = self._lives.get(generation)
        return lives[-1].actor if lives else None

    def ranks(self, generation: int) -> SimRanks | None:
        """The newest ranks of an attempt."""
        lives = self._lives.get(generation)
        return lives[-1].ranks if lives else None

    def drifts(self, generation: int) -> set[Drift]:
        """How what an attempt repeated differed from its source, in all its lives."""
        return {drift for life in self._lives.get(generation, []) for drift in life.ranks.drifted}

    def failed_held(self, generation: int, since_s: float) -> bool:
        """Whether ranks of an attempt failed while they held, at or after that virtual second."""
        found = (life.ranks.failed_held_at_s for life in self._lives.get(generation, []))
        return any(at_s is not None and at_s >= since_s for at_s in found)

    def jobs(self) -> dict[int, JobSpec]:
        """Every attempt that was ever started, by its generation."""
        return {generation: lives[-1].job for generation, lives in self._lives.items()}

    def generation_of(self, owner: str) -> int:
        """The generation of the attempt that calls itself so; 0 when it was never started."""
        found = (g for g, job in self.jobs().items() if job.owner == owner)
        return next(found, 0)

    def paid_s(self, generation: int) -> float:
        """How long the attempt's machines have been paid for, seconds."""
        begun_at_s = self._begun_at_s.get(generation)
        if begun_at_s is None:
            return 0.0
        until_s = self._scheduler.clock_s
        if not self.is_alive(generation):
            until_s = self._over_at_s.get(generation, until_s)
        return until_s - begun_at_s

    def loses_nodes(self, generation: int) -> bool:
        """Whether some of the attempt's nodes die sooner or later."""
        return any(fate.down_s < FOREVER_S for fate in self.fates.get(generation, ()))

    def take_away(self, generation: int) -> None:
        """The machines of an attempt are gone, with everything that ran there."""
        self.taken.add(generation)
        if self.is_alive(generation):
            self.lose(generation, after_s=0.0)

    def lose(self, generation: int, *, after_s: float) -> None:
        """Kill an agent; its ranks and its saver follow it ``after_s`` seconds later."""
        process = self._lives[generation][-1]
        process.lost = True
        self._over_at_s[generation] = self._scheduler.clock_s
        self._lost(generation)
        if process.actor is not None:
            self._scheduler.crash(process.actor)
        self._scheduler.call_later(after_s, process.ranks.kill)
        self._scheduler.call_later(after_s, process.saver.close)

    def _start(self, job: JobSpec) -> None:
        lives = self._lives.setdefault(job.generation, [])
        store = self._open_store(job.placement.cloud)
        ranks = SimRanks(
            self._scheduler, job, store, self._script,
            executed=self._executed, rehearsed=self._rehearsed,
            nodes_up=lambda: self._nodes_up(job),
        )  # fmt: skip
        self._begun_at_s.setdefault(job.generation, self._scheduler.clock_s)
        saver = self.saver_type(self._scheduler, job, store, ranks)
        saver.spawned = self._let_sleep
        process = Process(job, ranks, saver)
        name = f"agent-g{job.generation}.{len(lives) + 1}"
        lives.append(process)
        process.actor = self._scheduler.spawn(name, lambda: self._live(process, name))
        self._mischief.watch_over(
            process.actor,
            lambda: self.lose(job.generation, after_s=self._random.random() * 5.0),
            self._rates,
        )

    def _let_sleep(self, saver: Actor) -> None:
        """A saver may stop for a while at any line, and commit what it saved all the later."""
        self._mischief.watch_over(saver, lambda: None, _SAVER_RATES)

    def _live(self, process: Process, name: str) -> None:
        job = process.job
        source = None if job.source_cloud is None else self._open_store(job.source_cloud)
        world = SimWorld(self._scheduler, name, wall_error_s=self._draw_skew_s())
        store = self._open_store(job.placement.cloud)
        agent = self.agent_type(
            job, store=store, source_store=source, world=world, ranks=process.ranks,
            saver=process.saver, prove=process.ranks.differing, ttl_s=TTL_S,
        )  # fmt: skip
        process.agent = agent
        while not agent.finished:
            if process.stop_asked:
                process.stop_asked = False
                agent.stop()
            agent.tick()
            world.sleep(TICK_S)
        process.ended_at_s = self._over_at_s[job.generation] = self._scheduler.clock_s

    def _draw_skew_s(self) -> float:
        """Most clocks are a little wrong, some by minutes."""
        most_s = 240.0 if self._random.random() < 0.1 else 4.0
        return most_s * (self._random.random() - 0.5)

    def _nodes_up(self, job: JobSpec) -> int:
        """A shrunk attempt has the nodes that were there; otherwise each has its fate."""
        begun_s = self._scheduler.clock_s - self._begun_at_s[job.generation]
        fates = self.fates.get(job.generation, ())
        missing = sum(1 for fate in fates if not fate.up_s <= begun_s < fate.down_s)
        return max(1, job.placement.nodes - missing)

    def _yield(self, operation: str) -> None:
        """Asking an engine takes time, in which the asker can die."""
        self._mischief.yielded(operation)
        self._scheduler.pause(0.1)


def _handle(job: JobSpec) -> Handle:
    return Handle(job.run_id, job.generation, job.generation, "0", job.workdir)
