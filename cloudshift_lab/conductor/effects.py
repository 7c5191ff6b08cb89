"""What a saga asks for, done for real: jobs through the engine, orders and the run log in buckets.

No threads, no processes, no clock of its own: the deterministic simulation runs this very code.
Every effect is idempotent, so that a conductor that was killed anywhere can simply ask again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloudshift_lab.checkpoint.pins import release_holds
from cloudshift_lab.conductor.inbox import ends_attempt
from cloudshift_lab.conductor.side import OpenStore, Side
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    Exhausted,
    NotFound,
    Unavailable,
    error_from_wire,
)
from cloudshift_lab.core.orders import AgentStatus, OrderKind, OrderResult
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.world import World
from cloudshift_lab.engines.engine import Engine
from cloudshift_lab.migration import Effect, EffectDone, EffectFailed, EffectName, Saga
from cloudshift_lab.storage.log import LogBase, LogRecord, LogState

_FOREVER = float("inf")


@dataclass(frozen=True)
class Patience:
    """How long an effect may take before it counts as failed, seconds.

    ``silence_s``: an agent that says nothing new for so long is taken for dead before the commit;
    after it, it is stopped and started again.
    """

    limits_s: dict[EffectName, float] = field(
        default_factory=lambda: {
            "provision": 300.0,
            "precopy": 3600.0,
            "drain": 900.0,
            "copy": 3600.0,
            "verify": 3600.0,
            "commit": 120.0,
            "go": _FOREVER,
            "retire": 60.0,
            "cancel": _FOREVER,
            "resume": 300.0,
            "release": 60.0,
        }
    )
    silence_s: float = 30.0
    stop_grace_s: float = 10.0


class MoveEffects:
    """Runs the effects of one migration.

    Args:
        source: The attempt that moves.
        target: The attempt it moves to; ``standby``, with its own ``owner`` and ``generation``.
        engine: Starts and ends agents.
        open_store: Opens a store by its cloud's name and its url.
        world: Clock.
        patience: Deadlines.
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
    ) -> None:
        self._source = Side("the source", source, engine, open_store=open_store, world=world)
        self._target = Side("the target", target, engine, open_store=open_store, world=world)
        self._world = world
        self._patience = patience or Patience()
        self._begun: dict[str, float] = {}
        self._by_name: dict[EffectName, Callable[[Effect, Saga], EffectDone | None]] = {
            "provision": self._provision,
            "precopy": self._precopy,
            "drain": self._drain,
            "copy": self._copy,
            "verify": self._verify,
            "commit": self._commit,
            "go": self._go,
            "retire": self._retire,
            "cancel": self._cancel,
            "resume": self._resume,
            "release": self._release,
        }

    def run(self, effect: Effect, saga: Saga) -> EffectDone | EffectFailed | None:
        """Push one effect on; see ``driver.EffectRunner``."""
        self._begun.setdefault(effect.key, self._world.monotonic())
        late = self._is_late(effect)
        try:
            outcome = self._by_name[effect.name](effect, saga)
        except Unavailable as error:
            return self._failed(effect, error) if late else None
        except CloudshiftError as error:
            return self._failed(effect, error)
        if outcome is None:
            return self._timed_out(effect) if late else None
        del self._begun[effect.key]
        return outcome

    def _is_late(self, effect: Effect) -> bool:
        waited_s = self._world.monotonic() - self._begun[effect.key]
        return waited_s > self._patience.limits_s[effect.name]

    # -- towards the commit ----------------------------------------------------------------

    def _provision(self, effect: Effect, _: Saga) -> EffectDone | None:
        self._target.submit()
        status = self._target.line.look()
        if status is not None and status.state == "standby":
            return self._done(effect)
        self._expect_alive(self._target, status)
        return None

    def _precopy(self, effect: Effect, saga: Saga) -> EffectDone | None:
        return self._target_order(effect, saga, "precopy")

    def _drain(self, effect: Effect, saga: Saga) -> EffectDone | None:
        status, result = self._obey(self._source, effect, saga, "drain")
        if status is None or result is None:
            return None
        return self._done(
            effect,
            step=result.step,
            manifest_digest=result.manifest_digest,
            step_at=status.last_step_at,
        )

    def _copy(self, effect: Effect, saga: Saga) -> EffectDone | None:
        return self._target_order(effect, saga, "copy")

    def _verify(self, effect: Effect, saga: Saga) -> EffectDone | None:
        return self._target_order(effect, saga, "verify")

    def _target_order(self, effect: Effect, saga: Saga, kind: OrderKind) -> EffectDone | None:
        _, result = self._obey(self._target, effect, saga, kind)
        if result is None:
            return None
        return self._done(effect, num_bytes=result.num_bytes, detail=result.detail)

    # -- the commit: one record in the source's log ---------------------------------------

    def _commit(self, effect: Effect, saga: Saga) -> EffectDone:
        plan = saga.plan
        log = self._source.log.sync()
        sealed = self._sealed(log, saga)
        if log.handover_of(plan.migration_id) is None:
            self._expect_alive(self._target, self._target.line.look())
        handover = self._source.log.handover(
            generation=self._source.job.generation,
            to_url=self._target.store.url,
            new_owner=self._target.job.owner,
            migration_id=plan.migration_id,
            nonce=effect.key,
        )
        self._take_over(handover, sealed, effect)
        return self._done(effect, seq=handover.seq)

    def _sealed(self, log: LogState, saga: Saga) -> LogRecord:
        """The commit of the sealed step, which must be the newest one of the source."""
        newest = log.last_commit
        if newest is None or (newest.step, newest.manifest_digest) != (
            saga.sealed_step,
            saga.manifest_digest,
        ):
            found = None if newest is None else newest.step
            raise Conflict(
                f"the source's newest checkpoint is step {found}, not the sealed step "
                f"{saga.sealed_step}; the run stays where it is, propose the move again"
            )
        return newest

    def _take_over(self, handover: LogRecord, sealed: LogRecord, effect: Effect) -> None:
        """Begin the target's log where the source's ended; safe to repeat after a crash."""
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
        if not is_same_log:
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
        order_id = _order_id(effect, saga)
        line.order(order_id, "go", step=saga.sealed_step, manifest_digest=saga.manifest_digest)
        status = line.look()
        if status is not None and status.first_step_at is not None:
            return self._done(effect, step=status.step, step_at=status.first_step_at)
        if status is not None and ends_attempt(status):
            return self._done(effect, detail=f"the run {status.state} at its new place")
        result = None if status is None else status.results.get(order_id)
        if result is not None and result.state == "failed":
            raise _error_of(result, "the target cannot go on")
        self._revive_target()
        return None

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
        return status is not None and ends_attempt(status)

    def _retire(self, effect: Effect, saga: Saga) -> EffectDone | None:
        is_gone = self._source.is_gone()
        if is_gone or self._is_late(effect) or not self._retires(_order_id(effect, saga)):
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
        order_id = _order_id(effect, saga)
        line.order(order_id, "resume")
        status = line.look()
        if status is not None and ends_attempt(status):
            return self._done(effect, detail=f"the source had {status.state} meanwhile")
        result = None if status is None else status.results.get(order_id)
        if result is not None and result.state == "done":
            return self._done(effect)
        if result is not None and result.state == "failed":
            raise _error_of(result, "the source cannot resume")
        self._expect_alive(self._source, status)
        return None

    def _release(self, effect: Effect, _: Saga) -> EffectDone:
        self._target.stop(self._patience.stop_grace_s)
        job = self._target.job
        release_holds(self._target.store, job.run_id, job.generation)
        return self._done(effect)

    # -- shared ----------------------------------------------------------------------------

    def _obey(
        self, side: Side, effect: Effect, saga: Saga, kind: OrderKind
    ) -> tuple[AgentStatus, OrderResult] | tuple[None, None]:
        """Order something and look whether it is done."""
        side.line.order(
            effect.key, kind, step=saga.sealed_step, manifest_digest=saga.manifest_digest
        )
        status = side.line.look()
        result = None if status is None else status.results.get(effect.key)
        if status is not None and result is not None:
            if result.state == "done":
                return status, result
            if result.state == "failed":
                raise _error_of(result, f"{kind} failed at {side.name}")
        self._expect_alive(side, status)
        return None, None

    def _expect_alive(self, side: Side, status: AgentStatus | None) -> None:
        """Raise when waiting for this agent is in vain."""
        if status is not None and ends_attempt(status):
            why = f" ({status.error})" if status.error else ""
            raise Conflict(f"{side.name} has {status.state} meanwhile{why}; nothing was moved")
        if side.is_gone() and side.line.look() == status:
            raise NotFound(
                f"{side.name}'s agent is gone; see `cloudshift logs {side.job.run_id}`, "
                "then try again"
            )
        silent_s = side.line.silent_for_s()
        if silent_s > self._patience.silence_s:
            raise NotFound(
                f"{side.name}'s agent has said nothing for {silent_s:.0f} s; "
                "check its machine, then try again"
            )

    def _done(
        self,
        effect: Effect,
        *,
        step: int | None = None,
        manifest_digest: str | None = None,
        num_bytes: int = 0,
        seq: int | None = None,
        detail: str = "",
        step_at: float | None = None,
    ) -> EffectDone:
        return EffectDone(
            effect=effect.name,
            at=self._world.now(),
            step=step,
            manifest_digest=manifest_digest,
            num_bytes=num_bytes,
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
        )

    def _timed_out(self, effect: Effect) -> EffectFailed:
        limit_s = self._patience.limits_s[effect.name]
        text = f"{effect.name} took longer than {limit_s:.0f} s; look at the logs, then try again"
        return self._failed(effect, Exhausted(text))


def _order_id(effect: Effect, saga: Saga) -> str:
    """An order that failed is asked again under a new name: an agent obeys each name once."""
    return f"{effect.key}:{saga.failures}" if saga.failures else effect.key


def _error_of(result: OrderResult, what: str) -> CloudshiftError:
    reason = result.error or "no reason given; see its logs"
    return error_from_wire(result.error_kind or "Conflict", f"{what}: {reason}")
