"""What each order makes an agent do; orders of a move's closing and its way back among them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloudshift_lab.agent.attempt import Activity, Attempt
from cloudshift_lab.agent.moves import Mover
from cloudshift_lab.agent.notice import heed
from cloudshift_lab.agent.orders import failure
from cloudshift_lab.agent.protocols import Restore
from cloudshift_lab.agent.rehearsal import Rehearsal
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, Unavailable
from cloudshift_lab.core.orders import Order, OrderKind, OrderResult

FETCH_AGAIN_S = 5.0
START_AGAIN_S = 5.0
MoverOf = Callable[[Order], Mover]


class Obeying:
    """The activities behind the orders of one attempt.

    Each ends with the outcome and may be begun again at any time, after a store was away.

    Args:
        attempt: Who obeys.
        mover_of: Between which stores an order copies.
        rehearsal: The standby's ranks before the commit; None when it has no source.
    """

    def __init__(
        self, attempt: Attempt, mover_of: MoverOf, rehearsal: Rehearsal | None
    ) -> None:  # fmt: skip
        self._attempt = attempt
        self._mover_of = mover_of
        self._rehearsal = rehearsal
        self._went: Order | None = None
        self._start_at = float("-inf")
        self._by_kind: dict[OrderKind, Callable[[Order], Activity]] = {
            "precopy": self._precopy,
            "rehearse": self._rehearse,
            "save": self._save,
            "drain": self._drain,
            "copy": self._copy,
            "verify": self._verify,
            "catch_up": self._catch_up,
            "go": self._go,
            "resume": self._resume,
            "retire": self._retire,
            "stop": self._stop,
            "notice": self._notice,
        }

    def obey(self, order: Order) -> Activity:
        """An iterator whose last item is the outcome."""
        return self._by_kind[order.kind](order)

    # -- bringing state ----------------------------------------------------------------------------

    def _precopy(self, order: Order) -> Activity:
        if self._rehearsal is not None and (order.replay or order.num_steps > 0):
            self._rehearsal.watch()
        yield from self._mover_of(order).precopy(order)

    def _copy(self, order: Order) -> Activity:
        self._end_rehearsal()
        yield from self._mover_of(order).copy_step(order)

    def _end_rehearsal(self) -> None:
        """The move is closed by copying, perhaps by the source: the ranks start again meanwhile."""
        if self._rehearsal is not None:
            self._rehearsal.back_to_gate()

    def _verify(self, order: Order) -> Activity:
        self._end_rehearsal()
        yield from self._mover_of(order).verify_step(order)

    # -- before the commit -------------------------------------------------------------------------

    def _rehearse(self, order: Order) -> Activity:
        yield from self._needed_rehearsal().rehearse(order)

    def _catch_up(self, order: Order) -> Activity:
        yield from self._needed_rehearsal().catch_up(order)

    def _needed_rehearsal(self) -> Rehearsal:
        if self._rehearsal is None:
            raise Conflict("this agent has no source to repeat steps of; start it as a standby")
        return self._rehearsal

    # -- taking the run over -----------------------------------------------------------------------

    def holds_on(self) -> bool:
        """A run that has arrived, and of which nothing is saved here, does not end with its ranks.

        They wait at the gate again, and ``go`` brings the step from the source's store.

        Returns:
            Whether that is so: then the attempt must not end.

        Raises:
            Fenced: The run is not ours any more.
            Unavailable: The store is away; to be tried again.
        """
        attempt = self._attempt
        if not self._is_left_without_ranks():
            return False
        if attempt.world.monotonic() < self._start_at:
            return True
        self._start_at = attempt.world.monotonic() + START_AGAIN_S
        error = attempt.view.error
        why = error.message if error else "what they did cannot be saved"
        attempt.board.note("arrival", f"the ranks are started again: {why}")
        self._leave_rehearsal()
        attempt.back_to_gate()
        if self._went is not None and not attempt.is_obeying("go", "stop", "retire"):
            attempt.active[self._went.order_id] = (self._went, self._go(self._went))
        return True

    def _is_left_without_ranks(self) -> bool:
        attempt = self._attempt
        if attempt.is_owner or not attempt.job.standby:
            return attempt.is_lost
        return attempt.view.state in ("failed", "finished") and attempt.tenure.has_arrived()

    def _go(self, order: Order) -> Activity:
        attempt = self._attempt
        self._went = order
        if self._rehearsal is not None:
            self._rehearsal.look_away()
        while not attempt.is_owner:
            restore = attempt.tenure.adopt(order.step)
            if restore is not None:
                self._enter(restore)
            elif not attempt.tenure.has_arrived():
                yield OrderResult(state="running", detail="waiting for the commit in the log")
            elif self._is_proven(order):
                self._go_on()
            else:
                yield from self._fetch_patiently(order)
        while attempt.view.first_step_at is None and attempt.view.state != "finished":
            attempt.refuse_failed()
            yield OrderResult(state="running", detail="restoring")
        is_going = attempt.board.status.notice_until is not None
        if is_going and not attempt.is_obeying("notice", "drain"):
            # The machine goes, and whoever said so was told that nothing was here.
            attempt.drain(for_notice=True)
        yield OrderResult(state="done", step=attempt.view.step)

    def _enter(self, restore: Restore) -> None:
        """The run is ours from this commit on: let the ranks train from it."""
        attempt = self._attempt
        attempt.view = attempt.ranks.poll()  # a revived agent has only just started them
        attempt.saves.continue_from(restore)
        proven, origin = self._proven, None if self._rehearsal is None else self._rehearsal.origin
        if proven == restore:
            attempt.ranks.release(restore.step)
            attempt.ranks.limit(None)
        elif attempt.view.state in ("absent", "failed") or origin is not None:
            attempt.ranks.start(restore, standby=False)
        else:
            attempt.ranks.go(restore)
        self._leave_rehearsal()

    def _go_on(self) -> None:
        """The ranks hold at the very state: train on now, and save it meanwhile.

        Until that save is committed the step lives in the source's store alone.
        """
        attempt = self._attempt
        attempt.tenure.take()
        attempt.saves.continue_from(None)
        attempt.ranks.limit(None)
        self._leave_rehearsal()

    def _fetch_patiently(self, order: Order) -> Activity:
        """The run is here and nowhere else: what goes wrong is said, and tried again."""
        attempt = self._attempt
        try:
            yield from self._fetch(order)
        except (Fenced, Unavailable):
            raise
        except CloudshiftError as error:
            attempt.board.note("arrival", f"step {order.step} is not here yet: {error.message}")
            until = attempt.world.monotonic() + FETCH_AGAIN_S
            while attempt.world.monotonic() < until:
                yield OrderResult(state="running", detail=error.message)

    def _fetch(self, order: Order) -> Activity:
        """An agent of ours died before its first commit: bring the step from the source after all.

        Raises:
            CloudshiftError: The step is not (whole) at the source, or there is no room here.
        """
        mover = self._mover_of(order)
        for activity in (mover.copy_step(order), mover.verify_step(order)):
            for result in activity:
                if result.state == "running":
                    yield result
        self._attempt.tenure.carry_over(mover.commit_of(order))
        yield OrderResult(state="running", detail="copied and proved")

    def _is_proven(self, order: Order) -> bool:
        proven = self._proven
        return proven is not None and self._attempt.view.state == "held" and (
            (proven.step, proven.manifest_digest) == (order.step, order.manifest_digest)
        )  # fmt: skip

    @property
    def _proven(self) -> Restore | None:
        return None if self._rehearsal is None else self._rehearsal.proven

    def _leave_rehearsal(self) -> None:
        if self._rehearsal is not None:
            self._rehearsal.leave()

    # -- saving, stopping, going on ----------------------------------------------------------------

    def _save(self, order: Order) -> Activity:
        attempt = self._attempt
        attempt.refuse_foreign()
        newest = attempt.saves.newest
        wanted = attempt.view.step or (1 if newest is None else newest.step)
        attempt.saves.want(wanted, standalone=order.standalone)
        while (newest := attempt.saves.newest) is None or newest.step < wanted:
            attempt.refuse_failed()
            attempt.refuse_vain()
            yield OrderResult(state="running", detail=f"saving step {wanted} or a later one")
        yield OrderResult(state="done", step=newest.step, manifest_digest=newest.manifest_digest)

    def _drain(self, _order: Order) -> Activity:
        self._attempt.refuse_foreign()
        self._attempt.drain()
        yield from self._sealing()

    def _sealing(self) -> Activity:
        attempt = self._attempt
        while (sealed := attempt.sealed()) is None:
            attempt.refuse_failed()
            attempt.refuse_vain()
            if attempt.view.state == "finished":
                raise Conflict("the run finished before it could be drained; nothing is to be done")
            yield OrderResult(state="running", detail=attempt.view.state)
        yield OrderResult(state="done", step=sealed.step, manifest_digest=sealed.manifest_digest)

    def _notice(self, order: Order) -> Activity:
        yield from heed(self._attempt, order, self._sealing)

    def _resume(self, _order: Order) -> Activity:
        attempt = self._attempt
        if not attempt.drain_asked:
            yield OrderResult(state="done", detail="never drained")
            return
        while (sealed := attempt.sealed()) is None:
            attempt.refuse_failed()
            if attempt.view.state == "finished":
                yield OrderResult(state="done", detail="finished")
                return
            detail = attempt.vain_save() or "waiting for the drained step"
            yield OrderResult(state="running", detail=detail)
        attempt.tenure.check()
        attempt.saves.continue_from(sealed)
        attempt.ranks.start(sealed, standby=False)
        attempt.undrain()
        attempt.view = attempt.ranks.poll()
        while attempt.view.state not in ("running", "finished", "drained"):
            attempt.refuse_failed()
            yield OrderResult(state="running", detail="restoring")
        yield OrderResult(state="done", step=sealed.step)

    def _retire(self, _order: Order) -> Activity:
        self._attempt.end("retired")
        yield OrderResult(state="done")

    def _stop(self, _order: Order) -> Activity:
        attempt = self._attempt
        while attempt.is_healing and attempt.is_left_unsaved():
            yield OrderResult(state="running", detail="saving what the ranks left")
        is_training = attempt.view.state in ("running", "held", "drained") or attempt.drain_asked
        if attempt.is_owner and is_training:
            attempt.drain()
            step, moved_at = attempt.view.step, attempt.world.monotonic()
            while attempt.sealed() is None and attempt.view.state not in ("failed", "finished"):
                if attempt.view.step != step:
                    step, moved_at = attempt.view.step, attempt.world.monotonic()
                why = attempt.refusal() or attempt.stuck_since(moved_at)
                if why is not None and attempt.is_stranded:
                    attempt.back_to_gate()
                    break
                if why is not None:
                    attempt.give_back()
                    attempt.end("failed", why)
                    yield failure(why)
                    return
                yield OrderResult(state="running", detail=attempt.view.state)
        while attempt.view.state in ("failed", "finished"):
            yield OrderResult(state="running", detail=attempt.view.state)  # until settle ends it
        yield from self._bring_arrived()
        attempt.give_back()
        attempt.end("stopped")
        yield OrderResult(state="done", step=attempt.board.status.committed_step)

    def _bring_arrived(self) -> Activity:
        """Nobody could go on from a log that has no step: bring the one the run arrived with."""
        attempt = self._attempt
        while not attempt.is_owner and attempt.tenure.awaits_step():
            yield OrderResult(state="running", detail="bringing the step the run arrived with")
            arrived = Order(order_id="arrived", kind="copy", at=attempt.world.now())
            sealed = self._mover_of(arrived).sealed()
            arrived = msgspec.structs.replace(
                arrived, step=sealed.step, manifest_digest=sealed.manifest_digest
            )
            yield from self._fetch_patiently(arrived)
            if (restore := attempt.tenure.adopt(sealed.step)) is not None:
                attempt.saves.continue_from(restore)
