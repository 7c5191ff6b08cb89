"""The node agent as a state machine: one ``tick`` at a time, no thread or process of its own."""

from __future__ import annotations

from collections.abc import Callable

from cloudshift_lab.agent.attempt import LAST_WORDS_S, STOP_PATIENCE_S, Attempt
from cloudshift_lab.agent.board import Board
from cloudshift_lab.agent.cadence import Cadence
from cloudshift_lab.agent.healing import Healing
from cloudshift_lab.agent.moves import Mover
from cloudshift_lab.agent.notice import outlive
from cloudshift_lab.agent.obeying import Obeying
from cloudshift_lab.agent.orders import Orders
from cloudshift_lab.agent.protocols import RanksProtocol, SaverProtocol
from cloudshift_lab.agent.rehearsal import Prove, Rehearsal
from cloudshift_lab.agent.retention import CollectorProtocol, Retention
from cloudshift_lab.agent.saves import Saves
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.agent.watch import SourceWatch
from cloudshift_lab.core.errors import CloudshiftError, Conflict, Fenced, Unavailable, UsageError
from cloudshift_lab.core.orders import AgentState, AgentStatus, Order
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.lease import TTL_S
from cloudshift_lab.storage.store import Store
from cloudshift_lab.storage.transfer import TransferOptions

__all__ = ["LAST_WORDS_S", "STOP_PATIENCE_S", "NodeAgent"]
IN_ORDER = TransferOptions(concurrency=1)

OpenStore = Callable[[str, str], Store]
"""Opens a store by its cloud's name and its url."""


class NodeAgent:
    """Owns one attempt of a run on one node: its ranks, its saves, its orders.

    Everything that a crash, a slow store or a second owner could break is decided here, so that
    the simulation can run this very class. Invariants:

    - ranks run only while this generation owns the run, or hold below a step that its owner has
      done already: what a standby rehearses is neither saved nor reported as the run's;
    - a step is committed only by its owner, with every object it names already in the store;
    - after ``Fenced`` nothing is published but the status that says so.

    Args:
        job: What to run; ``standby`` decides whether the run is acquired at once.
        store: The attempt's own store.
        source_store: Where a standby copies its state from; None otherwise.
        watch_store: The same store to look at the source, with short deadlines: a source that is
            away must not keep us from speaking; None: ``source_store``.
        world: Clock and nonces.
        ranks: The ranks of this node.
        saver: Uploads what the ranks staged.
        collector: Deletes what nothing in the store refers to any more; None: somebody else does.
        prove: Compares what the ranks staged with a sealed step; None: no move is closed by replay.
        open_store: Opens the store of another cloud, to push there; None: nothing is pushed.
        transfers: How hard to ask stores; the default does one thing after the other.
        ttl_s: Time to live of the lease, seconds.
    """

    tenure_type: type[Tenure] = Tenure
    rehearsal_type: type[Rehearsal] = Rehearsal

    def __init__(
        self,
        job: JobSpec,
        *,
        store: Store,
        source_store: Store | None,
        world: World,
        ranks: RanksProtocol,
        saver: SaverProtocol,
        watch_store: Store | None = None,
        collector: CollectorProtocol | None = None,
        prove: Prove | None = None,
        open_store: OpenStore | None = None,
        transfers: TransferOptions = IN_ORDER,
        ttl_s: float = TTL_S,
    ) -> None:
        self._job = job
        self._store = store
        self._source_store = source_store
        self._watch_store = watch_store or source_store
        self._world = world
        self._ranks = ranks
        self._saver = saver
        self._open_store = open_store
        self._transfers = transfers
        self._begun = False
        self._board = Board(store, job, world)
        tenure = self.tenure_type(store, job, world, ttl_s)
        retention = Retention(store, job, tenure, self._board, world, collector=collector)
        saves = Saves(
            tenure, ranks, saver, self._board, world,
            cadence=Cadence(job, ranks, world), retention=retention,
        )  # fmt: skip
        self._attempt = Attempt(
            job, world, ranks, tenure, self._board, saves, retention
        )  # fmt: skip
        self._healing = Healing(self._attempt)
        self._movers: dict[str, Mover] = {}
        self._rehearsal = self._make_rehearsal(prove)
        obeying = Obeying(self._attempt, self._mover_of, self._rehearsal)
        self._obeying = obeying
        self._orders = Orders(self._attempt, store, obeying.obey)

    @property
    def status(self) -> AgentStatus:
        """The newest status, published or about to be."""
        return self._board.status

    @property
    def finished(self) -> bool:
        """True once the attempt has ended and said so: the process may exit."""
        ended_at = self._attempt.ended_at
        if ended_at is None:
            return False
        return self._board.is_told() or self._world.monotonic() - ended_at > LAST_WORDS_S

    def stop(self) -> None:
        """Ask, as an order would, for a last commit and the end (the machine wants us gone)."""
        self._orders.accept(Order(order_id="signal", kind="stop", at=self._world.now()))

    def notice(self, name: str, within_s: float, says: str) -> bool:
        """Heed, as an order would, that the machine goes; it heard that itself.

        Args:
            name: Names the notice; one that is known already changes nothing.
            within_s: Seconds that are left.
            says: Who said so, for people.

        Returns:
            False while there is no attempt yet that could heed it: say it again.
        """
        if not self._begun:
            return False
        if self._attempt.ended_at is None:
            now = self._world.now()
            self._board.update(notice_from=says)
            self._orders.accept(
                Order(order_id=name, kind="notice", at=now, within_s=within_s)
            )  # fmt: skip
        return True

    def has_heeded(self, name: str) -> bool:
        """Whether what a notice asked for is done: then the machine may go."""
        result = self.status.results.get(name)
        return result is not None and result.state == "done"

    def leave(self) -> None:
        """End as what we are, and keep the run: the machine goes, and all is saved."""
        if self._attempt.ended_at is not None:
            return
        self._attempt.end(self.status.state)
        self._saver.close()
        self._orders.close()

    def note(self, topic: str, message: str) -> None:
        """Show a warning in the status that is not about the ranks; one per topic."""
        self._board.note(topic, message)

    def talk(self) -> None:
        """Show between two ticks that we live; for work that makes one tick long."""
        self._board.publish()

    def tick(self) -> None:
        """Do what is due now; returns soon, except for a slice of copying or one store call."""
        if self.finished:
            return
        if self._attempt.ended_at is None:
            self._attempt.view = self._ranks.poll()
            self._work()
        self._refresh()
        self._board.publish()

    # -- what a tick consists of ------------------------------------------------------------------

    def _work(self) -> None:
        attempt, orders = self._attempt, self._orders
        parts = (
            self._begin, self._beat, self._save, self._rehearse, self._heal, orders.read,
            orders.advance, self._outlive, self._settle, self._tidy,
        )  # fmt: skip
        for part in parts:
            try:
                part()
            except Fenced as error:
                attempt.end("fenced", error)
            except CloudshiftError as error:
                self._board.warn(error.message)
                if not self._begun and not isinstance(error, Unavailable):
                    attempt.end("failed", error)
            if attempt.ended_at is not None:
                self._saver.close()
                orders.close()
                return

    def _begin(self) -> None:
        if self._begun:
            return
        attempt = self._attempt
        if self._job.standby:
            self._ranks.start(None, standby=True)
        else:
            restore = attempt.tenure.acquire()
            attempt.saves.continue_from(restore)
            self._ranks.start(restore, standby=False)
        self._begun = True

    def _beat(self) -> None:
        tenure = self._attempt.tenure
        running = self._attempt.view.state in ("starting", "running", "held")
        if tenure.owned and tenure.beat() and running:
            tenure.check()

    def _save(self) -> None:
        if self._attempt.is_owner:
            self._attempt.saves.tick(self._attempt.view)

    def _rehearse(self) -> None:
        if self._rehearsal is not None:
            self._rehearsal.tick()

    def _heal(self) -> None:
        self._healing.tick()

    def _outlive(self) -> None:
        if outlive(self._attempt):
            now = self._world.now()
            self._orders.accept(Order(order_id=f"outlived-{now:.0f}", kind="resume", at=now))

    def _settle(self) -> None:
        if not self._attempt.is_healing and not self._obeying.holds_on():
            self._attempt.settle()

    def _tidy(self) -> None:
        """Forget and collect old steps while nothing else is to be done."""
        attempt = self._attempt
        if attempt.is_owner:
            is_training = attempt.view.state == "running" and not attempt.drain_asked
            is_quiet = is_training and not attempt.active and self.status.notice_until is None
            attempt.saves.keep(attempt.view, is_quiet=is_quiet)

    # -- between which stores ---------------------------------------------------------------------

    def _make_rehearsal(self, prove: Prove | None) -> Rehearsal | None:
        source, watched = self._source_store, self._watch_store
        if source is None or watched is None:
            return None
        watch = SourceWatch(watched, self._job, self._world)
        return self.rehearsal_type(self._attempt, watch, self._puller(source), prove)

    def _mover_of(self, order: Order) -> Mover:
        """Who copies for an order: from the source to here, or from here to where it says.

        Raises:
            UsageError: Half of the other place is named.
            Conflict: There is no source to copy from, or nothing can be pushed from here.
        """
        if order.to_cloud is None and order.to_url is None:
            if self._source_store is None:
                raise Conflict("this agent has no source to copy from; start it as a standby")
            return self._puller(self._source_store)
        if order.to_cloud is None or order.to_url is None:
            raise UsageError(f"order '{order.order_id}' names half of a store; send it again")
        if self._open_store is None:
            raise Conflict("this agent cannot push; let the target pull")
        if order.to_url not in self._movers:
            target = self._open_store(order.to_cloud, order.to_url)
            self._movers[order.to_url] = self._mover(
                self._store, target, generation=self._job.generation + 1
            )
        return self._movers[order.to_url]

    def _puller(self, source: Store) -> Mover:
        if "" not in self._movers:
            self._movers[""] = self._mover(source, self._store, generation=self._job.generation)
        return self._movers[""]

    def _mover(self, source: Store, target: Store, *, generation: int) -> Mover:
        return Mover(
            source, target, self._job.run_id, self._world, generation=generation,
            options=self._transfers, talk=self._board.publish,
        )  # fmt: skip

    # -- status -----------------------------------------------------------------------------------

    def _refresh(self) -> None:
        view, status = self._attempt.view, self.status
        if view.warning is not None:
            self._board.note("ranks", view.warning)
        self._board.update(
            state=status.state if self._attempt.ended_at is not None else self._state(),
            staged_step=view.staged_step,
            state_bytes=view.state_bytes or status.state_bytes,
            step_s=view.step_s or status.step_s,
            nodes_up=view.nodes_up,
        )
        self._board.show_losses(view.losses)
        if self._attempt.is_owner or not self._job.standby:
            self._board.update(
                step=status.step if view.step is None else view.step,
                loss=status.loss if view.loss is None else view.loss,
                first_step_at=status.first_step_at or view.first_step_at,
                last_step_at=view.last_step_at or status.last_step_at,
            )

    def _state(self) -> AgentState:
        """A standby is one until it owns the run: what its ranks rehearse is not the run."""
        attempt = self._attempt
        if attempt.drain_asked:
            return "draining" if attempt.sealed() is None else "drained"
        is_ready = attempt.view.state not in ("absent", "starting")
        if self._job.standby and not attempt.is_owner:
            is_rehearsing = self._rehearsal is not None and self._rehearsal.origin is not None
            return "standby" if is_ready or is_rehearsing else "starting"
        if attempt.is_healing:
            return "running"
        if attempt.view.state == "gate":
            return "standby"
        return "running" if is_ready else "starting"
