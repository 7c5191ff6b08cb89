"""Ranks that fail are started again by their agent, from the newest step that was saved."""

from __future__ import annotations

from cloudshift_lab.agent.attempt import Attempt
from cloudshift_lab.agent.failures import is_peer_lost
from cloudshift_lab.agent.protocols import RankError
from cloudshift_lab.core.orders import STARTED_AGAIN

SAVE_PATIENCE_S = 60.0


class Healing:
    """Starts the ranks of a run that we own again, in the same attempt.

    They wait at the gate while what they had staged is saved. Progress is a step later than any
    before: after ``job.restarts`` starts without it the attempt fails, and at once when a rank
    raises the same error after the same step again: that is the script's.

    Args:
        attempt: What the parts of the agent share.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._reached = -1
        self._num_vain = 0
        self._failure: tuple[str, int] | None = None
        self._began_at = 0.0

    def tick(self) -> None:
        """Begin, wait for the save, let the ranks go on; or leave the failure to the attempt."""
        attempt = self._attempt
        state = attempt.view.state
        if state == "failed":
            attempt.is_healing = self._may_heal()
            if attempt.is_healing:
                self._begin()
        elif not attempt.is_healing:
            return
        elif state == "gate":
            if not self._is_saving():
                self._go_on()
        elif attempt.view.first_step_at is not None or state in ("finished", "drained"):
            attempt.is_healing = False

    def _may_heal(self) -> bool:
        attempt = self._attempt
        job, status = attempt.job, attempt.board.status
        is_ours = attempt.is_owner and not attempt.is_stranded and not attempt.drain_asked
        if job.restarts == 0 or job.placement.nodes > 1 or not is_ours:
            return False
        if status.first_step_at is None:
            return False
        return self._has_hope(self._newest(), attempt.view.error)

    def _has_hope(self, reached: int, error: RankError | None) -> bool:
        if reached > self._reached:
            self._reached, self._num_vain = reached, 0
        failure = None
        if error is not None and error.traceback and not is_peer_lost(error):
            failure = (error.message, reached)
        if failure is not None and failure == self._failure:
            return False
        self._failure = failure or self._failure
        self._num_vain += 1
        if self._num_vain <= self._attempt.job.restarts:
            return True
        self._attempt.board.note(
            "healing",
            f"the ranks made no progress in {self._num_vain} starts after step {reached}, so they "
            "are not started again; see the error",
        )
        return False

    def _newest(self) -> int:
        """The newest step that was done, as far as it could be kept."""
        saves, view = self._attempt.saves, self._attempt.view
        committed = -1 if saves.newest is None else saves.newest.step
        return max(committed, -1 if view.staged_step is None else view.staged_step)

    def _begin(self) -> None:
        attempt = self._attempt
        error = attempt.view.error
        self._began_at = attempt.world.monotonic()
        attempt.board.note(
            "healing",
            f"{error.message if error else 'the ranks failed'}: {STARTED_AGAIN} "
            f"{max(self._newest(), 0)}",
        )
        attempt.ranks.restart()
        attempt.view = attempt.ranks.poll()

    def _is_saving(self) -> bool:
        """Whether what the ranks left behind may still be saved."""
        attempt = self._attempt
        return (
            attempt.is_left_unsaved()
            and attempt.world.monotonic() - self._began_at < SAVE_PATIENCE_S
        )

    def _go_on(self) -> None:
        attempt = self._attempt
        attempt.tenure.check()
        attempt.saves.start_over()
        newest = attempt.saves.newest
        attempt.saves.continue_from(newest)
        attempt.ranks.go(newest)
        attempt.view = attempt.ranks.poll()
