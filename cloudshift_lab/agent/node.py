"""The node agent as a state machine: one ``tick`` at a time, no thread or process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from cloudshift_lab.agent.board import Board
from cloudshift_lab.agent.cadence import Cadence
from cloudshift_lab.agent.moves import Mover
from cloudshift_lab.agent.protocols import RanksProtocol, RanksView, Restore, SaverProtocol
from cloudshift_lab.agent.retention import CollectorProtocol, Retention
from cloudshift_lab.agent.saves import Saves
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, NotFound, Unavailable
from cloudshift_lab.core.orders import (
    AgentState,
    AgentStatus,
    Order,
    OrderKind,
    OrderResult,
    inbox_key,
)
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.lease import TTL_S
from cloudshift_lab.storage.store import Store

INBOX_EVERY_S = 0.4
INBOX_BUSY_S = 0.1
LAST_WORDS_S = 60.0
STOP_PATIENCE_S = 1800.0
_ENDING: tuple[OrderKind, ...] = ("stop", "retire")
_IN_TURN: tuple[OrderKind, ...] = ("precopy", "copy", "verify", "go")

Activity = Iterator[OrderResult]


class NodeAgent:
    """Owns one attempt of a run on one node: its ranks, its saves, its orders.

    Everything that a crash, a slow store or a second owner could break is decided here, so that
    the simulation can run this very class. Invariants:

    - ranks run only while this generation owns the run (a standby's wait at the gate);
    - a step is committed only by its owner, with every object it names already in the store;
    - after ``Fenced`` nothing is published but the status that says so.

    Args:
        job: What to run; ``standby`` decides whether the run is acquired at once.
        store: The attempt's own store.
        source_store: Where a standby copies its state from; None otherwise.
        world: Clock and nonces.
        ranks: The ranks of this node.
        saver: Uploads what the ranks staged.
        collector: Deletes what nothing in the store refers to any more; None: somebody else does.
        ttl_s: Time to live of the lease, seconds.
    """

    def __init__(
        self,
        job: JobSpec,
        *,
        store: Store,
        source_store: Store | None,
        world: World,
        ranks: RanksProtocol,
        saver: SaverProtocol,
        collector: CollectorProtocol | None = None,
        ttl_s: float = TTL_S,
    ) -> None:
        self._job = job
        self._store = store
        self._source_store = source_store
        self._world = world
        self._ranks = ranks
        self._saver = saver
        self._tenure = Tenure(store, job, world, ttl_s)
        self._view = RanksView()
        self._begun = False
        self._drain_asked = False
        self._next_order = 0
        self._active: dict[str, tuple[Order, Activity]] = {}
        self._due_at: dict[str, float] = {}
        self._failed_at: float | None = None
        self._board = Board(store, job, world)
        self._retention = Retention(
            store, job, self._tenure, self._board, world, collector=collector
        )
        self._saves = Saves(
            self._tenure, ranks, saver, self._board, world,
            cadence=Cadence(job, ranks, world), retention=self._retention,
        )  # fmt: skip
        self._ended_at: float | None = None

    @property
    def status(self) -> AgentStatus:
        """The newest status, published or about to be."""
        return self._board.status

    @property
    def finished(self) -> bool:
        """True once the attempt has ended and said so: the process may exit."""
        if self._ended_at is None:
            return False
        return self._board.is_told() or self._world.monotonic() - self._ended_at > LAST_WORDS_S

    def stop(self) -> None:
        """Ask, as an order would, for a last commit and the end (the machine wants us gone)."""
        self._accept(Order(order_id="signal", kind="stop", at=self._world.now()))

    def note(self, topic: str, message: str) -> None:
        """Show a warning in the status that is not about the ranks; one per topic."""
        self._board.note(topic, message)

    def tick(self) -> None:
        """Do what is due now; returns soon, except for a slice of copying or one store call."""
        if self.finished:
            return
        if self._ended_at is None:
            self._view = self._ranks.poll()
            self._work()
        self._refresh()
        self._board.publish()

    # -- what a tick consists of ------------------------------------------------------------------

    def _work(self) -> None:
        parts = (
            self._begin, self._beat, self._save, self._read_inbox, self._obey, self._settle,
            self._tidy,
        )  # fmt: skip
        for part in parts:
            try:
                part()
            except Fenced as error:
                self._end("fenced", error)
            except CloudshiftError as error:
                self._board.warn(error.message)
                if not self._begun and not isinstance(error, Unavailable):
                    self._end("failed", error)
            if self._ended_at is not None:
                return

    def _begin(self) -> None:
        if self._begun:
            return
        if self._job.standby:
            self._ranks.start(None, standby=True)
        else:
            restore = self._tenure.acquire()
            self._saves.continue_from(restore)
            self._ranks.start(restore, standby=False)
        self._begun = True

    def _beat(self) -> None:
        running = self._view.state in ("starting", "running")
        if self._tenure.owned and self._tenure.beat() and running:
            self._tenure.check()

    def _save(self) -> None:
        if self._tenure.owned:
            self._saves.tick(self._view)

    def _tidy(self) -> None:
        """Forget and collect old steps while nothing else is to be done."""
        if self._tenure.owned:
            is_quiet = self._view.state == "running" and not self._active and not self._drain_asked
            self._saves.keep(self._view, is_quiet=is_quiet)

    def _read_inbox(self) -> None:
        is_moving = self._job.standby or bool(self.status.results)
        if not self._due("inbox", INBOX_BUSY_S if is_moving else INBOX_EVERY_S):
            return
        while True:
            key = inbox_key(self._job.run_id, self._job.generation, self._next_order)
            try:
                data = self._store.get(key)
            except NotFound:
                return
            self._next_order += 1
            self._accept(from_json(data, Order, what=key))

    def _accept(self, order: Order) -> None:
        """Take an order once; one that ends the attempt calls off the others."""
        if order.order_id in self.status.results or order.order_id in self._active:
            return
        if order.kind in _ENDING:
            self._call_off(*(kind for kind in get_args(OrderKind) if kind not in _ENDING))
        if order.kind == "resume":
            self._call_off("drain")
        self._active[order.order_id] = (order, self._activity(order))
        self._report(order, OrderResult(state="running"))

    def _call_off(self, *kinds: OrderKind) -> None:
        for order, _ in list(self._active.values()):
            if order.kind in kinds:
                error = Conflict(f"'{order.kind}' was overtaken by a later order; ask again")
                self._report(order, _failure(error))

    def _obey(self) -> None:
        waits_for_turn = False
        for order, activity in list(self._active.values()):
            if order.kind in _IN_TURN:
                if waits_for_turn:
                    continue
                waits_for_turn = True
            try:
                self._report(order, next(activity))
            except Fenced as error:
                self._report(order, _failure(error))
                raise
            except Unavailable as error:
                self._board.warn(error.message)
                self._active[order.order_id] = (order, self._activity(order))
            except CloudshiftError as error:
                self._report(order, _failure(error))
            if self._ended_at is not None:
                return

    def _report(self, order: Order, result: OrderResult) -> None:
        self._board.update(results={**self.status.results, order.order_id: result})
        if result.state != "running":
            self._active.pop(order.order_id, None)

    def _settle(self) -> None:
        """End the attempt when the ranks have ended and what they left behind is committed."""
        if self._view.state not in ("finished", "failed"):
            return
        if self._view.state == "finished" and self._view.step is None:
            self._board.warn(
                "no step was seen: does the script use session.steps and session.step?"
            )
        is_owed = self._tenure.owned and self._is_save_owed()
        refusal = self._refusal() if is_owed else None
        if is_owed and refusal is None:
            return
        self._give_back()
        if self._view.state == "finished" and refusal is not None:
            self._end("failed", refusal)
        self._end("failed" if self._view.state == "failed" else "finished")

    def _is_save_owed(self) -> bool:
        if not self._saves.is_owed(self._view):
            return False
        if self._view.state == "finished":
            return True
        now = self._world.monotonic()
        self._failed_at = now if self._failed_at is None else self._failed_at
        return now - self._failed_at < LAST_WORDS_S

    # -- orders -----------------------------------------------------------------------------------

    def _activity(self, order: Order) -> Activity:
        """An iterator whose last item is the outcome; safe to begin again after a failed call."""
        obey: dict[OrderKind, Callable[[Order], Activity]] = {
            "precopy": self._obey_precopy,
            "copy": self._obey_copy,
            "verify": self._obey_verify,
            "go": self._obey_go,
            "drain": self._obey_drain,
            "resume": self._obey_resume,
            "retire": self._obey_retire,
            "stop": self._obey_stop,
        }
        return obey[order.kind](order)

    def _obey_precopy(self, _order: Order) -> Activity:
        yield from self._mover().precopy()

    def _obey_copy(self, order: Order) -> Activity:
        yield from self._mover().copy_step(order)

    def _obey_verify(self, order: Order) -> Activity:
        yield from self._mover().verify_step(order)

    def _obey_go(self, order: Order) -> Activity:
        while not self._tenure.owned:
            restore = self._tenure.adopt(order.step)
            if restore is None:
                yield OrderResult(state="running", detail="waiting for the commit in the log")
                continue
            self._saves.continue_from(restore)
            if self._view.state == "absent":
                self._ranks.start(restore, standby=False)
            else:
                self._ranks.go(restore)
        while self._view.first_step_at is None and self._view.state != "finished":
            self._refuse_failed()
            yield OrderResult(state="running", detail="restoring")
        yield OrderResult(state="done", step=self._view.step)

    def _obey_drain(self, _order: Order) -> Activity:
        self._refuse_foreign()
        self._drain_asked = True
        self._ranks.request_drain()
        while (sealed := self._sealed()) is None:
            self._refuse_failed()
            if (why := self._vain_save()) is not None:
                raise CloudshiftError(
                    f"{why}: it is tried again, and training then goes on here; mend the cause, "
                    "then try this again"
                )
            if self._view.state == "finished":
                raise Conflict("the run finished before it could be drained; nothing is to be done")
            yield OrderResult(state="running", detail=self._view.state)
        yield OrderResult(state="done", step=sealed.step, manifest_digest=sealed.manifest_digest)

    def _obey_resume(self, _order: Order) -> Activity:
        if not self._drain_asked:
            yield OrderResult(state="done", detail="never drained")
            return
        while (sealed := self._sealed()) is None:
            self._refuse_failed()
            if self._view.state == "finished":
                yield OrderResult(state="done", detail="finished")
                return
            detail = self._vain_save() or "waiting for the drained step"
            yield OrderResult(state="running", detail=detail)
        self._tenure.check()
        self._saves.continue_from(sealed)
        self._ranks.start(sealed, standby=False)
        self._drain_asked = False
        self._view = self._ranks.poll()
        while self._view.state not in ("running", "finished"):
            self._refuse_failed()
            yield OrderResult(state="running", detail="restoring")
        yield OrderResult(state="done", step=sealed.step)

    def _obey_retire(self, _order: Order) -> Activity:
        self._end("retired")
        yield OrderResult(state="done")

    def _obey_stop(self, _order: Order) -> Activity:
        if self._tenure.owned and (self._view.state in ("running", "drained") or self._drain_asked):
            self._drain_asked = True
            self._ranks.request_drain()
            step, moved_at = self._view.step, self._world.monotonic()
            while self._sealed() is None and self._view.state not in ("failed", "finished"):
                if self._view.step != step:
                    step, moved_at = self._view.step, self._world.monotonic()
                if (why := self._refusal() or self._stuck_since(moved_at)) is not None:
                    self._give_back()
                    self._end("failed", why)
                    yield _failure(why)
                    return
                yield OrderResult(state="running", detail=self._view.state)
        while self._view.state in ("failed", "finished"):
            yield OrderResult(state="running", detail=self._view.state)  # until _settle ends it
        self._give_back()
        self._end("stopped")
        yield OrderResult(state="done", step=self.status.committed_step)

    # -- what they share ---------------------------------------------------------------------------

    def _mover(self) -> Mover:
        source = self._source_store
        if source is None:
            raise Conflict("this agent has no source to copy from; start it as a standby")
        talk = self._board.publish
        return Mover(
            source, self._store, self._job.run_id, self._world,
            generation=self._job.generation, talk=talk,
        )  # fmt: skip

    def _sealed(self) -> Restore | None:
        """The commit after which no rank has run; None while there is none."""
        return self._saves.closing if self._view.state == "drained" else None

    def _refusal(self) -> CloudshiftError | None:
        """That an attempt ends though what the ranks staged last is not saved."""
        what = self._vain_save()
        return None if what is None else self._resumable(what)

    def _vain_save(self) -> str | None:
        """That what the ranks staged last cannot be saved, once that is certain."""
        has_ended = self._view.state in ("drained", "finished", "failed")
        reason = self._saves.refused(self._view) if has_ended else None
        return reason and f"step {self._view.staged_step} could not be saved ({reason})"

    def _stuck_since(self, moved_at: float) -> CloudshiftError | None:
        """That the ranks will never stop by themselves; what follows a loop may take its time."""
        is_training = self._view.state != "drained" and not self._view.staged_last
        if not is_training or self._world.monotonic() - moved_at < STOP_PATIENCE_S:
            return None
        waited = f"{STOP_PATIENCE_S / 60:.0f} minutes"
        return self._resumable(f"the ranks finished no step for {waited} and were ended")

    def _resumable(self, what: str) -> CloudshiftError:
        """What went wrong, what was kept, and how to go on."""
        step = self.status.committed_step
        kept = "no step was committed" if step is None else f"the last committed step is {step}"
        return CloudshiftError(
            f"{what}; {kept}: mend the cause, "
            f"then continue with `cloudshift resume {self._job.run_id}`"
        )

    def _give_back(self) -> None:
        """Forget what the policy says, release the run; a refusal must not keep us from the end.

        Raises:
            Fenced: The run is not ours any more.
            Unavailable: The store is away; to be tried again.
        """
        if not self._tenure.owned:
            return
        for part in (self._retention.finish, self._tenure.release):
            try:
                part()
            except (Fenced, Unavailable):
                raise
            except CloudshiftError as error:
                self._board.warn(error.message)

    def _refuse_foreign(self) -> None:
        if not self._tenure.owned:
            raise Conflict("this agent does not own the run; drain the one that does")

    def _refuse_failed(self) -> None:
        if self._view.state == "failed":
            error = self._view.error
            raise Conflict(f"the ranks failed: {error.message if error else 'see their logs'}")

    # -- status -----------------------------------------------------------------------------------

    def _end(self, state: AgentState, error: CloudshiftError | None = None) -> None:
        if self._ended_at is not None:
            return
        self._ranks.kill()
        self._saver.close()
        self._retention.pause()
        for order, _ in list(self._active.values()):
            is_done = order.kind in _ENDING
            called_off = Conflict(f"the attempt ended as '{state}' before this order was obeyed")
            self._report(order, OrderResult(state="done") if is_done else _failure(called_off))
        self._ended_at = self._world.monotonic()
        self._board.update(state=state)
        if error is not None:
            self._board.update(error=f"{type(error).__name__}: {error.message}")
        elif state == "failed" and self._view.error is not None:
            failure = self._view.error
            self._board.update(
                error=failure.message, error_rank=failure.rank, traceback=failure.traceback
            )

    def _refresh(self) -> None:
        view, status = self._view, self.status
        if view.warning is not None:
            self._board.note("ranks", view.warning)
        self._board.update(
            state=status.state if self._ended_at is not None else self._state(),
            step=status.step if view.step is None else view.step,
            loss=status.loss if view.loss is None else view.loss,
            staged_step=view.staged_step,
            state_bytes=view.state_bytes or status.state_bytes,
            first_step_at=status.first_step_at or view.first_step_at,
            last_step_at=view.last_step_at or status.last_step_at,
        )

    def _state(self) -> AgentState:
        if self._drain_asked:
            return "draining" if self._sealed() is None else "drained"
        if self._view.state == "gate":
            return "standby"
        return "starting" if self._view.state in ("absent", "starting") else "running"

    def _is_past(self, name: str) -> bool:
        return self._world.monotonic() >= self._due_at.get(name, float("-inf"))

    def _due(self, name: str, every_s: float) -> bool:
        """Whether it is time for ``name``; if so, the next time is ``every_s`` from now."""
        if not self._is_past(name):
            return False
        self._due_at[name] = self._world.monotonic() + every_s
        return True


def _failure(error: CloudshiftError) -> OrderResult:
    return OrderResult(state="failed", error_kind=type(error).__name__, error=error.message)
