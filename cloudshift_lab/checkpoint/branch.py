"""Begin a new run from a step of another one: every chunk is shared, only records are rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cloudshift_lab.checkpoint.history import Origin, origin_key
from cloudshift_lab.checkpoint.layout import (
    Manifest,
    ObjectRef,
    StepDir,
    blake3_hex,
    fetch_verified,
    parse_document,
    parse_manifest_key,
    step_dir,
)
from cloudshift_lab.checkpoint.pins import Pin, pin, pin_key, unpin
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.core.errors import Conflict, Corrupt, NotFound, UsageError
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.fanout import fan_out
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import DEADLINE_S, Store

GENERATION = 1


class Branched(msgspec.Struct, frozen=True, kw_only=True):
    """A new run that holds one step; ``shared_bytes`` of packs were not copied."""

    run_id: str
    step: int
    manifest_key: str
    manifest_digest: str
    shared_bytes: int
    written_bytes: int


def branch(
    store: Store, run_id: str, step: int, new_run_id: str, *, owner: str,
    world: World = REAL_WORLD, deadline_s: float = DEADLINE_S, concurrency: int = 8,
) -> Branched:  # fmt: skip
    """Make ``step`` of ``run_id`` the first commit of a new run in the same store.

    Writes the new run's origin, chunk tables, rank records and manifest, then its log's
    ``acquire`` and ``commit`` (in this order), all at generation 1 and under ``owner``, who may go
    on training with it. No pack is read or written. Every object is named by its content, and the
    log records carry nonces made of ``owner``: after a crash anywhere, call it again.

    The parent's step must stay until the commit has landed: it is pinned meanwhile. Afterwards
    the new run's own commit keeps the packs, whatever happens to the parent.

    Args:
        store: Where the step is.
        run_id: The parent.
        step: A committed step of it.
        new_run_id: A run without a log; the caller has claimed it.
        owner: Used once in the world: the new run's first owner.
        world: Clock.
        deadline_s: How long each append to the log goes on trying, seconds.
        concurrency: Requests at a time.

    Raises:
        NotFound: The parent has no such committed step here (any more), or it lost objects.
        Conflict: The new run has a log already, and another owner.
        UsageError: The step is partial.
        Corrupt: The parent's records differ from their hash.
        Unavailable, Denied, Exhausted: As the store reported; call again.
    """
    log = RunLog(store, new_run_id, world, deadline_s)
    guard = f"branch-{new_run_id}"
    landed = _landed(log, new_run_id, owner)
    if landed is not None:
        unpin(store, guard)
        return _told(store, new_run_id, landed)
    pinned = _pinned(store, guard, run_id, step) or pin(store, guard, run_id, step, world=world)
    try:
        parent = _open_parent(store, pinned, concurrency)
        place = step_dir(new_run_id, step, GENERATION)
        branched = _publish(store, parent, log, owner=owner, place=place, concurrency=concurrency)
    except (Conflict, Corrupt, NotFound, UsageError):
        unpin(store, guard)  # calling again would not help
        raise
    unpin(store, guard)
    return branched


def _publish(
    store: Store, parent: Checkpoint, log: RunLog, *, owner: str, place: StepDir, concurrency: int
) -> Branched:
    """Write everything of the new run, its log last."""
    _keep_origin(store, place.run_id, parent)
    manifest, written_bytes = _rewrite(store, parent, place, concurrency)
    digest = blake3_hex(manifest)
    key = place.manifest_key(digest)
    store.put(key, manifest)
    log.acquire(generation=GENERATION, owner=owner, nonce=f"{owner}:branch-acquire")
    log.commit(
        generation=GENERATION, step=place.step, manifest_key=key, manifest_digest=digest,
        nonce=_commit_nonce(owner),
    )  # fmt: skip
    return Branched(
        run_id=place.run_id,
        step=place.step,
        manifest_key=key,
        manifest_digest=digest,
        shared_bytes=sum(pack.size for pack in parent.manifest.packs),
        written_bytes=written_bytes + len(manifest),
    )


def _commit_nonce(owner: str) -> str:
    return f"{owner}:branch-commit"


def _landed(log: RunLog, run_id: str, owner: str) -> LogRecord | None:
    """The branch's commit if an earlier call landed it.

    Raises:
        Conflict: The log belongs to somebody else.
    """
    state = log.sync()
    landed = state.by_nonce(_commit_nonce(owner))
    if landed is None and any(record.owner != owner for record in state.records):
        raise Conflict(f"run '{run_id}' exists already; choose another name for the branch")
    return landed


def _told(store: Store, run_id: str, commit: LogRecord) -> Branched:
    key, digest = commit.manifest_key or "", commit.manifest_digest or ""
    parse_manifest_key(run_id, key, digest)
    manifest = parse_document(fetch_verified(store, key, digest), Manifest, key)
    return Branched(
        run_id=run_id,
        step=manifest.step,
        manifest_key=key,
        manifest_digest=digest,
        shared_bytes=sum(pack.size for pack in manifest.packs),
        written_bytes=0,
    )


def _pinned(store: Store, guard: str, run_id: str, step: int) -> Pin | None:
    """The pin that an earlier call left: its step is there, even if it was forgotten since."""
    key = pin_key(guard)
    try:
        found = from_json(store.get(key), Pin, what=f"{store.url}/{key}")
    except NotFound:
        return None
    is_ours = found.checked and (found.run_id, found.step) == (run_id, step)
    return found if is_ours else None


def _open_parent(store: Store, pinned: Pin, concurrency: int) -> Checkpoint:
    """The parent's step, with every pack still there."""
    run_id, step = pinned.run_id, pinned.step
    parent = open_checkpoint(
        store, run_id, pinned.manifest_key, digest=pinned.manifest_digest, concurrency=concurrency
    )
    if parent.coverage == "partial":
        raise UsageError(f"step {step} of '{run_id}' is partial; branch from another step")
    sizes = {key: size for key, (_, size) in parent.packs().items()}
    found = fan_out(store.size, sizes, concurrency)
    for (key, size), stored in zip(sizes.items(), found, strict=True):
        if stored != size:
            raise Corrupt(
                f"{store.url}/{key} of step {step} has {stored or 0} of {size} bytes; "
                "branch from another step, or repair this one",
                key=key,
            )
    return parent


def _keep_origin(store: Store, new_run_id: str, parent: Checkpoint) -> None:
    origin = Origin(
        run_id=parent.manifest.run_id,
        step=parent.step,
        manifest_digest=parent.manifest_digest,
        packs=parent.manifest.packs,
    )
    store.put(origin_key(new_run_id), to_json(origin))


def _rewrite(
    store: Store, parent: Checkpoint, place: StepDir, concurrency: int
) -> tuple[bytes, int]:
    """Write each rank's chunk table and record anew; returns the manifest and their bytes."""
    manifest = _fields(fetch_verified(store, parent.manifest_key, parent.manifest_digest))
    refs = from_json(manifest["ranks"], list[dict[str, Any]], what="the manifest's ranks")
    sources = _step_dir_of(parent)

    def rewrite(ref: dict[str, Any]) -> tuple[dict[str, Any], int]:
        rank, world_size = ref["rank"], parent.world_size
        key = sources.record_key(rank, world_size, ref["blake3"])
        record = _fields(fetch_verified(store, key, ref["blake3"]))
        index = from_json(record["index"], ObjectRef, what=key)
        table_key = sources.index_key(rank, world_size, index.blake3)
        table = fetch_verified(store, table_key, index.blake3, index.size)
        store.put(place.index_key(rank, world_size, index.blake3), table)
        data = _belonging(record, place)
        digest = blake3_hex(data)
        store.put(place.record_key(rank, world_size, digest), data)
        return {**ref, "blake3": digest, "size": len(data)}, len(table) + len(data)

    done = fan_out(rewrite, refs, concurrency)
    ranks = msgspec.Raw(to_json([ref for ref, _ in done]))
    return _belonging({**manifest, "ranks": ranks}, place), sum(size for _, size in done)


def _step_dir_of(step: Checkpoint) -> StepDir:
    manifest = step.manifest
    return step_dir(manifest.run_id, manifest.step, manifest.generation)


def _fields(document: bytes) -> Mapping[str, msgspec.Raw]:
    """A document's fields as they are written: none is lost, known to us or not."""
    return from_json(document, dict[str, msgspec.Raw], what="a record of the parent")


def _belonging(fields: Mapping[str, msgspec.Raw], place: StepDir) -> bytes:
    """The same document, of another run and generation."""
    mine = {"run_id": place.run_id, "generation": place.generation}
    return to_json({**fields, **mine})
