"""Looking after one run: its moves, its agent's word, its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cloudshift_lab.conductor.automation import load_automation
from cloudshift_lab.conductor.budgets import is_spent, keep_budget, used_up_words
from cloudshift_lab.conductor.ending import ended_as, loss_words
from cloudshift_lab.conductor.healing import Loss, Ruled, decide, held_words, loss_of, restart
from cloudshift_lab.conductor.inbox import ends_attempt
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.moves import Move, Surroundings, journal_path
from cloudshift_lab.conductor.noticing import (
    check_notice,
    heard,
    knows,
    notice_view,
    noticed_generation,
)
from cloudshift_lab.conductor.records import (
    AttemptStarted,
    MoveOpened,
    NoticeGiven,
    Outcome,
    RestartHeld,
    RunRecord,
    RunResumed,
    Settled,
    StopAsked,
)
from cloudshift_lab.conductor.resuming import (
    newest_commit_step,
    refuse_lost_checkpoint,
    refuse_resume,
    resumed_attempt,
    take_over_origin,
)
from cloudshift_lab.conductor.side import Side
from cloudshift_lab.core.asks import NoticeAsk, NoticeView
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    Exhausted,
    NotFound,
    Unavailable,
    UsageError,
)
from cloudshift_lab.core.orders import AgentStatus, Order
from cloudshift_lab.core.plan import Plan
from cloudshift_lab.telemetry.spool import Ingest, replay

_LOOK_EVERY_S = 1.0
_REPLAY_EVERY_S = 20.0
_SILENCE_S = 45.0
_STOP_GRACE_S = 15.0
_LEFTOVER_S = 90.0
_FOLLOW_S = 20.0
_OUTCOMES: dict[str, Outcome] = {"stopped": "stopped", "finished": "finished", "failed": "failed"}


class RunTender:
    """One run and everything the conductor does for it.

    ``tick`` is for one thread at a time; everything else may be called from any thread.

    Args:
        record: The run's journal.
        around: What the conductor shares.
        ingest: Takes spooled telemetry.
        changed: Called when there is something new to see.
    """

    def __init__(
        self,
        record: RunRecord,
        around: Surroundings,
        *,
        ingest: Ingest,
        changed: Callable[[], None],
    ) -> None:
        self.record = record
        self.lock = threading.RLock()
        self.status: AgentStatus | None = None
        self.trouble: str | None = None
        self.ruled: Ruled | None = None
        self._around = around
        self._ingest = ingest
        self._changed = changed
        self._sides: dict[int, Side] = {}
        self._swept: set[int] = set()
        self._troubles: dict[str, str] = {}
        self._look_at = float("-inf")
        self._replay_at = float("-inf")
        self.moves = self._load_moves()

    @property
    def run_id(self) -> str:
        return self.record.run_id

    @property
    def owner(self) -> AttemptStarted:
        """The attempt that the run belongs to, as far as the sagas say."""
        moved = [move.generations[-1] for move in self.moves.values() if move.saga.is_committed]
        generation = max(min(self.record.attempts), *self.record.resumed, *moved, 0)
        return self.record.attempts[generation].started

    @property
    def newest_commit_step(self) -> int | None:
        """The newest step that is known to be committed, across attempts."""
        sagas = [move.saga for move in self.moves.values()]
        return newest_commit_step(self.record, self.status, sagas)

    @property
    def open_move(self) -> Move | None:
        """The move that waits for a decision or is under way; there is at most one."""
        return next((move for move in self.moves.values() if move.is_open), None)

    @property
    def is_live(self) -> bool:
        """Whether ticks still have something to do."""
        return not self.record.is_settled or any(not m.is_done for m in self.moves.values())

    # -- asked by people -------------------------------------------------------------------

    def open(self, opened: MoveOpened, plan: Plan) -> Move:
        """Keep a new plan.

        Raises:
            Conflict: Another move is open; names it.
            UsageError: The run does not run any more.
        """
        with self.lock:
            self.refuse_immovable()
            self.record.keep(opened)
            move = Move(opened, self.record, self._around, lock=self.lock, plan=plan)
            self.moves[opened.migration_id] = move
        self._changed()
        return move

    def refuse_immovable(self) -> None:
        """Raise what stands against a new move now: Conflict or UsageError."""
        if self.record.ended is not None:
            raise UsageError(
                f"{self.run_id} is {self.record.ended.state}; only a running run can move"
            )
        if self.record.stop_asked is not None:
            raise UsageError(f"{self.run_id} is stopping; only a running run can move")
        other = self.open_move
        if other is not None:
            raise Conflict(
                f"{other.plan.migration_id} of {self.run_id} to {other.plan.target.target} is "
                f"still {other.saga.phase}; finish or reject that move first"
            )
        if self.status is None or self.status.first_step_at is None:
            raise UsageError(f"{self.run_id} is still starting; wait for its first step")

    def ask_to_stop(self, why: str = "") -> None:
        """Want the run to save and stop; a move that is under way is rolled back or finished."""
        with self.lock:
            if self.record.ended is None and self.record.stop_asked is None:
                self.record.keep(StopAsked(at=self._around.world.now(), why=why))
        self._hold(f"it was stopped; continue it with `cloudshift resume {self.run_id}`")

    def notice(self, ask: NoticeAsk, *, says: str = "") -> NoticeView:
        """Take in that a machine will be taken away, as ``says`` tells; what can be done before.

        Raises:
            UsageError: The run has ended, or the notice is for the target of a move that is none.
            Exhausted: The journal's disk is full; nothing was begun.
        """
        check_notice(ask)
        with self.lock:
            if self.record.ended is not None:
                raise UsageError(f"{self.run_id} is {self.record.ended.state}; nothing runs there")
            move = self.open_move
            own, saga = self.owner.job.generation, None if move is None else move.saga
            target = move.generations[-1] if move is not None and move.is_under_way else None
            generation = noticed_generation(self.run_id, ask, saga, own=own, target=target)
            now = self._around.world.now()
            view = notice_view(self.run_id, ask, self.status, saga, now=now, says=says)
            self.record.keep(NoticeGiven(generation=generation, view=view))
            if move is not None:
                move.driver.notice(ask.side, view.deadline)
        self._changed()
        return view

    def resume(self) -> None:
        """Continue an ended run from its newest commit, where it was, as a new generation.

        Raises:
            UsageError: It has not ended, or it has finished.
            Conflict: The end of a move is still being settled.
            Exhausted: Its budget is used up.
            NotFound: Its store lost what was committed; nothing is started.
        """
        self._go_on(None)

    def _go_on(self, loss: Loss | None) -> None:
        """Begin the next attempt of an ended run; where it was lost, for no person's asking."""
        world = self._around.world
        with self.lock:
            self._refuse_resume()
            step, side = self.newest_commit_step, self.side(self.owner)
        step = refuse_lost_checkpoint(side.store, self.run_id, step, world)
        with self.lock:
            self._refuse_resume()
            attempt = resumed_attempt(
                self.owner,
                generation=self.record.next_generation,
                restore_step=step,
                folder=self._around.run_folder(self.run_id),
                exclude=self._around.cordoned(),
                world=world,
            )
            resumed = RunResumed(attempt=attempt)
            if loss is not None:
                resumed = restart(
                    self.record, loss, attempt, self.status,
                    machine=side.machine(), around=self._around,
                )  # fmt: skip
            self.record.keep(resumed)
            self.status = self.ruled = None
            self._look_at = self._replay_at = float("-inf")
        self._changed()

    def _refuse_resume(self) -> None:
        is_moving = self.open_move is not None
        refuse_resume(self.record, is_moving=is_moving)
        budget = self.record.budget_micro_usd
        if budget is not None and is_spent(self, self._around):
            raise Exhausted(used_up_words(self.record, budget))

    def submit(self) -> None:
        """Start the owner, unless it was started before.

        Raises:
            Unavailable: It may start yet; the next tick tries again.
            Exception: Whatever else the engine says: the run has failed, and says so.
        """
        try:
            side = self.side(self.owner)
            take_over_origin(self.record.created, side, self._around.world)
            side.submit()
        except Unavailable:
            raise
        except Exception as error:
            text = error.message if isinstance(error, CloudshiftError) else str(error)
            is_restart = self.owner.job.generation in self.record.restarts
            outcome: Outcome = "lost" if is_restart else "failed"
            self._keep_end(outcome, f"could not be started: {text}", None, is_gone=is_restart)
            raise

    def logs(self, rank: int | None, tail: int) -> str:
        """The newest lines of the owner's rank or agent."""
        return self.side(self.owner).logs(rank, tail)

    def side(self, attempt: AttemptStarted) -> Side:
        """The way to an attempt's agent and store."""
        with self.lock:
            generation = attempt.job.generation
            if generation not in self._sides:
                self._sides[generation] = Side(
                    "the run",
                    attempt.job,
                    self._around.engine,
                    open_store=self._around.places.store,
                    world=self._around.world,
                )
            return self._sides[generation]

    # -- ticking ---------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due. What a store or an engine refuses is shown as ``trouble``, and retried.

        Invariant: while a move is under way only its saga judges the attempts.
        """
        parts = [self._call_off_move, self._pass_notices_on, self._push_moves]
        now = self._around.world.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            parts += [self._look_after, self._heal, self._hear_machines, self._keep_budget]
            parts += [self._sweep, self._replay]
            self._troubles.clear()
        for part in parts:
            try:
                part()
            except CloudshiftError as error:
                self._troubles[part.__name__] = error.message
            except OSError as error:
                self._troubles[part.__name__] = (
                    f"the conductor cannot write ({error.strerror}); free disk space"
                )
        trouble = "; ".join(self._troubles.values()) or None
        if trouble != self.trouble:
            self.trouble = trouble
            self._changed()

    def _pass_notices_on(self) -> None:
        """Tell the agents whose machines go; each is told once, however often that is tried."""
        now = self._around.world.now()
        for generation, view in self.record.notices.items():
            attempt = self.record.attempts.get(generation)
            is_over = self.record.ended is not None or now >= view.deadline
            is_over = is_over or knows(self.status, generation, view)
            if attempt is None or attempt.ended_at is not None or is_over:
                continue
            self.side(attempt.started).line.send(
                Order(
                    order_id=f"{self.run_id}:notice:{generation}:{view.at:.3f}",
                    kind="notice",
                    at=now,
                    within_s=view.deadline - now,
                )
            )

    def _hear_machines(self) -> None:
        """What a machine has heard of its own end counts as if a person had said it."""
        self._hear(self.status)
        move = self.open_move
        if move is not None and move.is_under_way and not move.saga.is_committed:
            target = self.record.attempts.get(move.generations[-1])
            self._hear(None if target is None else self.side(target.started).line.look())

    def _hear(self, status: AgentStatus | None) -> None:
        now, move = self._around.world.now(), self.open_move
        source = None if move is None else move.plan.generation
        ask = heard(status, self.record.notices, source, now=now)
        if status is not None and ask is not None and self.record.ended is None:
            self.notice(ask, says=status.notice_from)

    def _push_moves(self) -> None:
        for move in list(self.moves.values()):
            if not move.is_done and move.tick():
                self._changed()

    def _look_after(self) -> None:
        """Read the agent's word; start what was never started; see the end when it is there."""
        if self.record.ended is not None:
            return
        side = self.side(self.owner)
        if not side.was_started():
            self.submit()
        was_gone = side.is_gone()
        status = side.line.look()
        if status is not None and status != self.status:
            self.status = status
            self._changed()
        if self._is_under_way():
            return
        if status is not None and ends_attempt(status):
            self._end(status)
        elif was_gone:
            self._lose(status)
        elif self.record.stop_asked is not None:
            self._stop(side)
        elif side.line.silent_for_s() > _SILENCE_S:
            raise Unavailable(
                f"the agent of {self.run_id} has said nothing for "
                f"{side.line.silent_for_s():.0f} s; check its machine and its store"
            )

    def _is_under_way(self) -> bool:
        return any(move.is_under_way for move in self.moves.values())

    def _stop(self, side: Side) -> None:
        side.line.order(f"{self.run_id}:stop:{side.job.generation}", "stop")
        if side.line.silent_for_s() > _SILENCE_S:
            side.stop(_STOP_GRACE_S)

    def _end(self, status: AgentStatus) -> None:
        outcome = _OUTCOMES.get(status.state)
        error = status.error
        if outcome is None:
            outcome = "lost"
            error = (
                f"another owner has taken {self.run_id} over ({status.state}); "
                "look for it in the conductor that started the move"
            )
        self._keep_end(outcome, error, status)

    def _lose(self, status: AgentStatus | None) -> None:
        step = self.newest_commit_step
        kept = "nothing was saved" if step is None else f"step {step} is saved"
        asked = self.record.stop_asked
        if asked is not None:
            error = f"ended without a last save; {kept}"
            self._keep_end("stopped", f"{asked.why}; {error}" if asked.why else error, status)
            return
        self._hear(status)  # its last word may be one that was never read before it was gone
        now = self._around.world.now()
        error = loss_words(self.record, self.owner, status, kept=kept, now=now)
        self._keep_end("lost", error, status, is_gone=True)

    def _keep_end(
        self, state: Outcome, error: str | None, status: AgentStatus | None, *,
        is_gone: bool = False,
    ) -> None:  # fmt: skip
        asked = self.record.stop_asked
        why_stopped = asked.why if asked is not None and state == "stopped" else ""
        words, now = error or why_stopped or None, self._around.world.now()
        with self.lock:
            self.record.keep(ended_as(state, now, words, status, is_gone=is_gone))
        self._changed()

    def _heal(self) -> None:
        """Start a lost run again where that is allowed; keep why not where it is not."""
        if not self.record.awaits_restart:
            return
        loss = loss_of(self.record, self.owner, self.newest_commit_step)
        automation, restarts = load_automation(self._around.root), self.record.restarts
        ruled = decide(loss, tuple(restarts.values()), automation, self._around.world.now())
        if ruled != self.ruled:
            self.ruled = ruled
            self._changed()
        if ruled.verdict == "held":
            self._hold(held_words(self.run_id, ruled.words))
        elif ruled.verdict == "now":
            self._restart(loss)

    def _restart(self, loss: Loss) -> None:
        self.side(self.owner).stop(_STOP_GRACE_S)  # of several nodes some may still be there
        try:
            self._go_on(loss)
        except (Exhausted, NotFound, UsageError) as error:
            self._hold(error.message)
            return
        self.submit()

    def _hold(self, because: str) -> None:
        """Leave a lost run lost until a person resumes it."""
        with self.lock:
            if self.record.awaits_restart:
                self.record.keep(RestartHeld(at=self._around.world.now(), because=because))
        self._changed()

    def _call_off_move(self) -> None:
        """A run that ends or shall stop does not move any more, where that can still be."""
        move = self.open_move
        if move is None:
            return
        if self.record.ended is not None and not move.is_under_way:
            move.driver.abort(f"the run is {self.record.ended.state}")
        elif self.record.stop_asked is not None:
            move.driver.abort("the run is being stopped")

    def _keep_budget(self) -> None:
        if keep_budget(self, self._around):
            self._changed()

    def _replay(self) -> None:
        """Take in telemetry that was spooled into the bucket while we were away.

        Once more after the last process of an ended run is gone: its last batch may be there.
        """
        now = self._around.world.monotonic()
        is_last = self.record.ended is not None and self._swept >= self.record.attempts.keys()
        if now < self._replay_at or self._is_under_way() or self.record.is_settled:
            return
        self._replay_at = now + _REPLAY_EVERY_S
        stores = {
            attempt.job.store_url: attempt.started for attempt in self.record.attempts.values()
        }
        for attempt in stores.values():
            taken = replay(self.side(attempt).store, self.run_id, self._ingest)
            if taken.num_ingested:
                self._changed()
        if is_last and not self.record.awaits_restart:
            with self.lock:
                self.record.keep(Settled(at=self._around.world.now()))

    def _sweep(self) -> None:
        """See that nothing is left of attempts that ended; what does not go is ended.

        Of several nodes only the leader is seen: the others have a while to follow it, then
        whatever is left of them is ended, before the attempt counts as gone.
        """
        now = self._around.world.now()
        for generation, attempt in self.record.attempts.items():
            if attempt.ended_at is None or generation in self._swept:
                continue
            side = self.side(attempt.started)
            over_s, has_followers = now - attempt.ended_at, attempt.job.placement.nodes > 1
            if over_s > _LEFTOVER_S or (has_followers and side.is_gone() and over_s > _FOLLOW_S):
                side.stop(_STOP_GRACE_S)
                has_followers = False
            if side.is_gone() and not has_followers:
                self._swept.add(generation)
                self._replay_at = float("-inf")

    def _load_moves(self) -> dict[str, Move]:
        folder = self._around.run_folder(self.run_id)
        return {
            migration_id: Move(opened, self.record, self._around, lock=self.lock)
            for migration_id, opened in self.record.moves.items()
            if Journal(journal_path(folder, migration_id)).replay()
        }
