"""One attempt as all parts of its agent share it: where it is, what is owed, and its end."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from cloudshift_lab.agent.board import Board
from cloudshift_lab.agent.protocols import RanksProtocol, RanksView, Restore
from cloudshift_lab.agent.retention import Retention
from cloudshift_lab.agent.saves import Saves
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, Unavailable
from cloudshift_lab.core.orders import AgentState, Order, OrderKind, OrderResult
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World

LAST_WORDS_S = 60.0
STOP_PATIENCE_S = 1800.0

Activity = Generator[OrderResult, None, None]


@dataclass
class Attempt:
    """What the parts of an agent know of their attempt together.

    ``view`` is of this tick. ``drain_asked``: the ranks were asked for their last state;
    ``only_noticed``: for no other reason than a notice that this machine goes.
    ``is_healing``: the ranks failed and are being started again.
    ``active`` are the orders being obeyed, by their ids. ``ended_at`` is monotonic seconds.
    """

    job: JobSpec
    world: World
    ranks: RanksProtocol
    tenure: Tenure
    board: Board
    saves: Saves
    retention: Retention
    view: RanksView = field(default_factory=RanksView)
    drain_asked: bool = False
    only_noticed: bool = False
    active: dict[str, tuple[Order, Activity]] = field(default_factory=dict)
    ended_at: float | None = None
    is_healing: bool = False
    _failed_at: float | None = None

    @property
    def is_owner(self) -> bool:
        """Whether this generation owns the run: before that nothing it computes is the run's."""
        return self.tenure.owned

    @property
    def is_stranded(self) -> bool:
        """Whether the run has arrived without its newest step, and nothing is committed here yet.

        An attempt that ended now would leave a log behind from which nobody could go on.
        """
        return self.is_owner and self.job.standby and self.board.status.committed_step is None

    @property
    def is_lost(self) -> bool:
        """Whether what this stranded attempt's ranks left behind will never be committed.

        The step the run arrived with is in the source's store still: that is all there is.
        """
        if not self.is_stranded or self.view.state not in ("finished", "failed"):
            return False
        if not self.saves.is_owed(self.view) or self.refusal() is not None:
            return True
        return self.view.state == "failed" and not self._may_be_saved_yet()

    def is_obeying(self, *kinds: OrderKind) -> bool:
        """Whether an order of one of these kinds is being obeyed."""
        return any(order.kind in kinds for order, _ in self.active.values())

    def sealed(self) -> Restore | None:
        """The commit after which no rank has run; None while there is none."""
        return self.saves.closing if self.view.state == "drained" else None

    def drain(self, *, for_notice: bool = False) -> None:
        """Have the ranks stop after the same step and stage it."""
        is_first_reason = self.only_noticed or not self.drain_asked
        self.only_noticed = for_notice and is_first_reason
        self.drain_asked = True
        self.ranks.request_drain()

    def undrain(self) -> None:
        """Nobody wants the ranks' last state any more."""
        self.drain_asked, self.only_noticed = False, False

    def end(self, state: AgentState, error: CloudshiftError | None = None) -> None:
        """The attempt is over; the first word about it counts."""
        if self.ended_at is not None:
            return
        self.ranks.kill()
        self.retention.pause()
        self.ended_at = self.world.monotonic()
        self.board.update(state=state)
        if error is not None:
            self.board.update(error=f"{type(error).__name__}: {error.message}")
        elif state == "failed" and self.view.error is not None:
            failure = self.view.error
            self.board.update(
                error=failure.message, error_rank=failure.rank, traceback=failure.traceback
            )

    def back_to_gate(self) -> None:
        """Be a standby again, with ranks that wait: what they had done is given up."""
        self.tenure.owned = False
        self.undrain()
        self._failed_at = None
        self.saves.start_over()
        self.ranks.start(None, standby=True)
        self.view = self.ranks.poll()

    def settle(self) -> None:
        """End the attempt when the ranks have ended and what they left behind is committed."""
        if self.view.state not in ("finished", "failed"):
            return
        if self.view.state == "finished" and self.view.step is None:
            self.board.warn("no step was seen: does the script use session.steps and session.step?")
        is_owed = self.is_owner and self._is_save_owed()
        refusal = self.refusal() if is_owed else None
        if (is_owed and refusal is None) or self.is_stranded:
            return
        self.give_back()
        if self.view.state == "finished" and refusal is not None:
            self.end("failed", refusal)
        self.end("failed" if self.view.state == "failed" else "finished")

    def _is_save_owed(self) -> bool:
        if not self.saves.is_owed(self.view):
            return False
        if self.view.state == "finished" or self.is_stranded:
            return True
        return self._may_be_saved_yet()

    def is_left_unsaved(self) -> bool:
        """Whether what the ranks have staged is not committed, and may still be."""
        return self.saves.is_owed(self.view) and self.saves.refused(self.view) is None

    def _may_be_saved_yet(self) -> bool:
        now = self.world.monotonic()
        self._failed_at = now if self._failed_at is None else self._failed_at
        return now - self._failed_at < LAST_WORDS_S

    def give_back(self) -> None:
        """Forget what the policy says, release the run; a refusal must not keep us from the end.

        Raises:
            Fenced: The run is not ours any more.
            Unavailable: The store is away; to be tried again.
        """
        if not self.is_owner:
            return
        for part in (self.retention.finish, self.tenure.release):
            try:
                part()
            except (Fenced, Unavailable):
                raise
            except CloudshiftError as error:
                self.board.warn(error.message)

    # -- what is in the way ------------------------------------------------------------------------

    def refuse_foreign(self) -> None:
        """Raise ``Conflict`` unless the run is ours."""
        if not self.is_owner:
            raise Conflict("this agent does not own the run; ask the one that does")

    def refuse_failed(self) -> None:
        """Raise ``Conflict`` when the ranks have failed."""
        if self.view.state == "failed":
            error = self.view.error
            raise Conflict(f"the ranks failed: {error.message if error else 'see their logs'}")

    def refuse_vain(self) -> None:
        """Raise when what the ranks staged last cannot be saved, though the attempt goes on."""
        if (why := self.vain_save()) is not None:
            raise CloudshiftError(
                f"{why}: it is tried again, and training then goes on here; mend the cause, "
                "then try this again"
            )

    def refusal(self) -> CloudshiftError | None:
        """That an attempt ends though what the ranks staged last is not saved."""
        what = self.vain_save()
        return None if what is None else self._resumable(what)

    def vain_save(self) -> str | None:
        """That what the ranks staged last cannot be saved, once that is certain."""
        has_ended = self.view.state in ("drained", "finished", "failed")
        reason = self.saves.refused(self.view) if has_ended else None
        return reason and f"step {self.view.staged_step} could not be saved ({reason})"

    def stuck_since(self, moved_at: float) -> CloudshiftError | None:
        """That the ranks will never stop by themselves; what follows a loop may take its time."""
        is_training = self.view.state != "drained" and not self.view.staged_last
        if not is_training or self.world.monotonic() - moved_at < STOP_PATIENCE_S:
            return None
        waited = f"{STOP_PATIENCE_S / 60:.0f} minutes"
        return self._resumable(f"the ranks finished no step for {waited} and were ended")

    def _resumable(self, what: str) -> CloudshiftError:
        """What went wrong, what was kept, and how to go on."""
        step = self.board.status.committed_step
        kept = "no step was committed" if step is None else f"the last committed step is {step}"
        return CloudshiftError(
            f"{what}; {kept}: mend the cause, "
            f"then continue with `cloudshift resume {self.job.run_id}`"
        )
