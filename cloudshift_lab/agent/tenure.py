"""Owning a run: taking it, proving it now and then, committing under it, giving it back."""

from __future__ import annotations

from collections.abc import Collection

from cloudshift_lab.agent.protocols import Restore, Saved
from cloudshift_lab.core.errors import Fenced, NotFound
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.lease import TTL_S, Lease
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.store import Store


class Tenure:
    """One generation's ownership, as the run log and the heartbeat show it.

    Args:
        store: Where the log is.
        job: Who we are: ``generation`` and ``owner``.
        world: Clock and nonces.
        ttl_s: Time to live of the lease, seconds.
    """

    def __init__(self, store: Store, job: JobSpec, world: World, ttl_s: float = TTL_S) -> None:
        self._store = store
        self._job = job
        self._world = world
        self._log = RunLog(store, job.run_id, world)
        self._lease = Lease(store, job.run_id, job.generation, world, ttl_s)
        self._nonce = world.new_id("tenure")
        self._beat_every_s = ttl_s / 3
        self._beat_at = float("-inf")
        self.owned = False

    def acquire(self) -> Restore | None:
        """Own the run and find the step to continue from: the newest commit; idempotent.

        ``job.restore_step`` must be committed, but it was chosen before the run was ours: the
        owner before us may have committed later steps until then, and none of them may be lost.

        Raises:
            Fenced: Another generation is as new as ours.
            NotFound: ``job.restore_step`` was never committed here.
        """
        job = self._job
        self._log.acquire(generation=job.generation, owner=job.owner, nonce=self._nonce)
        state = self._log.sync()
        if job.restore_step is not None and _commit_at(state, job.restore_step) is None:
            raise NotFound(
                f"run {job.run_id} has no committed step {job.restore_step} in "
                f"{self._store.url}; choose one that its log lists"
            )
        self.owned = True
        return _commit_at(state, None)

    def adopt(self, step: int | None) -> Restore | None:
        """Become the owner if the log already says so and has ``step``; None: not yet.

        Returns the newest commit, which is a later one when this attempt had run before.

        Raises:
            Fenced: The log has passed our generation, or an agent of ours gave the run back.
        """
        state = self._sync_unless_past()
        newest = _commit_at(state, None)
        if newest is None or newest.step < (step or 0) or not self._holds(state):
            return None
        self.owned = True
        return newest

    def has_arrived(self) -> bool:
        """Whether the log says that the run is ours, with its newest step or without.

        Raises:
            Fenced: As ``adopt``.
        """
        return self._holds(self._sync_unless_past())

    def awaits_step(self) -> bool:
        """Whether the run is ours and its newest step is still at the source alone.

        Raises:
            Fenced: As ``adopt``.
        """
        state = self._sync_unless_past()
        return self._holds(state) and state.awaits_step

    def take(self) -> None:
        """Become the owner of a run that has arrived without its newest step.

        Raises:
            Fenced: The run is not ours (any more).
        """
        self.check()
        self.owned = True

    def carry_over(self, record: LogRecord) -> None:
        """Make a step exist here that was copied from the source and proved; idempotent.

        Raises:
            Fenced: The run is not ours any more.
            Unavailable: Outcome unknown; ask again.
        """
        carried = restore_of(record)
        self._log.commit(
            generation=self._job.generation,
            step=carried.step,
            manifest_key=carried.manifest_key,
            manifest_digest=carried.manifest_digest,
            nonce=f"{self._nonce}-carry-over",
        )

    def _sync_unless_past(self) -> LogState:
        state = self._log.sync()
        ours = self._job.generation
        gave_back = any(r.kind == "release" and r.generation == ours for r in state.records)
        if gave_back or state.generation > ours:
            raise self._fenced(state)
        return state

    def check(self) -> None:
        """Read the log again.

        Raises:
            Fenced: The run is not ours any more.
        """
        self._sync_held()

    def beat(self) -> bool:
        """Renew the lease when it is time; True when it was renewed."""
        if self._world.monotonic() < self._beat_at:
            return False
        self._lease.beat()
        self._beat_at = self._world.monotonic() + self._beat_every_s
        return True

    def position(self) -> int:
        """How long the log is; asked when a save begins, it is that save's ``since``.

        Raises:
            Fenced: The run is not ours any more: a save could only fail, again and again.
            Unavailable: The store does not answer.
        """
        return self._sync_held().next_seq

    def commit(
        self, saved: Saved, nonce: str, *, since: int | None, is_last: bool
    ) -> LogRecord | None:
        """Make a saved step exist; None while the lease is too old to publish anything.

        Raises:
            Fenced: The run is not ours any more.
            Conflict: The store was swept after ``since``; the step has to be saved again.
            Unavailable: Outcome unknown; ask again with the same nonce.
        """
        if not self._lease.may_publish():
            return None
        return self._log.commit(
            generation=self._job.generation,
            step=saved.step,
            manifest_key=saved.manifest_key,
            manifest_digest=saved.manifest_digest,
            nonce=nonce,
            final=is_last,
            since=since,
        )

    def commits(self) -> tuple[LogRecord, ...]:
        """The steps that exist, oldest first.

        Raises:
            Unavailable: The store does not answer.
        """
        return self._log.sync().commits

    def forget(self, steps: Collection[int], nonce: str) -> None:
        """Make committed steps exist no longer; the newest one stays whatever is asked for.

        Raises:
            Unavailable: Outcome unknown; asked again, what has landed is left out.
        """
        self._log.forget(steps=steps, nonce=nonce)

    def release(self) -> None:
        """Stop owning the run, at its end; no-op when it is not ours.

        Raises:
            Fenced: The run is not ours any more.
        """
        if self.owned:
            self._log.release(generation=self._job.generation, nonce=f"{self._nonce}-release")
            self.owned = False

    def _sync_held(self) -> LogState:
        state = self._log.sync()
        if not self._holds(state):
            raise self._fenced(state)
        return state

    def _holds(self, state: LogState) -> bool:
        ours = (self._job.generation, self._job.owner, None)
        return (state.generation, state.owner, state.home_url) == ours

    def _fenced(self, state: LogState) -> Fenced:
        return Fenced(
            f"run {self._job.run_id} belongs to generation {state.generation} now; "
            f"generation {self._job.generation} has stopped",
            generation=self._job.generation,
            current=state.generation,
        )


def restore_of(record: LogRecord) -> Restore:
    """The restore point that a commit record names."""
    assert record.step is not None and record.manifest_key and record.manifest_digest
    return Restore(record.step, record.manifest_key, record.manifest_digest)


def _commit_at(state: LogState, step: int | None) -> Restore | None:
    """The newest commit of ``step``; of any step when ``step`` is None."""
    commits = [record for record in state.commits if step in (None, record.step)]
    return restore_of(commits[-1]) if commits else None
