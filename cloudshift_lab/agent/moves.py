"""Bringing committed steps from one store to another: rounds beforehand, the last copy, proof."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cloudshift_lab.agent.attempt import Activity
from cloudshift_lab.agent.protocols import Restore
from cloudshift_lab.agent.tenure import restore_of
from cloudshift_lab.checkpoint.copy import plan_of, static_packs
from cloudshift_lab.checkpoint.gc import hold
from cloudshift_lab.checkpoint.layout import prepare_root
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.checkpoint.verify import VerifyReport, verify
from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.orders import Order, OrderResult
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store
from cloudshift_lab.storage.transfer import TransferOptions, TransferReport, transfer_steps

SLICE_S = 0.2
WAIT_S = 1.0
SMALL_BYTES = 4 * 2**20
SMALL_S = 1.0
SHRINKING = 0.8
SHRINKING_WHOLE = 0.25
_MOST_VANISHED = 3


@dataclass(frozen=True)
class Rest:
    """What the target lacks of a step (or of what commits share), in write order."""

    commit: LogRecord
    keys: Mapping[str, str]
    groups: tuple[Mapping[str, str], ...]
    sizes: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes[key] for group in self.groups for key in group)


@dataclass
class Tally:
    """What one order has moved so far, also before a store was away and it was begun again.

    ``moving_s``: seconds in which bytes were asked for.
    """

    num_bytes: int = 0
    moving_s: float = 0.0
    num_rounds: int = 0
    newest: LogRecord | None = None
    left_bytes: int = 0

    @property
    def bytes_per_s(self) -> float | None:
        return self.num_bytes / self.moving_s if self.num_bytes and self.moving_s > 0 else None


class Mover:
    """Obeys the orders that bring state from one store to another.

    Args:
        source: Where the run's log and state are.
        target: Where they shall be.
        run_id: Whose state.
        generation: Of the attempt that is to own the run at the target.
        world: Clock and nonces.
        options: How hard to ask the stores.
        talk: Called now and then during long work, so that nobody takes us for dead.
    """

    def __init__(
        self, source: Store, target: Store, run_id: str, world: World, *, generation: int,
        options: TransferOptions, talk: Callable[[], None],
    ) -> None:  # fmt: skip
        self._source = source
        self._target = target
        self._run_id = run_id
        self._generation = generation
        self._world = world
        self._options = options
        self._talk = talk
        self._log = RunLog(source, run_id, world)
        self._tallies: dict[str, Tally] = {}
        self._whole: dict[str, Restore] = {}

    # -- while the source trains -------------------------------------------------------------------

    def precopy(self, order: Order) -> Activity:
        """Copy in rounds while the source trains: each what the one before has left over.

        An order that prepares a rehearsal wants a whole committed step here; any other wants what
        the last two commits share: that will most likely be in the sealed step too, and the rest
        would be paid for twice. A dense optimizer shares nothing: then nothing is copied.

        Raises:
            NotFound: Commits vanish again and again while they are copied.
        """
        is_whole = order.replay or order.num_steps > 0
        yield from self._rounds(order, is_whole=is_whole)
        yield self._precopied(self._tally(order), is_whole=is_whole)

    def bring_whole(self, order: Order) -> Activity:
        """Copy a whole committed step in rounds, for an order that needs one.

        Raises:
            NotFound: Commits vanish again and again while they are copied.
        """
        yield OrderResult(state="running", detail="no whole step is here yet")
        yield from self._rounds(order, is_whole=True)

    def _rounds(self, order: Order, *, is_whole: bool) -> Activity:
        tally = self._tally(order)
        num_vanished, last_bytes = 0, None
        while True:
            try:
                rest = self._rest_of_newest() if is_whole else self._rest_of_shared()
                if rest is None and is_whole and tally.newest is None:
                    yield from self._wait("waiting for the source's first save")
                    continue
                shrinking = SHRINKING_WHOLE if is_whole else SHRINKING
                if rest is None or not self._is_worth(rest, last_bytes, tally, shrinking):
                    break
                yield from self._carry(rest, tally)
            except NotFound:
                num_vanished += 1
                if num_vanished > _MOST_VANISHED:
                    raise
                continue
            last_bytes = rest.num_bytes
            tally.num_rounds += 1
            tally.newest = rest.commit
            if self._is_small(rest.num_bytes, tally):
                break

    def _wait(self, what: str) -> Activity:
        until = self._world.monotonic() + WAIT_S
        while self._world.monotonic() < until:
            yield OrderResult(state="running", detail=what)

    def _is_worth(self, rest: Rest, last_bytes: int | None, tally: Tally, shrinking: float) -> bool:
        """Whether another round is; what it would have brought is remembered if not.

        What a whole step leaves over is repeated by the ranks: its bytes pay only if they are few.
        """
        is_news = tally.newest is None or rest.commit.seq != tally.newest.seq
        shrinks = last_bytes is None or rest.num_bytes <= shrinking * last_bytes
        is_worth = is_news and (shrinks or self._is_small(rest.num_bytes, tally))
        tally.left_bytes = 0 if is_worth or not is_news else rest.num_bytes
        return is_worth

    def _is_small(self, num_bytes: int, tally: Tally) -> bool:
        speed = tally.bytes_per_s
        return num_bytes <= max(SMALL_BYTES, 0 if speed is None else speed * SMALL_S)

    def _precopied(self, tally: Tally, *, is_whole: bool) -> OrderResult:
        rounds = "1 round" if tally.num_rounds == 1 else f"{tally.num_rounds} rounds"
        detail = f"{rounds}, {format_bytes(tally.num_bytes)}"
        if tally.num_rounds == 0:
            detail = "no two commits to compare yet"
        if tally.left_bytes:
            detail += f"; {format_bytes(tally.left_bytes)} more have changed since"
        copied = tally.newest if is_whole else None
        return OrderResult(
            state="done",
            detail=detail,
            num_bytes=tally.num_bytes,
            bytes_per_s=tally.bytes_per_s,
            step=None if copied is None else copied.step,
            manifest_digest=None if copied is None else copied.manifest_digest,
        )

    def newest_whole(self) -> Restore | None:
        """The newest committed step of the source that is wholly here, judged by sizes.

        Raises:
            CloudshiftError: As a store reported.
        """
        for record in reversed(self._log.sync().commits):
            digest = str(record.manifest_digest)
            if digest not in self._whole and self._is_here(record):
                self._whole[digest] = restore_of(record)
            if digest in self._whole:
                return self._whole[digest]
        return None

    def _is_here(self, record: LogRecord) -> bool:
        if self._target.size(str(record.manifest_key)) is None:
            return False  # the manifest is written last
        try:
            sizes = open_checkpoint(self._target, self._run_id, record).object_sizes()
        except (NotFound, Corrupt):
            return False
        found = fan_out(self._target.size, sizes, self._options.concurrency)
        return list(found) == list(sizes.values())

    # -- while nobody trains -----------------------------------------------------------------------

    def copy_step(self, order: Order) -> Activity:
        """Copy what a committed step has and the target lacks: packs, then records, manifest last.

        Raises:
            NotFound: The source's log has no commit of that step with that manifest.
        """
        tally = self._tally(order)
        sealed = self.commit_of(order)
        checkpoint = self.open_source(sealed)
        keys, packs = checkpoint.object_keys(), checkpoint.packs()
        groups = (
            {key: digest for key, digest in keys.items() if key in packs},
            {key: digest for key, digest in keys.items() if key not in packs},
        )
        yield from self._carry(Rest(sealed, keys, groups, checkpoint.object_sizes()), tally)
        yield OrderResult(
            state="done",
            step=sealed.step,
            num_bytes=tally.num_bytes,
            bytes_per_s=tally.bytes_per_s,
            detail=format_bytes(tally.num_bytes),
        )

    def verify_step(self, order: Order) -> Activity:
        """Prove that a copied step is whole: every stored hash, then every chunk decoded.

        What is damaged is deleted and copied again, each object once: a copy judges by size, so
        that damage of the same size would otherwise stay and block every later move.

        Raises:
            Corrupt: It still is not whole; says what is wrong with the first object.
        """
        sealed = self.commit_of(order)
        replaced: set[str] = set()
        while not (report := self._verify(sealed)).ok:
            bad = set(report.bad_keys)
            if not bad.isdisjoint(replaced):
                raise _not_whole(sealed, report)
            yield from self._replace(sealed, report)
            replaced |= bad
        detail = f"{report.objects} objects, {format_bytes(report.num_bytes)} decoded and proved"
        if replaced:
            detail = f"{detail}; {len(replaced)} damaged ones were copied again"
        yield OrderResult(state="done", step=sealed.step, detail=detail)

    def commit_of(self, order: Order) -> LogRecord:
        """The commit that an order names, from the source's log.

        Raises:
            UsageError: The order names none.
            NotFound: The log has no such commit.
        """
        if order.step is None or order.manifest_digest is None:
            raise UsageError(
                f"order '{order.order_id}' names no step to {order.kind}; send it again"
            )
        wanted = (order.step, order.manifest_digest)
        for record in reversed(self._log.sync().commits):
            if (record.step, record.manifest_digest) == wanted:
                return record
        raise NotFound(
            f"the log at {self._source.url} has no commit of step {order.step} with manifest "
            f"{order.manifest_digest[:12]}; drain the source first"
        )

    def sealed(self) -> LogRecord:
        """The source's newest commit: after the handover, the step that the run arrived with.

        Raises:
            NotFound: The source's log has none.
        """
        if (newest := self._log.sync().last_commit) is None:
            raise NotFound(f"the log at {self._source.url} has no commit; look at that store")
        return newest

    def open_source(self, record: LogRecord) -> Checkpoint:
        """A committed step where it is now.

        Raises:
            Corrupt, NotFound: It is damaged there.
        """
        return open_checkpoint(self._source, self._run_id, record)

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
        whole = self.open_source(sealed)
        sizes = whole.object_sizes()
        again = {k: digest for k, digest in whole.object_keys().items() if k in report.bad_keys}
        if not again:
            raise _not_whole(sealed, report)
        for key in again:
            self._target.delete(key)
        yield from self._carry(Rest(sealed, again, (again,), sizes), Tally())

    # -- what is missing, and bringing it ----------------------------------------------------------

    def _rest_of_newest(self) -> Rest | None:
        newest = self._log.sync().last_commit
        return None if newest is None else self._rest_of(newest)

    def _rest_of(self, record: LogRecord) -> Rest:
        checkpoint = self.open_source(record)
        plan = plan_of(checkpoint, self._target, concurrency=self._options.concurrency)
        groups = (plan.packs, plan.records)
        return Rest(record, checkpoint.object_keys(), groups, checkpoint.object_sizes())

    def _rest_of_shared(self) -> Rest | None:
        """What the last two commits share; None as long as there are no two to compare."""
        commits = self._log.sync().commits[-2:]
        if len(commits) < 2:
            return None
        older, newer = (self.open_source(record) for record in commits)
        shared = {key: pack for key, (pack, _) in static_packs(older, newer).items()}
        sizes = newer.object_sizes()
        found = fan_out(self._target.size, shared, self._options.concurrency)
        missing = {k: shared[k] for k, size in zip(shared, found, strict=True) if size != sizes[k]}
        return Rest(commits[-1], shared, (missing,), sizes)

    def _carry(self, rest: Rest, tally: Tally) -> Activity:
        """Bring what is missing, a little per tick, so that a later order can call it off."""
        prepare_root(self._target)
        self._hold(rest.keys)
        first, *then = rest.groups
        steps = transfer_steps(
            self._source, self._target, first,
            then=then, sizes=rest.sizes, options=self._options, world=self._world,
        )  # fmt: skip
        before, began = tally.num_bytes, self._world.monotonic()
        slice_began = began
        try:
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    report: TransferReport = end.value
                    tally.num_bytes = before + report.num_bytes
                    return
                tally.num_bytes = before + progress.done_bytes
                if self._world.monotonic() - slice_began >= SLICE_S:
                    self._talk()
                    yield OrderResult(
                        state="running",
                        num_bytes=tally.num_bytes,
                        total_bytes=before + progress.total_bytes,
                        bytes_per_s=progress.bytes_per_s,
                        eta_s=progress.eta_s,
                        detail=_round_of(tally),
                    )
                    slice_began = self._world.monotonic()
        finally:
            steps.close()
            tally.moving_s += self._world.monotonic() - began

    def _hold(self, keys: Collection[str]) -> None:
        """Guard what is copied until the commit, and what is there already and not copied."""
        if keys:
            hold(self._target, self._run_id, self._generation, keys, world=self._world)

    def _tally(self, order: Order) -> Tally:
        return self._tallies.setdefault(order.order_id, Tally())


def _round_of(tally: Tally) -> str:
    """Which round is under way; the first one needs no words."""
    return "" if tally.num_rounds == 0 else f"round {tally.num_rounds + 1}"


def _not_whole(sealed: LogRecord, report: VerifyReport) -> Corrupt:
    return Corrupt(
        f"step {sealed.step} did not arrive whole ({report.problems[0]}); "
        "the run stays where it is, try the move again"
    )
