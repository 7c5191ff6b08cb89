"""Bringing a committed step into this agent's own store: pre-copy, copy and proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.orders import Order, OrderResult
from cloudshift_lab.core.world import World
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store

SLICE_OBJECTS = 8

Activity = Iterator[OrderResult]


def precopy(source: Store, target: Store, run_id: str, world: World) -> Activity:
    """Copy, while the source still trains, what its last two commits share.

    What two commits share will most likely be in the sealed step too; the rest would be paid for
    twice. A dense optimizer shares nothing: then nothing is copied here.
    """
    from cloudshift_lab.checkpoint.reader import open_checkpoint

    commits = RunLog(source, run_id, world).sync().commits[-2:]
    if len(commits) < 2:
        yield OrderResult(state="done", detail="no two commits to compare yet")
        return
    older, newer = (open_checkpoint(source, run_id, commit).packs() for commit in commits)
    shared = {key: newer[key][0] for key in newer if key in older}
    yield from _copy(source, target, shared, world)


def copy_step(source: Store, target: Store, run_id: str, order: Order, world: World) -> Activity:
    """Copy whatever a committed step has and the target lacks: packs, then records, then manifest.

    Raises:
        NotFound: The source's log has no commit of that step with that manifest.
    """
    from cloudshift_lab.checkpoint.copy import copy_plan

    sealed = _sealed(source, run_id, order, world)
    assert sealed.manifest_key is not None and sealed.manifest_digest is not None
    plan = copy_plan(source, target, run_id, sealed.manifest_key, sealed.manifest_digest)
    num_bytes = 0
    for keys in (plan.packs, plan.records):
        for result in _copy(source, target, keys, world, num_bytes):
            num_bytes = result.num_bytes
            if result.state == "running":
                yield result
    yield OrderResult(
        state="done", step=sealed.step, num_bytes=num_bytes, detail=format_bytes(num_bytes)
    )


def verify_step(source: Store, target: Store, run_id: str, order: Order, world: World) -> Activity:
    """Prove that a copied step is whole: sizes and stored checksums, then every byte decoded.

    Raises:
        Corrupt: It is not; says what is wrong with the first object.
    """
    from cloudshift_lab.checkpoint.verify import verify

    sealed = _sealed(source, run_id, order, world)
    assert sealed.manifest_key is not None and sealed.manifest_digest is not None
    objects = 0
    for level in (1, 2):
        report = verify(target, run_id, sealed.manifest_key, sealed.manifest_digest, level=level)
        if not report.ok:
            raise Corrupt(
                f"step {order.step} did not arrive whole ({report.problems[0]}); "
                "the run stays where it is, try the move again"
            )
        objects = report.objects
        yield OrderResult(state="running", detail=f"level {level} of 2 proved")
    yield OrderResult(state="done", step=sealed.step, detail=f"{objects} objects proved")


def _sealed(source: Store, run_id: str, order: Order, world: World) -> LogRecord:
    """The commit that an order names, from the source's log."""
    if order.step is None or order.manifest_digest is None:
        raise UsageError(f"order '{order.order_id}' names no step to {order.kind}; send it again")
    wanted = (order.step, order.manifest_digest)
    for record in reversed(RunLog(source, run_id, world).sync().commits):
        if (record.step, record.manifest_digest) == wanted:
            return record
    raise NotFound(
        f"the log at {source.url} has no commit of step {order.step} with manifest "
        f"{order.manifest_digest[:12]}; drain the source first"
    )


def _copy(
    source: Store, target: Store, keys: Mapping[str, str], world: World, num_bytes: int = 0
) -> Activity:
    """Copy a few objects per tick, so that the agent goes on talking meanwhile."""
    from cloudshift_lab.storage.copy import copy_keys

    names = list(keys)
    for start in range(0, len(names), SLICE_OBJECTS):
        part = {name: keys[name] for name in names[start : start + SLICE_OBJECTS]}
        num_bytes += copy_keys(source, target, part, world=world).num_bytes
        yield OrderResult(state="running", num_bytes=num_bytes, detail=format_bytes(num_bytes))
    yield OrderResult(state="done", num_bytes=num_bytes, detail=format_bytes(num_bytes))
