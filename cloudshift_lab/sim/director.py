"""The people and the policy around a simulated run."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.migration import Saga
from cloudshift_lab.sim.faulty_store import CALM
from cloudshift_lab.sim.fleet import TTL_S
from cloudshift_lab.sim.plans import sample_plan
from cloudshift_lab.sim.scene import CLOUDS, RUN_ID, Move, Scene, SimJournal
from cloudshift_lab.sim.scheduler import SimWorld
from cloudshift_lab.storage.lease import LeaseObserver


class Director:
    """The people and the policy around the run: never hurt, never in a hurry."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.random = scene.random
        self.world = SimWorld(scene.scheduler, "director")
        self.generation = 1

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
        if draw < 0.1:
            move.abort_at = self.world.monotonic() + self.random.random() * 60.0
        scene.start_conductor()
        if draw < 0.93:
            move.verdict = "reject" if 0.1 <= draw < 0.14 else "approve"
            move.click_at = self.world.monotonic() + self.random.random() * 20.0
        if self.random.random() < 0.15:
            self._take_over()
        is_final = self._wait(lambda: move.saga is not None and move.saga.is_final, 900.0)
        saga = move.saga
        if not is_final or saga is None:
            phase = None if saga is None else (saga.phase, saga.effect, saga.error)
            scene.report("every move ends", f"{move.plan.migration_id} hangs in {phase}")
            return
        scene.history.phases.append(saga.phase)
        self._check_outcome(saga)

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

    def _propose(self, number: int) -> Move:
        scene = self.scene
        owner = self._owner_job()
        here = owner.placement.cloud
        there = here if self.random.random() < 0.1 else next(c for c in CLOUDS if c != here)
        now = self.world.now()
        plan = sample_plan(
            f"mig-{number}", run_id=RUN_ID, source_url=owner.store_url,
            target_url=f"memory://{there}", generation=owner.generation,
            created_at=now, expires_at=now + 60.0,
        )  # fmt: skip
        target = msgspec.structs.replace(
            self._job(max(scene.jobs) + 1, there), standby=True, source_cloud=here,
            source_url=owner.store_url,
        )  # fmt: skip
        scene.jobs[target.generation] = target
        return Move(plan, owner, target, SimJournal(scene.scheduler, scene.mischief))

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
            self._job(max(max(self.scene.jobs), log.generation) + 1, cloud),
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
        if step != script.total_steps and script.fail == 0.0:
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
        return self.scene.jobs.get(generation) or self.scene.jobs[max(self.scene.jobs)]

    def _submit(self, job: JobSpec) -> None:
        self.scene.jobs[job.generation] = job
        self.scene.engine.submit(job)

    def _job(self, generation: int, cloud: str) -> JobSpec:
        return JobSpec(
            run_id=RUN_ID, generation=generation, owner=f"owner-{generation}",
            placement=Placement(cloud=cloud, region="r", instance_type="m"),
            store_url=f"memory://{cloud}", script="train.py", home="/", workdir="/",
            save_policy="10", keep="all", seed=0,
        )  # fmt: skip

    def _wait(self, is_true: Callable[[], bool], seconds: float) -> bool:
        until = self.world.monotonic() + seconds
        while self.world.monotonic() < until:
            if is_true():
                return True
            self.world.sleep(2.0)
        return is_true()
