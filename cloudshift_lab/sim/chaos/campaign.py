"""A run that moves to and fro under attack until enough has been killed; judged after each move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.plan import MigrationView
from cloudshift_lab.core.run import RunSpec, RunView
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Saga
from cloudshift_lab.sim.bed import Bed
from cloudshift_lab.sim.bench.migration_rivals import SCRIPT, Rival
from cloudshift_lab.sim.bench.trace import Traced, read
from cloudshift_lab.sim.chaos import proof
from cloudshift_lab.sim.chaos.move import AttackedMove
from cloudshift_lab.sim.chaos.report import Ended, Victim, num_counted
from cloudshift_lab.sim.chaos.schedule import Attack, Schedule
from cloudshift_lab.sim.chaos.victims import Victims
from cloudshift_lab.sim.clouds import AWS_SIM, GCP_SIM, SimClouds
from cloudshift_lab.sim.link import Link
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.logstate import LogState
from cloudshift_lab.storage.store import open_cloud_store

TARGETS = (f"{GCP_SIM}:us-central1", f"{AWS_SIM}:us-east-1")
RANKS, REST_S, SAVE_EVERY = 2, 0.05, 20
SHAPE = (2, 64, 2, 256, 32, 1)
REHEARSED_STEPS = 3
_GROWS_BY = 3
_HEALTHY_LIMIT_S = 240.0
_OWNERS: frozenset[Victim] = frozenset(
    {
        "source agent", "source rank", "source rank 0",
        "target agent", "target rank", "target rank 0",
    }
)  # fmt: skip
_SOURCE_RANKS: frozenset[Victim] = frozenset({"source rank", "source rank 0"})
_AT_TARGET: frozenset[Victim] = frozenset({"target agent", "target rank", "target rank 0"})


class Campaign:
    """One run in one state directory, from its first step to the comparison with its control.

    Args:
        bed: The conductor.
        clouds: Both clouds.
        link: Between them.
        schedule: Draws the attacks.
        folder: For traces.
        world: Clock.
    """

    def __init__(
        self, bed: Bed, clouds: SimClouds, link: Link, *, schedule: Schedule, folder: Path,
        world: World,
    ) -> None:  # fmt: skip
        self._bed = bed
        self._victims = Victims(bed.home, clouds, link)
        self._schedule = schedule
        self._folder = folder
        self._world = world
        self._run_id = ""
        self._revived: set[int] = set()
        self.ended: list[Ended] = []
        self.violations: list[str] = []
        self.split_brains = 0
        self.steps = self.compared = 0

    @property
    def num_kills(self) -> int:
        return sum(num_counted(each.kills) for each in self.ended)

    def run(self, kills: int, say: Callable[[str], None]) -> None:
        """Move until ``kills`` kills and cuts have hit, then compare with the control."""
        env = {
            "MOVING_SHAPE": json.dumps(SHAPE), "MOVING_REST_S": str(REST_S),
            "MOVING_TRACE": str(self._trace), "MOVING_STEPS": str(1 << 30),
        }  # fmt: skip
        spec = RunSpec(
            name="chaos", script=str(SCRIPT), target=TARGETS[0], ranks_per_node=RANKS,
            save_policy=str(SAVE_EVERY), keep="3", env=env,
        )  # fmt: skip
        self._run_id = self._bed.train(spec).run_id
        self._bed.reach(self._run_id, SAVE_EVERY + 5)
        while self.num_kills < kills:
            self._move(self._schedule.draw(kills - self.num_kills))
            last = self.ended[-1]
            hits = ", ".join(f"{k.victim} in {k.phase}" for k in last.kills) or "nothing hit"
            say(f"{self.num_kills}/{kills} {last.move} {last.phase} {last.seconds:.0f} s: {hits}")
        self._bed.stop(self._run_id)
        self._compare(say)

    @property
    def _trace(self) -> Path:
        return self._folder / "trace"

    # -- one move ---------------------------------------------------------------------------------

    def _move(self, attack: Attack) -> None:
        began = self._world.monotonic()
        before = self._healthy()
        to = next(each for each in TARGETS if each != before.placement.target)
        view = self._bed.wait(lambda: self._proposed(to, attack), "a plan")
        self._bed.approve(view, "chaos")
        move = AttackedMove(
            self._bed.home, view.plan, attack.strikes, self._victims, self._world
        )  # fmt: skip
        saga = move.run()
        for strike in move.missed:
            self._schedule.put_back(strike)
        after = self._healthy()
        by_hand = after.generation not in (view.plan.generation, _target_generation(saga))
        hit = {kill.victim for kill in move.kills}
        if hit & _AT_TARGET:
            self._revived.add(_target_generation(saga))
        if hit & _SOURCE_RANKS:
            self._revived.add(before.generation)  # whose agent starts its ranks again
        lost = self._judge(saga, after, is_planned=not (by_hand or hit & _OWNERS))
        self.ended.append(
            Ended(
                move=view.migration_id, source=before.placement.target, target=to,
                closing=saga.closing, phase=saga.phase, kills=tuple(move.kills), by_hand=by_hand,
                lost_steps=lost, seconds=round(self._world.monotonic() - began, 1),
                error=saga.error,
            )
        )  # fmt: skip

    def _proposed(self, to: str, attack: Attack) -> MigrationView:
        return self._bed.client.migrate(
            self._run_id, to, closing=attack.closing, rehearse=REHEARSED_STEPS
        )

    def _healthy(self) -> RunView:
        """The run once it trains on; one whose owner was killed is resumed, as a person would.

        Raises:
            Exhausted: It does not train again; says how it was last.
        """
        first = self._bed.wait(lambda: self._bed.client.run(self._run_id), "the run").step or 0
        trouble = ""

        def trains() -> RunView | None:
            nonlocal trouble
            view = self._bed.client.run(self._run_id)
            if view.state in ("failed", "lost"):
                trouble = self._resume(view)
                return None
            newest = view.step or 0
            grew = newest >= first + _GROWS_BY or newest < first
            is_saved = view.checkpoint_step is not None
            return view if view.state == "running" and grew and is_saved else None

        try:
            return self._bed.wait(trains, "the run to train on", limit_s=_HEALTHY_LIMIT_S)
        except Exhausted as error:
            view = self._bed.client.run(self._run_id)
            raise Exhausted(
                f"{error.message}; it is {view.state} at step {view.step}: "
                f"{view.error or 'no error'}; {trouble or 'it was not resumed'}"
            ) from error

    def _resume(self, view: RunView) -> str:
        """Resume as a person would; why that was refused, empty when it was not."""
        try:
            self._bed.client.resume(self._run_id)
        except CloudshiftError as error:
            return f"resuming the {view.state} run: {error.message}"
        return ""

    # -- judging ----------------------------------------------------------------------------------

    def _judge(self, saga: Saga, after: RunView, *, is_planned: bool) -> int:
        """Look for violations; the steps that were lost."""
        name = saga.plan.migration_id
        states = self._states()
        rows = proof.published(self._bed.client, self._run_id)
        brains = proof.fenced_commits(states) + proof.one_owner(states, after.generation)
        self.split_brains += len(brains)
        found = [*brains, *proof.commits_go_on(states)]
        found += proof.published_twice(rows, states, frozenset(self._revived))
        commits = proof.commits_of(states)
        base = max((c.step or 0 for c in commits if c.generation < after.generation), default=0)
        lost = proof.lost_between(rows, range(saga.plan.generation, after.generation), base)
        if lost and is_planned:
            found.append(f"{lost} steps were lost although their owner lived")
        known = {each.partition(": ")[2] for each in self.violations}
        self.violations += [f"{name}: {each}" for each in found if each not in known]
        return lost

    def _states(self) -> list[LogState]:
        """The run's log in each cloud."""
        clouds = load_clouds(self._bed.home)
        stores = (open_cloud_store(clouds.find(name), inside=True) for name in (GCP_SIM, AWS_SIM))
        return [RunLog(store, self._run_id, self._world).sync() for store in stores]

    def _compare(self, say: Callable[[str], None]) -> None:
        """Every loss, executed or published, against an uninterrupted control."""
        trace = read(self._trace)
        self.steps = max(each.step for each in trace)
        say(f"the uninterrupted control: {self.steps} steps")
        control = {(t.rank, t.step): t.loss for t in self._control(self.steps)}
        rows = proof.published(self._bed.client, self._run_id)
        other = proof.other_traces(trace, control) + proof.other_losses(rows, control)
        self.compared = len(trace) + len(rows) - len(other)
        self.violations += other[:20] + proof.missing_steps(trace, self.steps)

    def _control(self, steps: int) -> tuple[Traced, ...]:
        env = {"MOVING_SHAPE": json.dumps(SHAPE)}
        rival = Rival(self._folder, self._bed.home, GCP_SIM, env, ranks=RANKS)
        return rival.train(steps)


def _target_generation(saga: Saga) -> int:
    """Of the try that counted."""
    return saga.plan.generation + 1 + saga.tries
