"""Bugs planted on purpose, to prove that the simulation finds them. Nothing here is ever used."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cloudshift_lab.agent.attempt import Activity
from cloudshift_lab.agent.node import NodeAgent
from cloudshift_lab.agent.protocols import Saved
from cloudshift_lab.agent.rehearsal import Prove, Rehearsal
from cloudshift_lab.agent.tenure import Tenure
from cloudshift_lab.checkpoint.gc import mark
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.checkpoint.tombs import tombstone_key
from cloudshift_lab.conductor.effects import MoveEffects
from cloudshift_lab.core.errors import Conflict, Fenced, NotFound, Unavailable, UsageError
from cloudshift_lab.core.orders import Order, OrderResult
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import World
from cloudshift_lab.migration import Effect, EffectDone, Saga
from cloudshift_lab.sim import model
from cloudshift_lab.sim.collector import Collector
from cloudshift_lab.sim.fleet import SimEngine
from cloudshift_lab.sim.log_history import UnfencedLog
from cloudshift_lab.sim.ranks import SimSaver
from cloudshift_lab.sim.scene import Bug
from cloudshift_lab.storage.log import LogRecord, LogState, RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store


class _Overlay(MemoryStore):
    """Keeps what is written to itself; reads through to the store it covers."""

    def __init__(self, covered: Store) -> None:
        super().__init__(covered.url)
        self._covered = covered

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return super().get(key, start=start, end=end)
        except NotFound:
            return self._covered.get(key, start=start, end=end)

    def size(self, key: str) -> int | None:
        here = super().size(key)
        return self._covered.size(key) if here is None else here

    def write_through(self) -> None:
        """Write everything at last, in the right order, which no longer helps."""
        for key in [key for top in ("packs", "runs") for key in self.list(top)]:
            self._covered.put(key, super().get(key))


class HastySaver(SimSaver):
    """'ref-before-chunks': reports a step as saved and writes its objects afterwards."""

    def save(self, store: Store, step: int, weights: model.Weights) -> Saved:
        overlay = _Overlay(store)
        saved = super().save(overlay, step, weights)
        self._scheduler.spawn(f"late-{step}", overlay.write_through, after_s=5.0)
        return saved


class _HastyEngine(SimEngine):
    saver_type = HastySaver


class _UnfencedTenure(Tenure):
    def __init__(self, store: Store, job: JobSpec, world: World, ttl_s: float) -> None:
        super().__init__(store, job, world, ttl_s)
        self._log = UnfencedLog(store, job.run_id, world)

    def _holds(self, state: LogState) -> bool:
        del state
        return True


class UnfencedAgent(NodeAgent):
    """'no-fencing': appends to the log and goes on without looking at the generation."""

    tenure_type = _UnfencedTenure


class _UnfencedEngine(SimEngine):
    agent_type = UnfencedAgent


class _OneTryLog(RunLog):
    """Takes the first answer for the truth and never reads back."""

    def _append(self, nonce: str, draft: Callable[[LogState, float], LogRecord]) -> LogRecord:
        del nonce
        record = draft(self.sync(), self._world.now())
        try:
            self._store.create(f"runs/{self._run_id}/log/{record.seq:012d}.json", to_json(record))
        except Unavailable as error:
            raise Conflict("no answer, so it cannot have happened; rolling back") from error
        return record


class HastyEffects(MoveEffects):
    """'cleanup-after-ambiguous': a commit without an answer counts as failed and is undone."""

    def _commit(self, effect: Effect, saga: Saga) -> EffectDone:
        side = self._source
        side._log = _OneTryLog(side.store, side.job.run_id, self._world)
        return super()._commit(effect, saga)

    def _cancel(self, effect: Effect, saga: Saga) -> EffectDone:
        del saga
        return self._done(effect, detail="nothing can have happened")


class HastyCollector(Collector):
    """'gc-no-grace': deletes what it has just found to be garbage, and looks only once."""

    def collect(self) -> None:
        found = mark(self._store, world=self._world, concurrency=1)
        if found.tomb is not None:
            for key in found.tomb.keys:
                self._store.delete(key)
            self._store.delete(tombstone_key(found.tomb.id))


class _DeafTenure(Tenure):
    def commit(
        self, saved: Saved, nonce: str, *, since: int | None, is_last: bool
    ) -> LogRecord | None:
        del since
        return super().commit(saved, nonce, since=None, is_last=is_last)


class DeafAgent(NodeAgent):
    """'gc-deaf-save': commits what it saved although the store was swept meanwhile."""

    tenure_type = _DeafTenure


class _DeafEngine(SimEngine):
    agent_type = DeafAgent


class _TrustingAgent(NodeAgent):
    """'replay-without-proof': what was repeated is taken for the sealed state unseen."""

    def _make_rehearsal(self, prove: Prove | None) -> Rehearsal | None:
        del prove
        return super()._make_rehearsal(lambda _step, _sealed: ())


class _TrustingEngine(SimEngine):
    agent_type = _TrustingAgent


class _GenerousRehearsal(Rehearsal):
    """Says of losses that are near what is true of equal ones, and proves nothing after them."""

    def _rehearsed(self) -> OrderResult:
        return msgspec.structs.replace(super()._rehearsed(), apart=None)

    def _refuse_apart(self) -> None:
        """Near is near enough."""

    def _compare_bytes(self, prove: Prove, step: int, sealed: Checkpoint) -> tuple[str, ...]:
        return super()._compare_bytes(prove, step, sealed) if self._apart is None else ()


class _GenerousAgent(NodeAgent):
    """'near-is-equal': repeats and goes on where the losses were within the tolerance only."""

    rehearsal_type = _GenerousRehearsal


class _GenerousEngine(SimEngine):
    agent_type = _GenerousAgent


class _EagerRehearsal(Rehearsal):
    """Lets the ranks go on as soon as they are proved, whoever owns the run."""

    def catch_up(self, order: Order) -> Activity:
        for result in super().catch_up(order):
            if result.state == "done":
                self._attempt.ranks.limit(None)
            yield result


class _EagerAgent(NodeAgent):
    """'lift-limit-before-commit': trains on before the run is its own."""

    rehearsal_type = _EagerRehearsal


class _EagerEngine(SimEngine):
    agent_type = _EagerAgent


class _BlindTenure(Tenure):
    def check(self) -> None:
        """Looks nothing up."""


class _StubbornAgent(NodeAgent):
    """Starts its ranks again when it is told to, without asking the log whose the run is."""

    tenure_type = _BlindTenure


class _StubbornEngine(SimEngine):
    agent_type = _StubbornAgent


class _StubbornEffects(MoveEffects):
    """'resume-after-handover': a refused cancel is no reason not to go back."""

    def _cancel(self, effect: Effect, saga: Saga) -> EffectDone:
        try:
            return super()._cancel(effect, saga)
        except Fenced:
            return self._done(effect, detail="nobody can have taken it")


PLANTS: dict[str, Bug] = {
    "ref-before-chunks": Bug(engine=_HastyEngine),
    "no-fencing": Bug(engine=_UnfencedEngine),
    "cleanup-after-ambiguous": Bug(effects=HastyEffects),
    "gc-no-grace": Bug(collector=HastyCollector),
    "gc-deaf-save": Bug(engine=_DeafEngine),
    "replay-without-proof": Bug(engine=_TrustingEngine),
    "near-is-equal": Bug(engine=_GenerousEngine),
    "lift-limit-before-commit": Bug(engine=_EagerEngine),
    "resume-after-handover": Bug(engine=_StubbornEngine, effects=_StubbornEffects),
    "spend-past-limit": Bug(is_metered=False),
}


def plant(name: str) -> Bug:
    """The planted bug of that name.

    Raises:
        UsageError: There is none; lists the ones there are.
    """
    if name not in PLANTS:
        raise UsageError(f"no planted bug '{name}'; choose one of: {', '.join(PLANTS)}")
    return PLANTS[name]
