"""Doing again, before the commit, what the source has done: the proof that it can go on here."""

from __future__ import annotations

import math
from collections.abc import Callable

from cloudshift_lab.agent.attempt import Activity, Attempt
from cloudshift_lab.agent.moves import Mover
from cloudshift_lab.agent.protocols import Restore
from cloudshift_lab.agent.tenure import restore_of
from cloudshift_lab.agent.watch import SourceWatch
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.core.errors import (
    Conflict,
    Corrupt,
    Exhausted,
    Mismatch,
    NotFound,
    Unsupported,
)
from cloudshift_lab.core.orders import Order, OrderResult

Prove = Callable[[int, Checkpoint], tuple[str, ...]]
"""Names what differs between a staged step of this node's ranks and a sealed step."""

_ENDED = frozenset({"stopped", "finished", "failed", "retired", "fenced"})
_MOST_NAMED = 3
STUCK_S = 120.0
STUCK_STEPS = 20


class Rehearsal:
    """The ranks of a standby repeat the source's steps, unpublished, and never overtake it.

    They restore a step that was copied from it and train on under a limit: the newest step that
    the source has said to have done. Every loss that both have told is compared. Nothing of it is
    saved, committed or reported as the run's; that begins with ``go``.

    ``origin`` is the step they were sent off from, None while they do not rehearse. ``proven`` is
    the sealed step that they hold at, staged and found equal bit by bit.

    Args:
        attempt: Whose ranks.
        watch: The source.
        mover: What was copied.
        prove: Compares staged bytes; None: this agent cannot close a move by replay.
    """

    def __init__(
        self, attempt: Attempt, watch: SourceWatch, mover: Mover, prove: Prove | None
    ) -> None:
        self._attempt = attempt
        self._watch = watch
        self._mover = mover
        self._prove = prove
        self._is_watching = False
        self._tolerance = 0.0
        self._clear()

    def _clear(self) -> None:
        self.origin: Restore | None = None
        self.proven: Restore | None = None
        self._limit: int | None = None
        self._most: int | None = None
        self._compared: set[int] = set()
        self._apart: float | None = None
        self._apart_step: int | None = None
        self._mismatch: Mismatch | None = None
        self._captured: int | None = None
        self._held_at: float | None = None

    def watch(self) -> None:
        """From now on remember what the source says: its losses are needed later."""
        self._is_watching = True

    def look_away(self) -> None:
        """What the source says matters no more: whether it is there must not either."""
        self._is_watching = False

    def tick(self) -> None:
        """Look at the source, compare what is new, let the ranks go as far as it has come.

        Raises:
            CloudshiftError: As the source's store reported; it is tried again.
        """
        if not self._is_watching or self._attempt.is_owner:
            return
        if self.proven is None:
            self._watch.tick()
        if self.origin is None or self._mismatch is not None:
            return
        if not self._compare():
            return
        if self._most is None and self._watch.step is not None:
            self._let_go_on(max(self._watch.step, self.origin.step))

    def leave(self) -> None:
        """The ranks belong to the run now, or to nobody: nothing is rehearsed any more."""
        self.look_away()
        self._clear()

    def back_to_gate(self) -> None:
        """Start the ranks again, to wait for ``go``; nothing to do when they do not rehearse."""
        self.look_away()
        if self.origin is not None:
            self._clear()
            self._attempt.ranks.start(None, standby=True)
            self._attempt.view = self._attempt.ranks.poll()

    # -- rehearse ----------------------------------------------------------------------------------

    def rehearse(self, order: Order) -> Activity:
        """Repeat steps of the source until enough of their losses were compared.

        Losses that are apart, within the order's tolerance, end it well too; but then the ranks do
        not stay: what is not repeated bit by bit cannot be caught up with.

        Raises:
            Mismatch: A loss differs; names the step and both.
            Conflict: The ranks failed, the source has ended, or the run is ours already.
        """
        self._refuse_owner()
        self.watch()
        self._tolerance = order.tolerance
        if self.origin is None:
            yield from self._send_off(order)
        wanted = max(1, order.num_steps)
        while not self._is_enough(wanted) and not self._is_blind(wanted):
            self._refuse_broken()
            self._refuse_ended_source()
            detail = f"{len(self._compared)} of {wanted} losses are the source's"
            yield OrderResult(state="running", detail=detail, step=self._attempt.view.step)
        self._refuse_broken()
        done = self._rehearsed()
        if not order.replay or done.apart is not None:
            self.back_to_gate()
            while self._attempt.view.state != "gate":
                self._attempt.refuse_failed()
                yield OrderResult(state="running", detail="back to the gate")
        yield done

    def _send_off(self, order: Order) -> Activity:
        """Restore the newest step that is here and rehearse on from it."""
        attempt = self._attempt
        while (origin := self._mover.newest_whole()) is None:
            yield from self._mover.bring_whole(order)
        while attempt.view.state != "gate":
            attempt.refuse_failed()
            yield OrderResult(state="running", detail="the ranks are not ready yet")
        self._clear()
        self.origin = origin
        self._limit = max(origin.step, self._watch.step or 0)
        attempt.ranks.go(origin, limit=self._limit)

    def _rehearsed(self) -> OrderResult:
        """What was found; a script that tells no loss is said to."""
        assert self.origin is not None
        view = self._attempt.view
        if self._compared:
            first, last = min(self._compared), max(self._compared)
            how = "equal bit by bit" if self._apart is None else f"compared, {self._how_far()}"
            detail = f"{len(self._compared)} losses {how}, steps {first} to {last}"
        else:
            detail = (
                f"ran from step {self.origin.step} to {view.step}; no loss was compared, for the "
                "script tells none: call session.step(loss=...)"
            )
        return OrderResult(
            state="done", step=view.step, step_s=view.step_s, detail=detail,
            apart=self._apart, apart_step=self._apart_step,
        )  # fmt: skip

    def _how_far(self) -> str:
        return (
            f"not bit by bit: largest relative difference {self._apart:.2g} at step "
            f"{self._apart_step} (within {self._tolerance:g})"
        )

    def _is_enough(self, wanted: int) -> bool:
        """Whether so many losses were compared, or all there are where few steps tell one."""
        if len(self._compared) >= wanted:
            return True
        num_steps, told = self._num_repeated(), self._told()
        is_sparse = 2 * len(told) <= num_steps
        return num_steps >= wanted and is_sparse and 0 < len(told) == len(self._compared)

    def _is_blind(self, wanted: int) -> bool:
        """Whether enough steps were repeated of a script that tells no (finite) losses at all."""
        if self._num_repeated() < wanted or self._told():
            return False
        return not any(math.isfinite(loss) for loss in self._watch.losses.values())

    def _num_repeated(self) -> int:
        view, origin = self._attempt.view, self.origin
        return 0 if origin is None or view.step is None else view.step - origin.step

    def _told(self) -> list[int]:
        """Steps of the rehearsal with a finite loss, of those that are still known."""
        at, losses = self.origin, self._attempt.view.losses
        return [s for s, loss in losses if at and s > at.step and math.isfinite(loss)]

    # -- catching up -------------------------------------------------------------------------------

    def catch_up(self, order: Order) -> Activity:
        """Repeat every step up to the sealed one and prove the state by its hashes.

        Raises:
            Mismatch: A loss or a hash differs, or the ranks are past the sealed step; they go back
                to the gate, and the move can still be closed by copying.
            Exhausted: There is nothing to repeat from, or the ranks have not moved for long.
            Conflict: The ranks failed, or the run is ours already.
            Unsupported: This agent cannot compare what its ranks staged.
        """
        self._refuse_owner()
        prove = self._prove
        if prove is None:
            raise Unsupported("this agent cannot prove a replayed step; close the move by copying")
        record = self._mover.commit_of(order)
        sealed = restore_of(record)
        if self.proven == sealed:
            yield self._caught_up(sealed, "proved already")
            return
        self.watch()
        checkpoint = self._mover.open_source(record)
        if self.origin is None:
            self._refuse_empty()
            yield from self._send_off(order)
        self._most = sealed.step
        self._let_go_on(sealed.step)
        moved = self._where(), self._attempt.world.monotonic()
        while not self._is_staged(sealed.step):
            self._refuse_broken()
            self._refuse_apart()
            self._refuse_past(sealed.step)
            moved = self._refuse_stuck(*moved)
            detail = f"step {self._attempt.view.step} of {sealed.step}"
            yield OrderResult(state="running", step=self._attempt.view.step, detail=detail)
        self._compare()
        self._refuse_broken()
        self._refuse_apart()
        if different := self._compare_bytes(prove, sealed.step, checkpoint):
            raise self._differs(sealed.step, different)
        self.proven = sealed
        assert self.origin is not None
        num_steps = sealed.step - self.origin.step
        names = len(checkpoint.names())
        yield self._caught_up(
            sealed, f"{num_steps} steps repeated, {names} tensors equal bit by bit"
        )

    def _caught_up(self, sealed: Restore, detail: str) -> OrderResult:
        return OrderResult(
            state="done", step=sealed.step, manifest_digest=sealed.manifest_digest,
            step_at=self._held_at, detail=detail,
        )  # fmt: skip

    def _is_staged(self, step: int) -> bool:
        """Whether the ranks hold after this step and have staged it; asks for that once."""
        view = self._attempt.view
        if view.state != "held" or view.held_step != step:
            return False
        self._held_at = self._held_at or self._attempt.world.now()
        if view.staged_step != step and self._captured != step:
            self._captured = step
            self._attempt.ranks.capture()
        return view.staged_step == step

    def _where(self) -> tuple[object, ...]:
        view = self._attempt.view
        return self._limit, view.state, view.step, view.held_step, view.staged_step

    def _refuse_empty(self) -> None:
        if self._mover.newest_whole() is None:
            raise Exhausted("no step is here to repeat from; close the move by copying")

    def _refuse_stuck(
        self, where: tuple[object, ...], since: float
    ) -> tuple[tuple[object, ...], float]:
        """Nobody trains meanwhile: ranks that do not move are given up for a copy.

        Returns:
            Where the ranks are, and since when (monotonic seconds).
        """
        now, view = self._attempt.world.monotonic(), self._attempt.view
        if where != self._where():
            return self._where(), now
        if now - since > max(STUCK_S, STUCK_STEPS * (view.step_s or 0.0)):
            why = f" ({view.warning})" if view.warning else ""
            self.back_to_gate()
            raise Exhausted(
                f"the target's ranks have not moved for {now - since:.0f} s{why}; "
                "close the move by copying"
            )
        return where, since

    def _compare_bytes(self, prove: Prove, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        try:
            return prove(step, sealed)
        except (Corrupt, NotFound) as error:
            self.back_to_gate()
            raise Mismatch(
                f"the repeated step {step} could not be compared ({error.message}); "
                "close the move by copying"
            ) from error

    def _refuse_apart(self) -> None:
        """Losses that are apart say already that the hashes will be."""
        if self._apart is not None:
            told = self._how_far()
            self.back_to_gate()
            raise Mismatch(f"the steps are repeated {told}; close the move by copying")

    def _refuse_past(self, step: int) -> None:
        view = self._attempt.view
        at = max(view.held_step or 0, view.step or 0)
        if at > step:
            self.back_to_gate()
            raise Mismatch(
                f"the target has repeated step {at} already, which the source lost: the sealed "
                f"step is {step}; close the move by copying"
            )

    def _differs(self, step: int, names: tuple[str, ...]) -> Mismatch:
        shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        self.back_to_gate()
        return Mismatch(
            f"after repeating up to step {step}, {shown}{more} differ from the source's; "
            "close the move by copying"
        )

    # -- what both share ---------------------------------------------------------------------------

    def _let_go_on(self, step: int) -> None:
        if step != self._limit:
            self._limit = step
            self._attempt.ranks.limit(step)

    def _compare(self) -> bool:
        """Compare every loss that both have told and that was not compared before.

        Returns:
            False once one differs: then nothing that follows can be proved.
        """
        origin = self.origin
        if origin is None or self._mismatch is not None:
            return False
        for step, loss in self._attempt.view.losses:
            theirs = self._watch.losses.get(step)
            if step <= origin.step or step in self._compared or theirs is None:
                continue
            by = apart_by(loss, theirs)
            if by > self._tolerance:
                self._mismatch = self._too_far(step, loss, theirs)
                self._attempt.board.note("rehearsal", self._mismatch.message)
                return False
            if by > (self._apart or 0.0):
                self._apart, self._apart_step = by, step
            self._compared.add(step)
        return True

    def _too_far(self, step: int, ours: float, theirs: float) -> Mismatch:
        """What differs, how much of it would have been let pass, and what can be done."""
        allowed = f"more than {self._tolerance:g} apart" if self._tolerance else "not bit by bit"
        return Mismatch(
            f"the loss of step {step} is {ours!r} at the target and {theirs!r} at the source, "
            f"{allowed}; the run stays where it is: compare machines and libraries, or, if the "
            "script is not deterministic, allow more with --tolerance, or move it with --rehearse "
            "0",
            step=step, target=ours, source=theirs,
        )  # fmt: skip

    def _refuse_broken(self) -> None:
        """Raise what makes all further rehearsing pointless; the ranks go back to the gate."""
        if (mismatch := self._mismatch) is not None:
            self.back_to_gate()
            raise mismatch
        self._attempt.refuse_failed()

    def _refuse_ended_source(self) -> None:
        if self._watch.state in _ENDED:
            raise Conflict(f"the source has {self._watch.state} meanwhile; nothing was moved")

    def _refuse_owner(self) -> None:
        if self._attempt.is_owner or self._attempt.tenure.has_arrived():
            raise Conflict("the run is this agent's own already; there is nothing to rehearse")


def apart_by(ours: float, theirs: float) -> float:
    """How far two losses are apart, relative to the larger: 0 bit by bit, infinity with one NaN."""
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return math.inf
    return abs(ours - theirs) / max(abs(ours), abs(theirs))
