"""Which committed steps stay: forgetting by the run's policy, and collecting in the background."""

from __future__ import annotations

from typing import Protocol

from cloudshift_lab.agent.board import Board
from cloudshift_lab.agent.protocols import Restore
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.checkpoint.collecting import Collected
from cloudshift_lab.checkpoint.figures import Figures
from cloudshift_lab.checkpoint.keep import KeepAll, parse_keep, steps_to_forget
from cloudshift_lab.checkpoint.layout import Manifest, ObjectRef, fetch_verified, parse_document
from cloudshift_lab.checkpoint.pins import list_pins
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import LogRecord
from cloudshift_lab.storage.store import Store

FORGET_EVERY_S = 60.0
COLLECT_EVERY_S = 600.0
MAX_COUNTED = 100
MANY_INTERRUPTIONS = 3
_BEST = "best="


class CollectorProtocol(Protocol):
    """Marks and sweeps the run's own store, without holding up anybody."""

    @property
    def busy(self) -> bool:
        """Whether a collection has begun whose end ``poll`` has not returned yet."""

    def start(self) -> None:
        """Begin a collection. Only when not busy."""

    def poll(self) -> Collected | None:
        """How it ended, once; None while there is nothing to tell."""

    def close(self) -> None:
        """Stop at once; to be begun again."""


class Retention:
    """Keeps what the policy wants of the run's committed steps, in the run's own store.

    A tick does one small thing, and none while a move is on: it never holds up what matters. While
    a state is being saved nothing is asked of the store here; the collector, which is a process of
    low priority, goes on beside it, for a run may have something to save at all times. The newest
    step, pinned ones, and what other runs or moves need are safe by the rules of
    ``checkpoint.gc``.

    Args:
        store: The attempt's own.
        job: Its run and policy.
        tenure: The run's log.
        board: Where figures and complaints go.
        world: Clock and nonces.
        collector: Deletes what nothing refers to any more; None: somebody else does.
    """

    def __init__(
        self, store: Store, job: JobSpec, tenure: Tenure, board: Board, world: World, *,
        collector: CollectorProtocol | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._run_id = job.run_id
        self._policy = parse_keep(job.keep)
        self._needs_metrics = _BEST in job.keep
        self._tenure = tenure
        self._board = board
        self._world = world
        self._collector = collector
        self._forget_at = float("-inf")
        self._collect_at: float | None = None
        self._collected_at = float("-inf")
        self._is_news = self._is_unnoted = False
        self._note_at = float("-inf")
        self._commits: tuple[LogRecord, ...] = ()
        self._figures = Figures(store, job.run_id)
        self._packs: dict[str, tuple[ObjectRef, ...]] = {}
        self._count_at = float("-inf")
        self._damaged: dict[str, float] = {}
        self._interruptions = 0

    def committed(self, step: Restore, loss: float | None) -> None:
        """A step was committed; ``loss`` is what ``best=`` goes by."""
        self._is_news = True
        if loss is not None and self._needs_metrics:
            self._figures.learn(step.manifest_digest, loss)
            self._is_unnoted = True

    def tick(self, *, is_quiet: bool, is_saving: bool) -> None:
        """Do the next small thing if it is time.

        Args:
            is_quiet: Whether the ranks train and no order waits to be obeyed.
            is_saving: Whether a state waits for its commit.

        Raises:
            CloudshiftError: The store, a log or a pin; it is tried again later.
        """
        if not is_quiet:
            self.pause()
            return
        now = self._world.monotonic()
        self._collect(now)
        if is_saving:
            return
        if self._is_unnoted and now >= self._note_at:
            self._note_at = now + FORGET_EVERY_S  # unless it succeeds
            self._figures.note(self._tenure.commits())
            self._is_unnoted, self._note_at = False, now
        elif self._is_news and now >= self._forget_at:
            self._forget_at = now + FORGET_EVERY_S
            self._forget()
            self._is_news = False
        elif now >= self._count_at and (uncounted := self._uncounted()) is not None:
            self._count_at = now + FORGET_EVERY_S  # unless it succeeds
            self._count(uncounted)
            self._count_at = now

    def finish(self) -> None:
        """The attempt ends: a last look, so that what stays is what the policy says.

        Raises:
            CloudshiftError: The store, a log or a pin.
        """
        if self._is_news:
            self._forget()
            self._is_news = False
        while (uncounted := self._uncounted()) is not None:
            self._count(uncounted)

    def pause(self) -> None:
        """Something more important: a collection that runs is given up and begun again later."""
        if self._collector is not None and self._collector.busy:
            self._collector.close()
            self._collect_at = self._world.monotonic() + FORGET_EVERY_S
            self._interruptions += 1
        if self._interruptions >= MANY_INTERRUPTIONS:
            self._board.note(
                "collector",
                f"collections were interrupted {self._interruptions} times in a row, and what was "
                f"forgotten is still stored: run `cloudshift gc {self._run_id}`",
            )

    def _forget(self) -> None:
        commits = self._tenure.commits()
        spared = {pin.step for pin in list_pins(self._store, self._run_id)}
        losses: dict[int, float] = {}
        if self._needs_metrics:
            self._figures.note(commits)
            losses = self._figures.per_step(commits)
            spared |= {c.step for c in commits if c.step is not None} - set(losses)
            self._ask_for_losses(len(losses), len(commits))
        steps = steps_to_forget(commits, self._policy, pinned=spared, metrics=losses)
        if steps:
            self._tenure.forget(steps, self._world.new_id("forget"))
            self._collect_at = self._collect_at or self._collected_at + COLLECT_EVERY_S
        gone = set(steps)
        self._commits = tuple(c for c in commits if c.step not in gone)
        self._show()

    def _ask_for_losses(self, num_losses: int, num_steps: int) -> None:
        """``best=`` cannot choose among steps without a figure, and so keeps them all."""
        if not num_losses and num_steps > 1:
            self._board.note(
                "losses",
                "best= needs a loss and none was reported, so no step is forgotten: "
                "call session.step(loss=...)",
            )

    def _uncounted(self) -> LogRecord | None:
        """A kept step whose packs are not known yet; None once all are, or if they are too many."""
        if len(self._commits) > MAX_COUNTED:
            return None
        now = self._world.monotonic()
        waiting = {digest for digest, again_at in self._damaged.items() if now < again_at}
        known = {*self._packs, *waiting}
        return next((c for c in self._commits if c.manifest_digest not in known), None)

    def _count(self, commit: LogRecord) -> None:
        key, digest = str(commit.manifest_key), str(commit.manifest_digest)
        try:
            manifest = parse_document(fetch_verified(self._store, key, digest), Manifest, key)
        except (Corrupt, NotFound) as error:
            self._damaged[digest] = self._world.monotonic() + COLLECT_EVERY_S
            what = f"step {commit.step}, which is kept, is damaged ({error.message})"
            self._board.note("damaged", f"{what}: see `cloudshift repair {self._run_id}`")
            return
        kept = {str(c.manifest_digest) for c in self._commits}
        self._packs = {d: packs for d, packs in self._packs.items() if d in kept}
        self._packs[digest] = manifest.packs
        self._show()

    def _show(self) -> None:
        known = [self._packs.get(str(c.manifest_digest)) for c in self._commits]
        packs = {pack for listed in known if listed is not None for pack in listed}
        is_counted = all(listed is not None for listed in known)
        self._board.update_saves(
            kept_steps=len(self._commits),
            kept_bytes=sum(pack.size for pack in packs) if is_counted else None,
        )

    def _collect(self, now: float) -> None:
        collector = self._collector
        if collector is None or isinstance(self._policy, KeepAll):
            return
        if collector.busy:
            done = collector.poll()
            if done is not None:
                self._collected(done, now)
        elif self._collect_at is not None and now >= self._collect_at:
            self._collect_at = None
            collector.start()

    def _collected(self, done: Collected, now: float) -> None:
        """Come back when what was marked may be swept; sooner, if it went wrong."""
        self._collected_at, self._interruptions = now, 0
        if done.report is None:
            self._board.note("collector", done.message)
            self._collect_at = now + COLLECT_EVERY_S
        elif done.report.due_at is not None:
            self._collect_at = now + max(0.0, done.report.due_at - self._world.now())
