"""The people and the policy around a simulated run."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.plan import MissingNodesPolicy, Verdict
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.migration import LOSS_TOLERANCE, Saga, with_digest
from cloudshift_lab.sim.faulty_store import CALM
from cloudshift_lab.sim.fleet import FOREVER_S, TTL_S, NodeFate
from cloudshift_lab.sim.forced import Warner
from cloudshift_lab.sim.people import People, clicks_of
from cloudshift_lab.sim.plans import Wanted, sample_fallback, sample_plan
from cloudshift_lab.sim.scene import (
    CLOUDS,
    PRICE_MICRO_USD_PER_S,
    RUN_ID,
    Move,
    Scene,
    SimJournal,
)
from cloudshift_lab.sim.scheduler import SimWorld, derived_random
from cloudshift_lab.storage.lease import LeaseObserver


class Director:
    """The people and the policy around the run: never hurt, never in a hurry."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = scene.random
        self.world = SimWorld(scene.scheduler, "director")
        self.generation = 1
        self.strictness = derived_random(scene.history.seed, "strictness")

    def body(self) -> None:
        """The whole history."""
        scene = self.scene
        self._submit(self._job(1, CLOUDS[0]))
        scene.tidying.begin(list(scene.stores.values()))
        if not self._wait(lambda: scene.judge.last_step >= 3, 200.0):
            if scene.engine.is_alive(1):
                scene.report("a run starts", "no step within 200 s, and the agent lives")
            scene.scheduler.stop()
            self.world.sleep(0.0)
        self.world.sleep(self.random.random() * 15.0)
        for number in range(self.random.choice([1, 1, 2])):
            if self._is_over():
                break
            self._live_move(number)
        self._end()

    def _live_move(self, number: int) -> None:
        """One proposal, from its plan to its final phase."""
        scene = self.scene
        move = self._propose(number)
        scene.move = move
        draw = self.random.random()
        now = self.world.monotonic()
        if draw < 0.1:
            move.people.abort_at_s = now + self.random.random() * 60.0
        scene.start_conductor()
        if draw < 0.93:
            verdict: Verdict = "reject" if 0.1 <= draw < 0.14 else "approve"
            at_s = self.world.monotonic() + self.random.random() * 20.0
            move.people.clicks = clicks_of(move.plan, verdict, at_s, self.random)
        self._warn(move)
        if self.random.random() < 0.12:
            self._take_over()
        is_final = self._wait(lambda: move.saga is not None and move.saga.is_final, 1_400.0)
        saga = move.saga
        if not is_final or saga is None:
            phase = None if saga is None else (saga.phase, saga.effect, saga.error)
            scene.report("every move ends", f"{move.plan.migration_id} hangs in {phase}")
            return
        self._count(saga)
        self._check_outcome(saga)

    def _warn(self, move: Move) -> None:
        """In some moves a machine is taken away, after a notice that is long enough or not."""
        draw = self.random.random()
        if draw < 0.2:
            warning = Warner(self.scene, move, "source" if draw < 0.15 else "target")
            within_s = self.random.choice([5.0, 30.0, 30.0, 120.0])
            self.scene.scheduler.spawn(
                f"cloud.{move.plan.migration_id}", lambda: warning.body(within_s),
                after_s=self.random.random() * 90.0,
            )  # fmt: skip

    def _count(self, saga: Saga) -> None:
        """What the histories were made of, for the report."""
        history = self.scene.history
        is_partial = saga.partial is not None and saga.is_committed
        history.phases.append("partial" if is_partial else saga.phase)
        seen = {
            f"closed by {saga.closing}": saga.is_committed,
            "replay given up": saga.closing != saga.plan.closing,
            "asked again": bool(saga.earlier),
            "another try": saga.tries > 0,
            "source noticed": saga.rushed,
            "steps lost with a machine": saga.lost_steps > 0,
            "overspent": saga.overspent_micro_usd is not None,
            "two approvals": len(saga.approvals) > 1,
            "near, so copied": saga.apart is not None and saga.is_committed,
            "ranks failed after the handover": saga.is_committed and self._failed_held(saga),
        }
        history.events.update(name for name, happened in seen.items() if happened)
        history.events.update("rehearsed" for entry in saga.timeline if entry.phase == "rehearsing")

    def _failed_held(self, saga: Saga) -> bool:
        """Whether the ranks that had proved the step failed before they were let go on."""
        return self.scene.engine.failed_held(self._heir(saga), self.scene.handed_at_s)

    def _heir(self, saga: Saga) -> int:
        """The generation of the saga's last try."""
        assert self.scene.move is not None
        return self.scene.move.target.generation + saga.tries

    def _check_outcome(self, saga: Saga) -> None:
        """What the saga says must be what the logs say."""
        log = self.scene.judge.log
        handed = any(
            record.kind == "handover" and record.migration_id == saga.plan.migration_id
            for records in log.logs.values()
            for record in records
        )
        if handed != (saga.phase == "source_retired"):
            self.scene.report(
                "the outcome of a move is the log's", f"{saga.phase}, handover in log: {handed}"
            )
        if saga.error_kind == "Mismatch" and saga.phase == "rolled_back" and saga.tolerance:
            drifts = self.scene.engine.drifts(self._heir(saga))
            if "loud" not in drifts:
                self.scene.report("near losses do not undo a move", f"{drifts}: {saga.error}")
        nodes = self._owner_job().placement.nodes
        if handed and saga.partial is not None and nodes != saga.target.nodes:
            self.scene.report("a partial move says what moved", f"{saga.partial}, but {nodes} run")

    def _propose(self, number: int) -> Move:
        scene = self.scene
        owner = self._owner_job()
        here = owner.placement.cloud
        there, third = self._places(here)
        wanted = self._draw_wanted(third)
        now = self.world.now() + scene.skew_s
        target = self._target_job(owner, there, wanted.nodes)
        plan = sample_plan(
            f"mig-{number}", run_id=RUN_ID, source_url=owner.store_url,
            target_url=target.store_url, generation=owner.generation,
            created_at=now, expires_at=now + 60.0, wanted=wanted,
        )  # fmt: skip
        plan = with_digest(
            msgspec.structs.replace(plan, source=owner.placement, target=target.placement)
        )
        scene.jobs[target.generation] = target
        journal = SimJournal(scene.scheduler, scene.mischief)
        people = People(plan, derived_random(scene.history.seed, "people", number))
        return Move(plan, owner, target, journal, people)

    def _places(self, here: str) -> tuple[str, str]:
        """Where a move goes, and where else it might; now and then it stays in its store."""
        others = [cloud for cloud in CLOUDS if cloud != here]
        self.random.shuffle(others)
        return (here, others[0]) if self.random.random() < 0.1 else (others[0], others[1])

    def _draw_wanted(self, third: str) -> Wanted:
        """What is asked of a move: in some nothing but a copy, in others all there is."""
        draw = self.random.random
        if draw() < 0.25:
            return Wanted()
        steps = self.random.choice([0, 1, 1, 3, 5])
        nodes = self.random.choice([1, 1, 1, 3])
        policies: list[MissingNodesPolicy] = ["roll-back", "wait", "shrink", "elsewhere"]
        return Wanted(
            closing="replay" if steps and draw() < 0.8 else "copy",
            rehearsal_steps=steps,
            tolerance=0.0 if self.strictness.random() < 0.2 else LOSS_TOLERANCE,
            missing_nodes=self.random.choice(policies),
            nodes=nodes,
            min_nodes=self.random.randrange(1, nodes + 1),
            fallbacks=(sample_fallback(third, nodes),) if draw() < 0.6 else (),
            limit_micro_usd=round(PRICE_MICRO_USD_PER_S * 10 ** (1 + 2 * draw()))
            if draw() < 0.15
            else 0,
            approvals_needed=2 if draw() < 0.15 else 1,
        )

    def _target_job(self, owner: JobSpec, cloud: str, nodes: int) -> JobSpec:
        """A standby; of several nodes some may come late, never, or die."""
        generation = self._next_generation()
        job = self._job(generation, cloud)
        if self.random.random() < 0.4:
            self.scene.engine.fates[generation] = tuple(self._draw_fate() for _ in range(nodes - 1))
        return msgspec.structs.replace(
            job, standby=True, source_cloud=owner.placement.cloud, source_url=owner.store_url,
            placement=msgspec.structs.replace(job.placement, nodes=nodes),
        )  # fmt: skip

    def _draw_fate(self) -> NodeFate:
        up_s = self.random.choice([0.0, 0.0, 0.0, 40.0, FOREVER_S])
        return NodeFate(up_s, self.random.choice([FOREVER_S, FOREVER_S, FOREVER_S, 20.0, 60.0]))

    def _next_generation(self) -> int:
        """Higher than every attempt so far, and than every try that a move may still begin."""
        known = {*self.scene.jobs, *self.scene.engine.jobs(), self.scene.judge.log.generation}
        return max(known) + (1 if self.scene.move is None else 10)

    def _take_over(self) -> None:
        """An owner sleeps until its lease is over; somebody else takes the run; it wakes."""
        scene = self.scene
        self.world.sleep(self.random.random() * 40.0)
        owner = self._owner_job()
        actor = scene.engine.actor(owner.generation)
        if actor is None or not scene.engine.is_alive(owner.generation) or self._is_over():
            return
        scene.judge.unplanned = True
        scene.scheduler.freeze(actor, 50.0 + self.random.random() * 60.0)
        observer = LeaseObserver(
            scene.open_store(owner.placement.cloud), RUN_ID, owner.generation, self.world, TTL_S
        )
        for _ in range(60):
            self.world.sleep(2.0)
            try:
                if observer.expired():
                    self._restart_here()
                    return
            except CloudshiftError:
                continue

    def _restart_here(self) -> None:
        """A new attempt where the run's log is now, from its last commit."""
        log = self.scene.judge.log
        if log.home_url is None or log.handed_over is not None or log.owner is None:
            return
        cloud = log.home_url.removeprefix("memory://")
        here = [record for url, record in log.commits if url == log.home_url]
        job = msgspec.structs.replace(
            self._job(self._next_generation(), cloud),
            restore_step=here[-1].step if here else None,
        )
        self.scene.scheduler.trace(f"restart as g{job.generation} from {job.restore_step}")
        self._submit(job)

    def _end(self) -> None:
        """Everything becomes calm; then one owner must train on, or the run be over."""
        scene = self.scene
        for store in scene.stores.values():
            store.rates = CALM
        scene.mischief.end()
        has_sleepers = scene.judge.unplanned or scene.mischief.freezes > 0
        self.world.sleep(130.0 if has_sleepers else 25.0)  # whoever sleeps wakes up meanwhile
        self.world.sleep(max(0.0, self._last_deadline_s() - scene.scheduler.clock_s))
        for _ in range(2):
            if self._is_over():
                break
            owner = self._owner_job()
            if scene.engine.is_alive(owner.generation):
                break
            self._restart_here()
            self.world.sleep(40.0)
        self._check_one_runner()
        scene.scheduler.stop()

    def _last_deadline_s(self) -> float:
        """When the last machine goes that was said to."""
        move = self.scene.move
        notices = [] if move is None else move.people.notices
        return max((notice.deadline_s + 1.0 for notice in notices), default=0.0)

    def _check_one_runner(self) -> None:
        scene = self.scene
        runners = self._runners(30.0)
        if self._is_over():
            if runners := self._runners(20.0):
                scene.report("nobody runs after the end", f"{runners}")
            self._check_reason()
            return
        if runners != [scene.judge.log.generation]:
            scene.report(
                "exactly one owner runs at the end",
                f"running {runners}, owner g{scene.judge.log.generation}, "
                f"alive {scene.engine.alive()}",
            )

    def _check_reason(self) -> None:
        """A run ends when all its steps are committed, or when its script failed."""
        script, log = self.scene.script, self.scene.judge.log
        step = log.commits[-1][1].step if log.commits else 0
        engine, handed_at_s = self.scene.engine, self.scene.handed_at_s
        has_failed = script.fail > 0.0 or engine.failed_held(log.generation, handed_at_s)
        has_reason = has_failed or engine.loses_nodes(log.generation)
        if log.commits and log.commits[-1][0] != log.home_url:
            self.scene.report("a run ends where its newest step is", f"step {step}")
        if step != script.total_steps and not has_reason:
            self.scene.report("a run ends for a reason", f"at step {step} of {script.total_steps}")

    def _runners(self, seconds: float) -> list[int]:
        """Generations that execute steps during the next seconds."""
        steps_by = self.scene.judge.steps_by
        before = dict(steps_by)
        self.world.sleep(seconds)
        return [g for g, n in steps_by.items() if n > before.get(g, 0)]

    def _is_over(self) -> bool:
        """The run has ended and was given back."""
        log = self.scene.judge.log
        return bool(log.logs) and log.owner is None and log.handed_over is None

    def _owner_job(self) -> JobSpec:
        generation = self.scene.judge.log.generation
        jobs = {**self.scene.jobs, **self.scene.engine.jobs()}
        return jobs.get(generation) or jobs[max(self.scene.jobs)]

    def _submit(self, job: JobSpec) -> None:
        self.scene.jobs[job.generation] = job
        self.scene.engine.submit(job)

    def _job(self, generation: int, cloud: str) -> JobSpec:
        return JobSpec(
            run_id=RUN_ID, generation=generation, owner=f"owner-{generation}",
            placement=Placement(cloud=cloud, region="r", instance_type="m"),
            store_url=f"memory://{cloud}", script="train.py", home="/", workdir=f"/{generation}",
            save_policy="10", keep="all", seed=0,
        )  # fmt: skip

    def _wait(self, is_true: Callable[[], bool], seconds: float) -> bool:
        until = self.world.monotonic() + seconds
        while self.world.monotonic() < until:
            if is_true():
                return True
            self.world.sleep(2.0)
        return is_true()
