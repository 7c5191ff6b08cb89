"""Carries one captured step after the other from shared memory to its commit, beside training."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from cloudshift_lab.checkpoint.figures import Figures
from cloudshift_lab.checkpoint.gc import collect, list_pins
from cloudshift_lab.checkpoint.keep import KeepPolicy, goes_by_metric, steps_to_forget
from cloudshift_lab.checkpoint.saver_process import SaverProcess
from cloudshift_lab.checkpoint.saving import FailedAnswer, SavedAnswer, WrittenAnswer
from cloudshift_lab.core.errors import CloudshiftError, Conflict, error_from_wire
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.lease import TTL_S, Lease
from cloudshift_lab.storage.log import LogState, RunLog
from cloudshift_lab.storage.store import Store
from cloudshift_lab.training.ownership import Ownership

_POLL_S = 0.01
_SAVING_POLL_S = 0.05
_COLLECT_EVERY_S = 900.0
_TRIES_WHEN_SWEPT = 6


@dataclass(frozen=True)
class SaveHandle:
    """One call of ``save``.

    ``staging_completion``: the state is copied, whatever training does to it now.
    ``upload_completion``: this rank's share is stored; on rank 0, the step is committed and its
    number the result. Both are done at once when the policy wanted no save (``is_skipped``).
    """

    step: int
    is_skipped: bool = False
    staging_completion: Future[None] = field(default_factory=Future)
    upload_completion: Future[int] = field(default_factory=Future)

    def __post_init__(self) -> None:
        for future in (self.staging_completion, self.upload_completion):
            future.set_running_or_notify_cancel()  # a save under way cannot be cancelled


@dataclass(frozen=True)
class Work:
    """A step on its way; ``is_staged`` answers whether the copy is complete, or raises.

    ``metric``: the step's figure for ``keep="best=N"``, smaller is better; None: not measured.
    """

    handle: SaveHandle
    is_staged: Callable[[], bool]
    metric: float | None = None


class Background:
    """One thread that waits for copies, lets the saver process store them, commits, forgets.

    Args:
        store: Where the run is.
        run_id: Which run.
        owned: On rank 0: what to commit with; None on other ranks.
        saver: This rank's saver process.
        keep: Which steps to keep.
        incarnation: The same on all ranks of one start.
        world: Clock.
    """

    def __init__(
        self, store: Store, run_id: str, owned: Ownership | None, saver: SaverProcess, *,
        keep: KeepPolicy, generation: int, incarnation: str, world: World = REAL_WORLD,
    ) -> None:  # fmt: skip
        self._store = store
        self._run_id = run_id
        self._owned = owned
        self._log = RunLog(store, run_id, world)
        self._saver = saver
        self._keep = keep
        self._generation = generation
        self._incarnation = incarnation
        self._world = world
        self._lease = Lease(store, run_id, generation, world) if owned is not None else None
        self._beat_at = float("-inf")
        self._learnt: str | None = None
        self._collect_at = world.monotonic() + _COLLECT_EVERY_S
        self._figures = Figures(store, run_id)
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.released_step = self.saved_step = -1
        self.failure: CloudshiftError | None = None
        self._beat()
        self._thread = threading.Thread(target=self._run, name="cloudshift-save", daemon=True)
        self._thread.start()

    @property
    def saver_pid(self) -> int | None:
        """The saver's process id; None while there is none."""
        return self._saver.pid

    @property
    def is_saving(self) -> bool:
        """Whether the saver is at work on a step."""
        return self._saver.busy

    def submit(self, work: Work) -> None:
        """Carry a step; one at a time, in order."""
        self._work.put(work)

    def take_failure(self) -> CloudshiftError | None:
        """Why a save failed since the last look, once."""
        failure, self.failure = self.failure, None
        return failure

    def close(self) -> None:
        """Carry what was submitted, then end."""
        self._work.put(None)
        self._thread.join()
        self._saver.close()

    # -- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=TTL_S / 3)
            except queue.Empty:
                self._beat()
                continue
            if work is None:
                return
            try:
                self._carry(work)
                self._look_after()
            except Exception as error:  # noqa: BLE001 - told at the next save; the thread goes on
                self._fail(work, error)
            del work  # it leads to the tensors that were copied

    def _carry(self, work: Work) -> None:
        handle = work.handle
        while not work.is_staged():
            self._pause()
        handle.staging_completion.set_result(None)
        self._save_despite_sweeps(handle.step)
        if self._owned is not None and work.metric is not None and self._learnt is not None:
            self._figures.learn(self._learnt, work.metric)
        self.released_step = handle.step
        if self._owned is not None:  # elsewhere a share is stored, and rank 0 may fail to commit
            self.saved_step = handle.step
        handle.upload_completion.set_result(handle.step)

    def _save_despite_sweeps(self, step: int) -> None:
        """Save; again whenever the store was swept meanwhile, so that nothing deleted is used."""
        for more in reversed(range(_TRIES_WHEN_SWEPT)):
            try:
                self._save(step)
            except Conflict as error:
                if type(error) is not Conflict or not more:
                    raise
            else:
                return

    def _save(self, step: int) -> None:
        state = self._log.sync() if self._owned is None else self._owned.hold()
        self._learn(state)
        self._saver.start(step, self._incarnation)
        while (outcome := self._saver.poll()) is None:
            self._pause(_SAVING_POLL_S)
        if isinstance(outcome, FailedAnswer):
            raise error_from_wire(outcome.error_kind, outcome.message)
        if isinstance(outcome, WrittenAnswer):
            return
        self._commit(outcome, state)

    def _commit(self, outcome: SavedAnswer, state: LogState) -> None:
        assert self._owned is not None, "only rank 0's saver seals"
        self._owned.commit(outcome, self._generation, since=state.next_seq)
        self._learn(self._owned.look())

    def _learn(self, state: LogState) -> None:
        """Tell the saver the newest commit: what it holds need not be stored again."""
        last = state.last_commit
        if last is None or last.manifest_digest in (None, self._learnt):
            return
        assert last.manifest_key is not None and last.manifest_digest is not None
        self._learnt = last.manifest_digest
        self._saver.learn(last.manifest_key, last.manifest_digest)

    def _fail(self, work: Work, error: Exception) -> None:
        """Give the step up; the next save finds the memory free."""
        told = error
        if not isinstance(told, CloudshiftError):
            what = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            told = CloudshiftError(f"{self._what_became(work)}: {what}; save again")
        self.failure = told
        self.released_step = max(self.released_step, work.handle.step)
        for future in (work.handle.staging_completion, work.handle.upload_completion):
            if not future.done():
                future.set_exception(told)

    def _what_became(self, work: Work) -> str:
        is_saved = self.saved_step >= work.handle.step
        what = "was saved, but what follows a save failed" if is_saved else "was not saved"
        return f"step {work.handle.step} {what}"

    def _look_after(self) -> None:
        """Forget steps that the policy does not keep, and now and then collect what they held."""
        if self._owned is None:
            return
        try:
            pinned = {pin.step for pin in list_pins(self._store, self._run_id)}
            commits = self._owned.look().commits
            metrics: dict[int, float] = {}
            if goes_by_metric(self._keep):  # what was never measured may be the best
                self._figures.note(commits)
                metrics = self._figures.per_step(commits)
                pinned |= {c.step for c in commits if c.step is not None} - set(metrics)
            self._owned.forget(steps_to_forget(commits, self._keep, pinned=pinned, metrics=metrics))
            if self._world.monotonic() >= self._collect_at:
                self._collect_at = self._world.monotonic() + _COLLECT_EVERY_S
                collect(self._store, world=self._world)
        except CloudshiftError as error:
            self.failure = error

    def _pause(self, seconds: float = _POLL_S) -> None:
        """Each look takes the interpreter's lock from training for a moment."""
        self._beat()
        self._world.sleep(seconds)

    def _beat(self) -> None:
        """Show now and then that the owner lives; safety never depends on it."""
        if self._lease is None or self._world.monotonic() < self._beat_at:
            return
        self._beat_at = self._world.monotonic() + TTL_S / 3
        try:
            self._lease.beat()
        except CloudshiftError:
            return  # the next save says what is wrong with the store
