"""What a saga asks for, done for real: jobs through the engine, orders and the run log in buckets.

No threads, no processes, no clock of its own: the deterministic simulation runs this very code.
Every effect is idempotent, so that a conductor that was killed anywhere can simply ask again.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudshift_lab.checkpoint.pins import release_holds
from cloudshift_lab.conductor.inbox import ends_attempt
from cloudshift_lab.conductor.pace import Pace
from cloudshift_lab.conductor.side import OpenStore, stop_attempt
from cloudshift_lab.conductor.sides import (
    Patience,
    TwoSides,
    error_of,
    later_rounds_pay,
    nodes_up_of,
    order_id_of,
    resumed_at,
)
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Exhausted,
    NodesMissing,
    NotFound,
    Unavailable,
)
from cloudshift_lab.core.orders import AgentStatus, Order, OrderKind, OrderResult
from cloudshift_lab.core.plan import Bill, Going
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Effect, EffectDone, EffectFailed, EffectName, Saga
from cloudshift_lab.storage.log import LogBase, LogRecord
from cloudshift_lab.storage.store import Store

_FOREVER = float("inf")
_UNSAID_LIMIT_S = 3600.0
_SAVES_AHEAD = 1.5

Reprice = Callable[[Saga, float, float], Bill]
"""Makes a bill of a step's seconds at the source and at the target, both measured."""


class MoveEffects(TwoSides):
    """Runs the effects of one migration.

    Args:
        source: The attempt that moves.
        target: The first attempt it moves to; ``standby``, with its own ``owner`` and
            ``generation``. Later tries are made from it.
        engine: Starts and ends agents.
        open_store: Opens a store by its cloud's name and its url.
        world: Clock.
        patience: Deadlines.
        reprice: Makes a bill of what a rehearsal measured; None: nothing is priced.
    """

    def __init__(
        self,
        source: JobSpec,
        target: JobSpec,
        engine: Engine,
        open_store: OpenStore,
        world: World,
        *,
        patience: Patience | None = None,
        reprice: Reprice | None = None,
    ) -> None:
        super().__init__(source, target, engine, open_store, world, patience=patience or Patience())
        self._reprice = reprice
        self._begun: dict[str, float] = {}
        self._pace = Pace()
        self._by_name: dict[EffectName, Callable[[Effect, Saga], EffectDone | None]] = {
            "provision": self._provision,
            "precopy": self._precopy,
            "rehearse": self._rehearse,
            "drain": self._drain,
            "copy": self._copy,
            "verify": self._verify,
            "catch_up": self._catch_up,
            "commit": self._commit,
            "go": self._go,
            "retire": self._retire,
            "cancel": self._cancel,
            "resume": self._resume,
            "release": self._release,
        }

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        """Push one effect on; see ``driver.EffectRunner``.

        What moves on may take as long as it takes: the time counts anew with all progress, and
        when a forced stop had put something else before it.
        """
        self._turn_to(saga)
        if effect.key not in self._begun:
            self._begun = {effect.key: self._world.monotonic()}
            self.going = None
            if effect.name != "provision":  # whose tries go on waiting for the same nodes
                self._missing_since = None
        late, before = self._is_late(effect), self.going
        try:
            outcome = self._by_name[effect.name](effect, saga)
        except Unavailable as error:
            return self._failed(effect, error) if late else None
        except CloudshiftError as error:
            return self._failed(effect, error)
        if outcome is None and self.going != before:
            self._begun[effect.key] = self._world.monotonic()
        elif outcome is None:
            return self._timed_out(effect) if late else None
        else:
            self._begun, self.going = {}, None  # its bytes are the saga's now, not counted twice
        return outcome

    def _is_late(self, effect: Effect) -> bool:
        waited_s = self._world.monotonic() - self._begun[effect.key]
        return waited_s > self._patience.limits_s.get(effect.name, _UNSAID_LIMIT_S)

    # -- towards the commit ----------------------------------------------------------------

    def _provision(self, effect: Effect, _: Saga) -> EffectDone | None:
        self._target.submit()
        status = self._target.line.look()
        nodes = self._target.job.placement.nodes
        if status is not None and status.state == "standby" and status.nodes_up >= nodes:
            return self._done(effect)
        self._expect_alive(self._target, status)
        self._expect_nodes(status)
        if status is not None and nodes > 1:
            self.going = Going(detail=f"{status.nodes_up} of {nodes} nodes are up")
        return None

    def _precopy(self, effect: Effect, saga: Saga) -> EffectDone | None:
        if saga.plan.rehearsal_steps and not self._has_fresh_commit(effect):
            return None
        done = self._carry(effect, saga, "precopy")
        if done is None and saga.plan.rehearsal_steps:
            self._feed_next_round(effect, saga)
        return done

    def _has_fresh_commit(self, effect: Effect) -> bool:
        """Ask the source to save, so that what is copied is not far behind what it trains.

        A source that cannot save is no reason to stay: then an older commit is copied.
        """
        order_id = f"{effect.key}:save"
        line = self._source.line
        line.send(Order(order_id, "save", self._world.now(), standalone=True))
        status = line.look()
        result = None if status is None else status.results.get(order_id)
        if result is not None and result.state != "running":
            return True
        self._expect_alive(self._source, status)
        self.going = Going(detail="the source saves a step to be copied")
        return self._world.monotonic() - self._begun[effect.key] > self._patience.fresh_s

    def _feed_next_round(self, effect: Effect, saga: Saga) -> None:
        """Have a fresh commit ready when this round ends, where another one is worth its bytes."""
        going = self.going
        if going is None or going.eta_s is None or not later_rounds_pay(saga.plan):
            return
        line = self._source.line
        status = line.look()
        if status is None or status.committed_step is None:
            return
        if going.eta_s <= _SAVES_AHEAD * (status.saves.save_s or 1.0):
            line.order(f"{effect.key}:save:{status.committed_step}", "save")

    def _rehearse(self, effect: Effect, saga: Saga) -> EffectDone | None:
        source = self._source.line.look()
        self._pace.see(source)
        _, result = self._obey(self._target, effect, saga, "rehearse")
        if result is None:
            return None
        bill = None
        here_s = self._pace.step_s()
        if self._reprice is not None and result.step_s and here_s:
            bill = self._reprice(saga, here_s, result.step_s)
        return self._reported(effect, result, bill=bill)

    def _drain(self, effect: Effect, saga: Saga) -> EffectDone | None:
        try:
            status, result = self._obey(self._source, effect, saga, "drain")
        except NotFound:
            if saga.notice is None or not self._is_source_lost(saga):
                raise
            return self._take_newest(effect)
        if status is None or result is None:
            return None
        return self._reported(effect, result, step_at=status.last_step_at)

    def _is_source_lost(self, saga: Saga) -> bool:
        """Whether the source's machine was taken away, as had been said."""
        is_over = saga.notice is not None and self._world.now() >= saga.notice
        return is_over or self._source.is_gone()

    def _take_newest(self, effect: Effect) -> EffectDone:
        """The source went before it was drained: its newest commit is what is left of it."""
        newest = self._source.log.sync().last_commit
        if newest is None or newest.step is None:
            raise NotFound(
                "the source's machine went before anything was saved; start the run again"
            )
        status = self._source.line.look()
        told = None if status is None else status.step
        lost = max(0, (told or newest.step) - newest.step)
        return EffectDone(
            effect=effect.name,
            at=self._world.now(),
            step=newest.step,
            manifest_digest=newest.manifest_digest,
            step_at=None if status is None else status.last_step_at,
            lost_steps=lost,
            detail=f"the source's machine went: step {newest.step} was saved, {lost} are lost",
        )

    def _copy(self, effect: Effect, saga: Saga) -> EffectDone | None:
        return self._carry(effect, saga, "copy")

    def _verify(self, effect: Effect, saga: Saga) -> EffectDone | None:
        return self._target_order(effect, saga, "verify")

    def _catch_up(self, effect: Effect, saga: Saga) -> EffectDone | None:
        _, result = self._obey(self._target, effect, saga, "catch_up")
        return None if result is None else self._reported(effect, result, step_at=result.step_at)

    def _carry(self, effect: Effect, saga: Saga, kind: OrderKind) -> EffectDone | None:
        """Bytes between the stores: the target pulls, or the source pushes while it is there."""
        if saga.plan.carrier == "push" and not self._source.is_gone():
            _, result = self._obey(self._source, effect, saga, kind)
            self._expect_alive(self._target, self._target.line.look())
            return None if result is None else self._reported(effect, result)
        return self._target_order(effect, saga, kind)

    def _target_order(self, effect: Effect, saga: Saga, kind: OrderKind) -> EffectDone | None:
        _, result = self._obey(self._target, effect, saga, kind)
        return None if result is None else self._reported(effect, result)

    # -- the commit: one record in the source's log ---------------------------------------

    def _commit(self, effect: Effect, saga: Saga) -> EffectDone:
        plan = saga.plan
        assert saga.sealed_step is not None and saga.manifest_digest is not None
        if self._source.log.sync().handover_of(plan.migration_id) is None:
            self._expect_alive(self._target, self._target.line.look())
        handover = self._source.log.handover(
            generation=self._source.job.generation,
            to_url=self._target.store.url,
            new_owner=self._target.job.owner,
            migration_id=plan.migration_id,
            nonce=effect.key,
            sealed=(saga.sealed_step, saga.manifest_digest),
        )
        sealed = self._source.log.sync().last_commit
        assert sealed is not None, "a handover follows the sealed step's commit"
        self._take_over(handover, sealed, effect, saga)
        return self._done(effect, seq=handover.seq)

    def _take_over(
        self, handover: LogRecord, sealed: LogRecord, effect: Effect, saga: Saga
    ) -> None:
        """Begin the target's log where the source's ended; safe to repeat after a crash.

        A target that repeated the steps has none of the sealed one's bytes: it saves that step
        itself, and until then the step lives in the source's store.
        """
        job, log = self._target.job, self._target.log
        is_same_log = self._target.store.url == self._source.store.url
        base = LogBase(url=self._source.store.url, seq=handover.seq, digest=handover.digest)
        state = log.sync()
        if is_same_log and state.generation < job.generation and state.home_url is not None:
            first = handover.generation
            log.acquire(generation=first, owner=job.owner, nonce=f"{effect.key}:take")
        log.acquire(
            generation=job.generation,
            owner=job.owner,
            nonce=f"{effect.key}:acquire",
            base=None if is_same_log else base,
        )
        if not is_same_log and saga.closing == "copy":
            self._carry_over(sealed, effect)

    def _carry_over(self, sealed: LogRecord, effect: Effect) -> None:
        """Make the sealed step exist at the target."""
        assert sealed.step is not None
        assert sealed.manifest_key is not None
        assert sealed.manifest_digest is not None
        self._target.log.commit(
            generation=self._target.job.generation,
            step=sealed.step,
            manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest,
            nonce=f"{effect.key}:step",
        )

    # -- after it, only forward ------------------------------------------------------------

    def _go(self, effect: Effect, saga: Saga) -> EffectDone | None:
        line = self._target.line
        order_id = order_id_of(effect, saga)
        line.send(self._order(order_id, "go", saga))
        status = line.look()
        if status is not None and _has_settled_in(status):
            return self._done(effect, step=status.step, step_at=status.first_step_at)
        if status is not None and self._ends_run(status):
            return self._done(effect, detail=f"the run {status.state} at its new place")
        result = None if status is None else status.results.get(order_id)
        if result is not None and result.state == "failed":
            raise error_of(result, "the target cannot go on")
        self._revive_target()
        self._revive_nodes(status)
        return None

    def _ends_run(self, status: AgentStatus) -> bool:
        """Whether the target ended the run; not while only the source's store has its newest step.

        Nobody could go on from the log that it would leave behind: its agent is started again, to
        bring that step. One that was fenced has lost the run to somebody else.
        """
        if not ends_attempt(status):
            return False
        return status.state == "fenced" or not self._target.log.sync().awaits_step

    def _revive_nodes(self, status: AgentStatus | None) -> None:
        """Start what is gone of the target's other nodes; its ranks wait for all of them."""
        try:
            self._expect_nodes(status)
        except NodesMissing:
            self._missing_since = None
            self._target.revive()

    def _revive_target(self) -> None:
        """The run is the target's now: when its agent is dead, start it again.

        A silent one is killed, not asked to end: an agent that is asked ends the run.
        """
        if self._target.line.silent_for_s() > self._patience.silence_s:
            self._target.stop(0.0)
        if self._target.is_gone() and not self._has_last_word():
            self._target.revive()
            self._target.line.listen_anew()

    def _has_last_word(self) -> bool:
        """Whether the target ended by itself; asked after it is gone, when its word is final."""
        status = self._target.line.look()
        return status is not None and self._ends_run(status)

    def _retire(self, effect: Effect, saga: Saga) -> EffectDone | None:
        is_gone = self._source.is_gone()
        if is_gone or self._is_late(effect) or not self._retires(order_id_of(effect, saga)):
            self._source.stop(self._patience.stop_grace_s)
            return self._done(effect)
        return None

    def _retires(self, order_id: str) -> bool:
        """Ask the source's agent to go; False when it does not listen any more."""
        try:
            self._source.line.order(order_id, "retire")
            self._source.line.look()
        except Unavailable:
            return True
        return self._source.line.silent_for_s() <= self._patience.silence_s

    # -- the way back ----------------------------------------------------------------------

    def _cancel(self, effect: Effect, saga: Saga) -> EffectDone:
        record = self._source.log.cancel(
            generation=self._source.job.generation,
            migration_id=saga.plan.migration_id,
            nonce=effect.key,
        )
        return self._done(effect, seq=record.seq)

    def _resume(self, effect: Effect, saga: Saga) -> EffectDone | None:
        line = self._source.line
        order_id = order_id_of(effect, saga)
        line.order(order_id, "resume")
        status = line.look()
        if status is not None and ends_attempt(status):
            return self._done(effect, detail=f"the source had {status.state} meanwhile")
        result = None if status is None else status.results.get(order_id)
        if status is not None and result is not None and result.state == "done":
            return self._done(effect, step_at=resumed_at(status, saga))
        if result is not None and result.state == "failed":
            raise error_of(result, "the source cannot resume")
        self._expect_alive(self._source, status)
        return None

    def _release(self, effect: Effect, saga: Saga) -> EffectDone:
        """End this try's target, and what earlier ones left, wherever they were."""
        run_id, first = self._first_target.run_id, self._first_target.generation
        generations = range(first, first + saga.tries + 1)
        for generation in generations:
            stop_attempt(self._engine, run_id, generation, self._patience.stop_grace_s)
        for store in self._stores_tried(saga):
            for generation in generations:
                release_holds(store, run_id, generation)
        return self._done(effect)

    def _stores_tried(self, saga: Saga) -> list[Store]:
        places = [(saga.plan.target.cloud, saga.plan.target_url)]
        places += [
            (each.placement.cloud, each.url) for each in saga.plan.fallbacks[: saga.fallbacks_used]
        ]
        return [self._open_store(*place) for place in dict.fromkeys(places)]

    # -- shared ----------------------------------------------------------------------------

    def _reported(
        self,
        effect: Effect,
        result: OrderResult | None = None,
        *,
        step_at: float | None = None,
        bill: Bill | None = None,
    ) -> EffectDone:
        """What an agent reported, as an outcome."""
        told = result or OrderResult(state="done")
        return EffectDone(
            effect=effect.name,
            at=self._world.now(),
            step=told.step,
            manifest_digest=told.manifest_digest,
            num_bytes=told.num_bytes,
            detail=told.detail,
            step_at=step_at,
            bytes_per_s=told.bytes_per_s,
            step_s=told.step_s,
            bill=bill,
            apart=told.apart,
            apart_step=told.apart_step,
        )

    def _done(
        self,
        effect: Effect,
        *,
        step: int | None = None,
        seq: int | None = None,
        detail: str = "",
        step_at: float | None = None,
    ) -> EffectDone:
        return EffectDone(
            effect=effect.name,
            at=self._world.now(),
            step=step,
            seq=seq,
            detail=detail,
            step_at=step_at,
        )

    def _failed(self, effect: Effect, error: CloudshiftError) -> EffectFailed:
        self._begun.pop(effect.key, None)
        return EffectFailed(
            effect=effect.name,
            at=self._world.now(),
            error_kind=type(error).__name__,
            message=error.message,
            nodes_up=nodes_up_of(error),
        )

    def _timed_out(self, effect: Effect) -> EffectFailed:
        limit_s = self._patience.limits_s.get(effect.name, _UNSAID_LIMIT_S)
        text = f"{effect.name} took longer than {limit_s:.0f} s; look at the logs, then try again"
        return self._failed(effect, Exhausted(text))


def _has_settled_in(status: AgentStatus) -> bool:
    """Whether the target trains and has a commit of its own: now it needs the source no more.

    After a replay its newest step is at first only in the source's store.
    """
    return status.first_step_at is not None and status.committed_step is not None
