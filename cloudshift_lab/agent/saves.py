"""From staged to committed: when a save starts, what happens when it fails, and the commit."""

from __future__ import annotations

from cloudshift_lab.agent.board import Board
from cloudshift_lab.agent.cadence import Cadence
from cloudshift_lab.agent.protocols import (
    RanksProtocol,
    RanksView,
    Restore,
    Saved,
    SaveFailed,
    SaverProtocol,
)
from cloudshift_lab.agent.retention import Retention
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, Unavailable
from cloudshift_lab.core.world import World

_LONGEST_WAIT_S = 30.0
_MOST_DOUBLINGS = 7
_MAX_REFUSALS = 8


class Saves:
    """Carries each newest staged step to its commit, one at a time.

    Invariant: a step is committed only after the saver has put every object it names, and a
    staged step is released to its ranks only after the commit; or given up, when saving it is in
    vain and training goes on: then a newer one is worth more.

    ``newest`` is the newest committed step, or the one that the ranks were restored from.
    ``closing`` is the committed step after which no rank has run, until the ranks are restarted.
    Ranks that are drained before they took a step close with the step they had begun from.
    """

    def __init__(
        self, tenure: Tenure, ranks: RanksProtocol, saver: SaverProtocol, board: Board,
        world: World, *, cadence: Cadence, retention: Retention,
    ) -> None:  # fmt: skip
        self._tenure = tenure
        self._ranks = ranks
        self._saver = saver
        self._board = board
        self._world = world
        self._cadence = cadence
        self._retention = retention
        self._seen_staged: tuple[int, float] | None = None
        self._losses: dict[int, float | None] = {}
        self._pending: tuple[Saved, str] | None = None
        self._since: int | None = None
        self._saving: int | None = None
        self._abandoned: int | None = None
        self._given_up: int | None = None
        self._num_failures = 0
        self._num_refusals = 0
        self._refusal: SaveFailed | None = None
        self._retry_at = float("-inf")
        self._wanted: int | None = None
        self._is_standalone_wanted = False
        self._keeps_current = False
        self._is_stale = False
        self.newest: Restore | None = None
        self.closing: Restore | None = None

    def continue_from(self, restore: Restore | None) -> None:
        """The ranks start from this committed step: nothing of it needs to be saved again."""
        self.closing = self._given_up = None
        self.newest = restore
        self._cadence.restart()
        if restore is not None:
            self._saver.learn(restore.manifest_key, restore.manifest_digest)
            self._board.update(committed_step=restore.step)

    def start_over(self) -> None:
        """The ranks were started anew: nothing they had staged before is saved any more."""
        self._pending = self._refusal = self._seen_staged = self._given_up = None
        self._num_failures = self._num_refusals = 0
        self._retry_at = float("-inf")
        if self._saver.busy:
            self._is_stale, self._abandoned = True, self._saving
            self._saver.abandon()

    def tick(self, view: RanksView) -> None:
        """Take the saver's outcome, commit it, start the next save.

        Raises:
            Fenced: The run is not ours any more.
            Unavailable: The commit's outcome is unknown; the next tick asks again.
        """
        self._look(view)
        outcome = self._saver.poll()
        if outcome is not None and self._is_stale:
            outcome, self._is_stale = None, False
        if isinstance(outcome, Saved):
            self._pending = (outcome, self._world.new_id("commit"))
            if outcome.warning is not None:
                self._board.note("saver", outcome.warning)
        elif isinstance(outcome, SaveFailed) and outcome.step != self._abandoned:
            self._put_off(outcome)
        if self._pending is not None and self._is_time():
            self._commit(view, *self._pending)
        self._give_up(view)
        if self._pending is None and not self._saver.busy and self._is_due(view):
            assert view.staged_step is not None
            self._since = self._tenure.position()
            self._saver.start(view.staged_step, standalone=self._is_standalone_wanted)
            self._saving, self._abandoned = view.staged_step, None
        self._give_way(view)
        self._cadence.tick(view, is_saving=self.is_owed(view), is_wanted=self._is_wanted())
        if view.staged_last and self.newest and view.staged_step == self.newest.step:
            self.closing = self.newest

    def want(self, step: int, *, standalone: bool = False) -> None:
        """Have this step, or a later one, committed soon, whatever the policy says.

        ``standalone``: without deltas, so that it can be copied without the step before it.
        """
        self._wanted = max(step, self._wanted or 0)
        self._is_standalone_wanted |= standalone

    def keep_current(self) -> None:
        """From now on a save under way is finished before a newer state is saved."""
        self._keeps_current = True

    @property
    def saving_for_s(self) -> float:
        """How long ago the newest staged state was staged, seconds."""
        return 0.0 if self._seen_staged is None else self._world.monotonic() - self._seen_staged[1]

    def _is_wanted(self) -> bool:
        if self._wanted is None or (self.newest is not None and self.newest.step >= self._wanted):
            self._wanted, self._is_standalone_wanted = None, False
        return self._wanted is not None

    def keep(self, view: RanksView, *, is_quiet: bool) -> None:
        """Forget and collect old steps, unless ``is_quiet`` is False.

        Raises:
            CloudshiftError: As the store reported; it is tried again later.
        """
        self._retention.tick(is_quiet=is_quiet, is_saving=self.is_owed(view))

    def _look(self, view: RanksView) -> None:
        """Remember when a step was staged, and with which loss."""
        step = view.staged_step
        if step is not None and (self._seen_staged is None or self._seen_staged[0] != step):
            self._seen_staged = (step, self._world.monotonic())
        if step is not None and self._losses.get(step) is None:
            self._losses = {s: v for s, v in self._losses.items() if s >= step - 1}
            self._losses[step] = view.staged_loss
        lost_s = None if self._cadence.cost is None else self._cadence.cost.lost_s
        self._board.update_saves(policy=self._cadence.words, lost_s=lost_s)

    def _give_way(self, view: RanksView) -> None:
        """Training waits for the last state: an earlier one that is being saved gives way to it."""
        is_last = view.staged_last and view.staged_step not in (None, self._saving)
        if self._keeps_current:
            return
        if is_last and self._saver.busy and self._abandoned != self._saving:
            self._abandoned = self._saving
            self._saver.abandon()

    def _give_up(self, view: RanksView) -> None:
        """While training goes on, a step that cannot be saved makes room for a newer one.

        The newer ones are tried once each, until one gets through.
        """
        refusal = self._refusal
        if refusal is None or self.refused(view) is None or not self._may_give_up(view):
            return
        if self._saver.busy or refusal.step == self._given_up:
            return
        self._pending, self._given_up = None, refusal.step
        self._ranks.release(refusal.step)
        self._board.note(
            "given up",
            f"step {refusal.step} was given up, the next one is tried: {refusal.message}",
        )

    def _may_give_up(self, view: RanksView) -> bool:
        return view.state == "running" and not view.staged_last

    def is_owed(self, view: RanksView) -> bool:
        """Whether the ranks left a complete state behind that is not committed yet."""
        is_vain = view.staged_step == self._given_up and self._may_give_up(view)
        return not is_vain and view.staged_step not in (None, self._board.status.committed_step)

    def refused(self, view: RanksView) -> str | None:
        """Why saving the newest staged state is in vain; None while there is hope.

        Only answers count, and the deaths of the saver: a store that is away gives none. Those of
        all steps since the last commit count, but the newest one was tried at least once.
        """
        refusal = self._refusal
        if refusal is None or self._num_refusals < _MAX_REFUSALS:
            return None
        is_of_newest = self._pending is not None or refusal.step == view.staged_step
        return refusal.message if is_of_newest else None

    def _is_due(self, view: RanksView) -> bool:
        return self.is_owed(view) and self._is_time()

    def _is_time(self) -> bool:
        return self._world.monotonic() >= self._retry_at

    def _put_off(self, failure: SaveFailed) -> None:
        if failure.error_kind != Unavailable.__name__:
            self._num_refusals += 1
            self._refusal = failure
        self._num_failures += 1
        wait_s = min(_LONGEST_WAIT_S, 0.25 * 2 ** min(self._num_failures, _MOST_DOUBLINGS))
        self._retry_at = self._world.monotonic() + wait_s
        self._board.warn(failure.message)

    def _commit(self, view: RanksView, saved: Saved, nonce: str) -> None:
        is_last = view.staged_last and view.staged_step == saved.step
        try:
            record = self._tenure.commit(saved, nonce, since=self._since, is_last=is_last)
        except (Fenced, Unavailable):
            raise
        except Conflict:
            self._pending = None  # swept meanwhile: the next tick saves it again, which is no fault
            return
        except CloudshiftError as error:
            self._put_off(SaveFailed(saved.step, type(error).__name__, error.message))
            return
        if record is None:
            return
        self._pending, self._refusal = None, None
        self._num_failures = self._num_refusals = 0
        self._ranks.release(saved.step)
        self._saver.learn(saved.manifest_key, saved.manifest_digest)
        self.newest = Restore(saved.step, saved.manifest_key, saved.manifest_digest)
        self._board.update(
            committed_step=saved.step,
            committed_at=record.at,
            state_bytes=saved.raw_bytes,
            stored_bytes=saved.stored_bytes,
        )
        self._board.update_saves(
            raw_bytes=saved.raw_bytes,
            stored_bytes=saved.stored_bytes,
            new_bytes=saved.new_bytes,
            save_s=self._since_staged(saved),
        )
        self._retention.committed(self.newest, self._losses.get(saved.step))

    def _since_staged(self, saved: Saved) -> float:
        """Seconds from the copy to the commit."""
        staged = self._seen_staged
        if staged is None or staged[0] != saved.step:
            return saved.save_s
        return self._world.monotonic() - staged[1]
