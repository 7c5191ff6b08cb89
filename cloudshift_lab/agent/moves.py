"""Bringing a committed step into this agent's own store: pre-copy, copy and proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cloudshift_lab.checkpoint.copy import plan_of, static_packs
from cloudshift_lab.checkpoint.gc import hold
from cloudshift_lab.checkpoint.layout import prepare_root
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.checkpoint.verify import VerifyReport, verify
from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.orders import Order, OrderResult
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.copy import copy_keys
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store

SLICE_OBJECTS = 4

Activity = Iterator[OrderResult]


class Mover:
    """Obeys the orders that bring state from one store to another.

    Args:
        source: Where the run's log and state are.
        target: Our own store.
        run_id: Whose state.
        generation: Of this attempt, which is to own the run here.
        world: Clock and nonces.
        talk: Called now and then during long work, so that nobody takes us for dead.
    """

    def __init__(
        self, source: Store, target: Store, run_id: str, world: World, *, generation: int,
        talk: Callable[[], None],
    ) -> None:  # fmt: skip
        self._source = source
        self._target = target
        self._run_id = run_id
        self._generation = generation
        self._world = world
        self._talk = talk

    def precopy(self) -> Activity:
        """Copy, while the source still trains, what its last two commits share.

        What two commits share will most likely be in the sealed step too; the rest would be paid
        for twice. A dense optimizer shares nothing: then nothing is copied here.
        """
        commits = RunLog(self._source, self._run_id, self._world).sync().commits[-2:]
        if len(commits) < 2:
            yield OrderResult(state="done", detail="no two commits to compare yet")
            return
        try:
            older, newer = (open_checkpoint(self._source, self._run_id, c) for c in commits)
        except NotFound:
            yield OrderResult(state="done", detail="the older commit has just been forgotten")
            return
        shared = {key: pack for key, (pack, _) in static_packs(older, newer).items()}
        self._hold(shared)
        yield from self._copy(shared, 0)

    def copy_step(self, order: Order) -> Activity:
        """Copy what a committed step has and the target lacks: packs, then records, manifest last.

        Raises:
            NotFound: The source's log has no commit of that step with that manifest.
        """
        sealed = self._sealed(order)
        key, digest = str(sealed.manifest_key), str(sealed.manifest_digest)
        prepare_root(self._target)
        checkpoint = open_checkpoint(self._source, self._run_id, key, digest=digest)
        self._hold(checkpoint.object_keys())
        plan = plan_of(checkpoint, self._target)
        num_bytes = 0
        for keys in (plan.packs, plan.records):
            for result in self._copy(keys, num_bytes):
                num_bytes = result.num_bytes
                if result.state == "running":
                    yield result
        detail = format_bytes(num_bytes)
        yield OrderResult(state="done", step=sealed.step, num_bytes=num_bytes, detail=detail)

    def verify_step(self, order: Order) -> Activity:
        """Prove that a copied step is whole: every stored hash, then every chunk decoded.

        What is damaged is deleted and copied again, each object once: a copy judges by size, so
        that damage of the same size would otherwise stay and block every later move.

        Raises:
            Corrupt: It still is not whole; says what is wrong with the first object.
        """
        sealed = self._sealed(order)
        replaced: set[str] = set()
        while not (report := self._verify(sealed)).ok:
            bad = set(report.bad_keys)
            if not bad.isdisjoint(replaced):
                raise _not_whole(sealed, report)
            for result in self._replace(sealed, report):
                if result.state == "running":
                    yield result
            replaced |= bad
        detail = f"{report.objects} objects, {format_bytes(report.num_bytes)} decoded and proved"
        if replaced:
            detail = f"{detail}; {len(replaced)} damaged ones were copied again"
        yield OrderResult(state="done", step=sealed.step, detail=detail)

    def _hold(self, keys: Mapping[str, str]) -> None:
        """Guard what is copied until the commit, and what is there already and not copied."""
        if keys:
            hold(self._target, self._run_id, self._generation, keys, world=self._world)

    def _verify(self, sealed: LogRecord) -> VerifyReport:
        return verify(
            self._target,
            self._run_id,
            str(sealed.manifest_key),
            str(sealed.manifest_digest),
            level=2,
            progress=lambda _done, _total: self._talk(),
        )

    def _replace(self, sealed: LogRecord, report: VerifyReport) -> Activity:
        """Delete the bad objects of a step at the target, nothing else, and copy them again."""
        whole = open_checkpoint(self._source, self._run_id, sealed).object_keys()
        again = {key: digest for key, digest in whole.items() if key in report.bad_keys}
        if not again:
            raise _not_whole(sealed, report)
        for key in again:
            self._target.delete(key)
        yield from self._copy(again, 0)

    def _sealed(self, order: Order) -> LogRecord:
        """The commit that an order names, from the source's log."""
        if order.step is None or order.manifest_digest is None:
            raise UsageError(
                f"order '{order.order_id}' names no step to {order.kind}; send it again"
            )
        wanted = (order.step, order.manifest_digest)
        for record in reversed(RunLog(self._source, self._run_id, self._world).sync().commits):
            if (record.step, record.manifest_digest) == wanted:
                return record
        raise NotFound(
            f"the log at {self._source.url} has no commit of step {order.step} with manifest "
            f"{order.manifest_digest[:12]}; drain the source first"
        )

    def _copy(self, keys: Mapping[str, str], num_bytes: int) -> Activity:
        """Copy a few objects per tick, so that a later order can call it off."""
        names = list(keys)
        for start in range(0, len(names), SLICE_OBJECTS):
            part = {name: keys[name] for name in names[start : start + SLICE_OBJECTS]}
            num_bytes += copy_keys(
                self._source,
                self._target,
                part,
                world=self._world,
                progress=lambda _done, _total: self._talk(),
            ).num_bytes
            yield OrderResult(state="running", num_bytes=num_bytes, detail=format_bytes(num_bytes))
        yield OrderResult(state="done", num_bytes=num_bytes, detail=format_bytes(num_bytes))


def _not_whole(sealed: LogRecord, report: VerifyReport) -> Corrupt:
    return Corrupt(
        f"step {sealed.step} did not arrive whole ({report.problems[0]}); "
        "the run stays where it is, try the move again"
    )
