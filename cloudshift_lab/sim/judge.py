"""What must hold of a whole move: every step once, every commit readable, one runner at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cloudshift_lab.checkpoint import open_checkpoint, verify
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.sim import model
from cloudshift_lab.sim.faulty_store import Mutation
from cloudshift_lab.sim.keepsake import Keepsake
from cloudshift_lab.sim.watch import LogWatch, Report, log_record
from cloudshift_lab.storage.log import LogRecord
from cloudshift_lab.storage.memory import MemoryStore


@dataclass
class Judge:
    """Sees every mutation and every step of a history, and reports what must not be.

    Args:
        run_id: The one run of the history.
        inner: The stores as they are, without faults.
        report: Takes the name of a broken invariant and what was seen.
    """

    run_id: str
    inner: dict[str, MemoryStore]
    report: Report
    last_step: int = 0
    last_by: int = 0
    furthest: int = 0
    repeats_allowed: bool = False
    unplanned: bool = False
    steps_by: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = LogWatch(self.run_id, self.report)
        self._kept = Keepsake()
        self._checked: set[tuple[str, str]] = set()

    def see(self, mutation: Mutation) -> None:
        """Judge one effect on a store in the moment it happens."""
        self.log.see(mutation)
        record = log_record(mutation)
        if record is not None:
            self._see_record(mutation, *record)
        elif mutation.key.startswith("pins/"):
            self._kept.see_pin(mutation)
        elif mutation.before is not None and self._kept.names(mutation.url, mutation.key):
            self.report(
                "what a commit names stays",
                f"{mutation.url}/{mutation.key} was changed by {mutation.actor}",
            )

    def _see_record(self, mutation: Mutation, run_id: str, record: LogRecord) -> None:
        if record.kind == "commit":
            self._check_commit(mutation.url, run_id, record)
            self._kept.keep(mutation.url, run_id, record)
        elif record.kind == "forget":
            self._kept.forget(mutation.url, run_id, record.steps)

    def executed(self, job: JobSpec, step: int, weights: model.Weights) -> None:
        """Judge one training step in the moment it ends."""
        generation = job.generation
        self.furthest = max(self.furthest, step)
        self.steps_by[generation] = self.steps_by.get(generation, 0) + 1
        if not self.is_state(weights, step):
            self.report("a step continues the right state", f"step {step} of g{generation}")
        if not self.unplanned and not self._may_run(generation):
            self.report(
                "only the owner runs",
                f"step {step} by g{generation} while g{self.log.generation} of "
                f"{self.log.owner} owns the run",
            )
        if self.is_owner(generation):
            self._check_order(step, generation)

    def rehearsed(self, job: JobSpec, step: int) -> None:
        """Judge a step that a standby repeats: the run must have done it before."""
        if step > self.furthest:
            self.report(
                "a rehearsal never overtakes its source",
                f"step {step} by g{job.generation}, {self.furthest} was executed",
            )

    def is_state(self, weights: model.Weights | None, step: int) -> bool:
        """Whether these are exactly the weights after that many steps."""
        return weights is not None and np.array_equal(weights, model.weights_after(step))

    def is_whole(self, url: str, record: LogRecord) -> bool:
        """Whether a committed step could be restored from this store, now."""
        try:
            report = verify(
                self.inner[url], self.run_id, str(record.manifest_key),
                str(record.manifest_digest), level=2,
            )  # fmt: skip
        except CloudshiftError:
            return False
        return report.ok

    def is_owner(self, generation: int) -> bool:
        """Whether the log gives the run to this attempt now."""
        is_home = self.log.handed_over is None and self.log.owner is not None
        return is_home and self.log.generation == generation

    def lost(self, generation: int) -> None:
        """An agent died: what its ranks did after the last commit will be done again."""
        if self.is_owner(generation):
            self.repeats_allowed = True

    def sealed_is_newest(self, step: int) -> None:
        """At the moment of a handover no executed step may be newer than the sealed one."""
        if not self.unplanned and step < self.last_step:
            self.report("no step is lost", f"sealed {step}, but {self.last_step} was executed")

    def _may_run(self, generation: int) -> bool:
        return self.is_owner(generation) or (
            self.log.owner is None and self.log.handed_over is None and generation == 1
        )

    def _check_order(self, step: int, generation: int) -> None:
        committed = self.log.commits[-1][1].step if self.log.commits else 0
        if step > self.last_step + 1 and not self.unplanned:
            self.report("no step is left out", f"{step} after {self.last_step} by g{generation}")
        if step <= self.last_step and not (self.repeats_allowed or self.unplanned):
            self.report("no step runs twice", f"{step} after {self.last_step} by g{generation}")
        if step <= (committed or 0) and generation != self.last_by:
            self.report("a new owner begins after the last commit", f"{step} <= {committed}")
        self.last_step, self.last_by = step, generation

    def _check_commit(self, url: str, run_id: str, record: LogRecord) -> None:
        """A committed step must be whole in the store of its log, from this moment on."""
        assert record.manifest_key is not None and record.manifest_digest is not None
        key, digest, store = record.manifest_key, record.manifest_digest, self.inner[url]
        if (url, key) in self._checked:
            return
        self._checked.add((url, key))
        name = f"step {record.step} of {run_id} g{record.generation} at {url}"
        try:
            report = verify(store, run_id, key, digest, level=2)
            if not report.ok:
                self.report("a committed step is whole", f"{name}: {report.problems[0]}")
                return
            checkpoint = open_checkpoint(store, run_id, record, concurrency=1)
            self._kept.learn(url, key, checkpoint.object_keys())
            step, weights = model.read_weights(checkpoint)
        except CloudshiftError as error:
            self.report("a committed step is whole", f"{name}: {error.message}")
            return
        if step != record.step or not np.array_equal(weights, model.weights_after(step)):
            self.report("a committed step holds its own state", name)
