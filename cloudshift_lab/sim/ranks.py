"""Simulated ranks and saver: steps take virtual time, state is tiny, stores are the real code's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloudshift_lab.agent.protocols import (
    RankError,
    RanksState,
    RanksView,
    Restore,
    Saved,
    SaveFailed,
)
from cloudshift_lab.checkpoint import Checkpoint, KnownChunks, open_checkpoint, seal, write_rank
from cloudshift_lab.checkpoint.fingerprint import differing
from cloudshift_lab.checkpoint.gc import tombstoned
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Unavailable
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.save_policy import fixed_steps
from cloudshift_lab.sim import model
from cloudshift_lab.sim.scheduler import EPOCH_S, Actor, Scheduler, derived_random
from cloudshift_lab.storage.store import Store

Executed = Callable[[JobSpec, int, model.Weights], None]
Drift = Literal["silent", "loud", "close"]
_CLOSE = 1e-5


@dataclass(frozen=True)
class Script:
    """What the simulated training script does. Times in virtual seconds.

    ``slow`` is the probability of a step that takes about ``slow_s`` (an evaluation),
    ``slow_first`` that of the first step after a start (compilation), ``fail`` that of
    a start whose ranks raise an error sooner or later, ``fail_held`` of one whose ranks do so
    within seconds after they have staged the step that they hold at: about when it is handed over.
    ``drift`` is the probability that a rehearsal computes something else than the source did: with
    another loss, with the same, or with one that is only near. Steps are repeated at the source's
    speed, or up to six times as fast.
    """

    total_steps: int = 1_000_000
    step_s: float = 1.0
    boot_s: float = 3.0
    slow: float = 0.05
    slow_first: float = 0.3
    fail: float = 0.0
    fail_held: float = 0.0
    slow_s: float = 12.0
    drift: float = 0.0
    tells_loss: bool = True


@dataclass(frozen=True)
class _Stage:
    step: int
    weights: model.Weights


class SimRanks:
    """All ranks of one node as one actor per start. A ``RanksProtocol``.

    Args:
        scheduler: Clock and baton.
        job: Whose ranks.
        store: Where restored state is read from.
        script: How the training goes.
        executed: Told every step of the run in the moment it ends.
        rehearsed: Told every step that was done below a limit, which the run has done before.
        nodes_up: How many of the attempt's nodes are there.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        job: JobSpec,
        store: Store,
        script: Script,
        *,
        executed: Executed,
        rehearsed: Executed,
        nodes_up: Callable[[], int],
    ) -> None:
        self._scheduler = scheduler
        self._job = job
        self._store = store
        self._script = script
        self._executed = executed
        self._rehearsed = rehearsed
        self._nodes_up = nodes_up
        self._random = derived_random(scheduler.seed, "ranks", job.generation)
        self._chance = derived_random(scheduler.seed, "chance", job.generation)
        self.drifted: set[Drift] = set()
        self.failed_held_at_s: float | None = None
        self._every = fixed_steps(job.save_policy)
        self._actor: Actor | None = None
        self._starts = 0
        self._forget()

    def _forget(self) -> None:
        self._state: RanksState = "absent"
        self._gate: Restore | None = None
        self._drain = False
        self._is_wanted = False
        self._limit: int | None = None
        self._losses: list[tuple[int, float]] = []
        self._step: int | None = None
        self._loss: float | None = None
        self._drifts: Drift | None = None
        self._held_until_s: float | None = None
        self._speed = 1.0
        self._first_step_at: float | None = None
        self._last_step_at: float | None = None
        self._last_staged = False
        self._num_steps = 0
        self._error: RankError | None = None
        self._fails_at: int | None = None
        self.staged: dict[int, _Stage] = {}

    def start(self, restore: Restore | None, *, standby: bool) -> None:
        self.kill()
        self._forget()
        self._state = "starting"
        self._starts += 1
        name = f"ranks-g{self._job.generation}.{self._starts}"
        self._actor = self._scheduler.spawn(name, lambda: self._live(restore, standby=standby))

    def restart(self) -> None:
        staged = self.staged
        self.start(None, standby=True)
        self.staged = staged

    def go(self, restore: Restore | None, limit: int | None = None) -> None:
        self._gate, self._limit = restore, limit

    def limit(self, step: int | None) -> None:
        self._limit = step

    def request_drain(self) -> None:
        self._drain = True

    def capture(self) -> None:
        self._is_wanted = True

    def release(self, step: int) -> None:
        self.staged = {
            s: stage for s, stage in self.staged.items() if s > step or s == self._newest()
        }

    def poll(self) -> RanksView:
        nodes_up = self._nodes_up()
        is_whole = nodes_up >= self._job.placement.nodes
        if not is_whole and self._state in ("running", "held"):
            self.kill()
            self._fail(f"only {nodes_up} of {self._job.placement.nodes} nodes are left")
        return RanksView(
            state=self._state if is_whole or self._state != "gate" else "starting",
            nodes_up=nodes_up,
            step=self._step,
            loss=self._loss,
            first_step_at=self._first_step_at,
            last_step_at=self._last_step_at,
            staged_step=self._newest(),
            staged_last=self._last_staged,
            state_bytes=640,
            num_steps=self._num_steps,
            steps_s=self._num_steps * self._script.step_s,
            step_s=self._script.step_s if self._num_steps else None,
            held_step=self._step if self._state == "held" else None,
            losses=tuple(self._losses),
            error=self._error,
        )

    def kill(self) -> None:
        if self._actor is not None:
            self._scheduler.crash(self._actor)

    def differing(self, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        """What of a staged step is not the sealed one, by the production comparison."""
        weights = self.staged[step].weights
        return differing(
            [model.stage(weights, step, rank) for rank in range(model.WORLD_SIZE)], sealed
        )

    def holds(self, step: int) -> model.Weights | None:
        """The weights after a step that these ranks hold at, or held at until they failed."""
        staged, has_failed = self.staged.get(step), self.failed_held_at_s is not None
        is_there = has_failed or self._state == "held"
        return staged.weights if staged is not None and is_there else None

    def _newest(self) -> int | None:
        return max(self.staged, default=None)

    def _pause(self, seconds: float) -> None:
        self._scheduler.pause(seconds * (0.5 + self._random.random()))

    def _live(self, restore: Restore | None, *, standby: bool) -> None:
        fails = self._random.random() < self._script.fail
        self._fails_at = self._random.randrange(30) if fails else None
        self._pause(self._script.boot_s)
        if self._fails_at == 0:
            self._fail("cannot build the model")
            return
        if standby:
            restore = self._wait_at_gate()
            if restore is None:
                self._fail("ran out of memory at the gate")
                return
        try:
            step, weights = self._restore(restore)
        except CloudshiftError as error:
            self._fail(f"cannot restore: {error.message}")
            return
        self._state = "running"
        self._train(step, weights)

    def _fail(self, message: str) -> None:
        self._error = RankError(1, message, "Traceback: ...")
        self._state = "failed"

    def _wait_at_gate(self) -> Restore | None:
        """The step to restore; None when the ranks fail while they wait."""
        self._state = "gate"
        while self._gate is None:
            self._scheduler.pause(0.5)
            if self._fails_at is not None and self._random.random() < 0.03:
                return None
        self._state = "starting"
        return self._gate

    def _restore(self, restore: Restore | None) -> tuple[int, model.Weights]:
        """Read the state through the production reader, trying again while the store is away."""
        if restore is None:
            return 0, model.first_weights()
        patience = 100
        while True:
            try:
                checkpoint = open_checkpoint(
                    self._store, self._job.run_id, restore.manifest_key,
                    digest=restore.manifest_digest, concurrency=1,
                )  # fmt: skip
                return model.read_weights(checkpoint)
            except CloudshiftError as error:
                patience -= 1 if isinstance(error, Unavailable) else 20
                if patience <= 0:
                    raise
                self._pause(1.0)

    def _train(self, step: int, weights: model.Weights) -> None:
        self._step = step
        self._drifts = self._draw_drift()
        self._speed = self._random.choice([1.0, 3.0, 6.0])
        self._hold(step, weights)
        while not self._drain and self._error is None and step < self._script.total_steps:
            is_rehearsed = self._limit is not None
            self._pause(self._draw_step_s() / (self._speed if is_rehearsed else 1.0))
            if self._fails_at is not None and step >= self._fails_at:
                self._fail(f"the script raised in step {step}")
                return
            step += 1
            self._num_steps += 1
            weights = self._compute(weights, step)
            self._step = step
            if is_rehearsed:
                self._rehearsed(self._job, step, weights)
            else:
                self._count(step, weights)
            self._hold(step, weights)
        if self._error is not None:
            return
        self._pause(0.2)
        self.staged[step] = _Stage(step, weights)
        self._last_staged = True
        self._state = "finished" if step >= self._script.total_steps else "drained"

    def _draw_step_s(self) -> float:
        is_first = self._first_step_at is None
        slow = self._script.slow_first if is_first else self._script.slow
        return self._script.slow_s if self._random.random() < slow else self._script.step_s

    def _draw_drift(self) -> Drift | None:
        """How this rehearsal differs from the source; a run's own steps never do."""
        if self._limit is None or self._random.random() >= self._script.drift:
            return None
        found: Drift = self._random.choice(["silent", "loud"])
        drift: Drift = "close" if self._chance.random() < 0.4 else found
        self.drifted.add(drift)
        return drift

    def _compute(self, weights: model.Weights, step: int) -> model.Weights:
        weights = model.next_weights(weights, step)
        if self._drifts is not None:
            weights = model.drifted(weights)
        told = weights if self._drifts in (None, "loud") else model.weights_after(step)
        loss = model.loss_of(told)
        if self._drifts == "close":
            loss *= 1.0 + _CLOSE * self._chance.random()
        if self._script.tells_loss:
            self._loss = loss
            self._losses = [*self._losses, (step, loss)][-64:]
        return weights

    def _count(self, step: int, weights: model.Weights) -> None:
        """A step of the run: it is seen, and saved when it is time."""
        self._last_step_at = EPOCH_S + self._scheduler.clock_s
        self._first_step_at = self._first_step_at or self._last_step_at
        self._executed(self._job, step, weights)
        is_due = self._every is not None and step % self._every == 0
        if self._is_wanted or is_due:
            self._stage(step, weights)

    def _hold(self, step: int, weights: model.Weights) -> None:
        """Wait after the step that is the limit, and stage it if that is wanted."""
        while self._limit is not None and step >= self._limit and not self._drain:
            self._state = "held"
            if self._is_wanted:
                self._stage(step, weights)
                self._draw_failure()
            if self._held_until_s is not None and self._scheduler.clock_s >= self._held_until_s:
                self.failed_held_at_s = self._scheduler.clock_s
                self._fail("an illegal memory access while the ranks held")
                return
            self._scheduler.pause(0.25)
        self._state = "running"

    def _draw_failure(self) -> None:
        """Whether these ranks live to see what they have just staged handed over."""
        if self._chance.random() < self._script.fail_held:
            self._held_until_s = self._scheduler.clock_s + 6.0 * self._chance.random()

    def _stage(self, step: int, weights: model.Weights) -> None:
        self._is_wanted = False
        self.staged[step] = _Stage(step, weights)


class SimSaver:
    """Uploads a staged step in an actor of its own, with the production writer. A SaverProtocol.

    Args:
        scheduler: Clock and baton.
        job: Whose steps.
        store: Where to.
        ranks: Holds what is staged.
    """

    def __init__(self, scheduler: Scheduler, job: JobSpec, store: Store, ranks: SimRanks) -> None:
        self._scheduler = scheduler
        self._job = job
        self._store = store
        self._ranks = ranks
        self._actor: Actor | None = None
        self._busy = False
        self._saving = -1
        self._outcome: Saved | SaveFailed | None = None
        self._known = KnownChunks()
        self._learnt: tuple[str, str] | None = None
        self._saves = 0
        self.spawned: Callable[[Actor], None] = lambda _actor: None

    def start(self, step: int, *, standalone: bool = False) -> None:  # noqa: ARG002 - all are
        staged = self._ranks.staged[step]
        self._busy, self._outcome, self._saving = True, None, step
        self._saves += 1
        name = f"saver-g{self._job.generation}.{self._saves}"
        self._actor = self._scheduler.spawn(name, lambda: self._live(staged.step, staged.weights))
        self.spawned(self._actor)

    @property
    def busy(self) -> bool:
        return self._busy

    def poll(self) -> Saved | SaveFailed | None:
        outcome, self._outcome = self._outcome, None
        self._busy = self._busy and outcome is None
        return outcome

    def abandon(self) -> None:
        if self._outcome is None and self._actor is not None:
            self._scheduler.crash(self._actor)
            self._outcome = SaveFailed(self._saving, Conflict.__name__, "it gave way to another")

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        self._learnt = (manifest_key, manifest_digest)

    def close(self) -> None:
        if self._actor is not None:
            self._scheduler.crash(self._actor)

    def _live(self, step: int, weights: model.Weights) -> None:
        try:
            self._read_known()
            self._outcome = self.save(self._store, step, weights)
        except CloudshiftError as error:
            self._outcome = SaveFailed(step, type(error).__name__, error.message)

    def _read_known(self) -> None:
        if self._learnt is not None:
            key, digest = self._learnt
            checkpoint = open_checkpoint(
                self._store, self._job.run_id, key, digest=digest, concurrency=1
            )
            self._known = KnownChunks.from_checkpoint(checkpoint)
            self._learnt = None

    def save(self, store: Store, step: int, weights: model.Weights) -> Saved:
        """Write all ranks' shares and seal them: packs, records, manifest."""
        run_id, generation = self._job.run_id, self._job.generation
        doomed = tombstoned(store)
        written = [
            write_rank(
                store, run_id, model.stage(weights, step, rank),
                generation=generation, known=self._known, concurrency=1, dead_packs=doomed,
            )
            for rank in range(model.WORLD_SIZE)
        ]  # fmt: skip
        sealed = seal(
            store, run_id, step,
            generation=generation, world_size=model.WORLD_SIZE, written=written,
        )  # fmt: skip
        return Saved(
            step, sealed.manifest_key, sealed.manifest_digest, sealed.raw_bytes,
            sealed.stored_bytes, sum(rank.new_bytes for rank in written),
        )  # fmt: skip
