"""The reader that needs no torch: open a committed step by its run, log record or manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cloudshift_lab.checkpoint.fetch import CONCURRENCY
from cloudshift_lab.checkpoint.index import ChunkTable, read_index
from cloudshift_lab.checkpoint.layout import (
    Manifest,
    ObjectRef,
    RankRecord,
    RankRef,
    StepDir,
    fetch_all_verified,
    fetch_verified,
    parse_document,
    parse_manifest_key,
)
from cloudshift_lab.checkpoint.seal import check_belongs
from cloudshift_lab.checkpoint.step import BoxRequest, Checkpoint
from cloudshift_lab.core.errors import Corrupt, NotFound, UsageError
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.store import Store, open_store

_Wanted = tuple[str, str, int]
__all__ = ["BoxRequest", "Checkpoint", "open_checkpoint", "open_run"]


def open_checkpoint(
    store: Store, run_id: str, commit: LogRecord | str, *, digest: str | None = None,
    concurrency: int = CONCURRENCY,
) -> Checkpoint:  # fmt: skip
    """Open a step by its commit in the run log, or by its manifest's key and digest.

    Args:
        store: Where it lies.
        run_id: Whose step it is.
        commit: The log's ``commit`` record, or the manifest's key.
        digest: The manifest's blake3 when a key is given.
        concurrency: Requests at a time.

    Raises:
        Corrupt: Anything differs from its hash or does not fit together.
        NotFound: An object is missing.
        UsageError: A key without a digest, or a record that is no commit.
    """
    key = commit if isinstance(commit, str) else commit.manifest_key
    digest = digest if isinstance(commit, str) else commit.manifest_digest
    if key is None or digest is None:
        raise UsageError("a step is opened by its commit record, or by manifest key and digest")
    place = parse_manifest_key(run_id, key, digest)
    data = fetch_verified(store, key, digest)
    manifest = parse_document(data, Manifest, key)
    said = manifest.step if isinstance(commit, str) else commit.step
    if (manifest.run_id, manifest.step, manifest.generation) != place or said != manifest.step:
        raise Corrupt(f"{key} is the manifest of another step; use another step")
    records, tables = _read_ranks(store, place, manifest, concurrency)
    parts = list(zip(records, tables, strict=True))
    return Checkpoint(store, place, manifest, ObjectRef(digest, len(data)), parts)


def _read_ranks(
    store: Store, place: StepDir, manifest: Manifest, concurrency: int
) -> tuple[list[RankRecord], list[ChunkTable]]:
    """Records and chunk tables of all ranks, in one round where the manifest names both."""
    refs = manifest.ranks
    if len({ref.rank for ref in refs}) != len(refs):
        raise Corrupt(f"the manifest of step {manifest.step} lists a rank twice; use another step")
    world = manifest.world_size
    records_at = [(place.record_key(r.rank, world, r.blake3), r.blake3, r.size) for r in refs]
    early = [_index_at(place, world, r.rank, r.index) for r in refs if r.index is not None]
    found = _fetch(store, [*records_at, *early], concurrency)
    records = [
        _checked_record(found[at], at[0], place, manifest=manifest, ref=ref)
        for at, ref in zip(records_at, refs, strict=True)
    ]
    tables_at = [_index_at(place, world, r.rank, r.index) for r in records]
    found |= _fetch(store, [at for at in tables_at if at not in found], concurrency)
    tables = [
        read_index(found[at], record.packs, at[0])
        for at, record in zip(tables_at, records, strict=True)
    ]
    return records, tables


def _index_at(place: StepDir, world_size: int, rank: int, index: ObjectRef) -> _Wanted:
    return place.index_key(rank, world_size, index.blake3), index.blake3, index.size


def _fetch(store: Store, wanted: Sequence[_Wanted], concurrency: int) -> dict[_Wanted, bytes]:
    return dict(zip(wanted, fetch_all_verified(store, wanted, concurrency), strict=True))


def _checked_record(
    data: bytes, key: str, place: StepDir, *, manifest: Manifest, ref: RankRef
) -> RankRecord:
    record = parse_document(data, RankRecord, key)
    check_belongs(record, place, manifest.world_size, ref.rank)
    if not set(record.packs) <= set(manifest.packs):
        raise Corrupt(f"rank {ref.rank} uses packs its manifest does not list; use another step")
    if ref.index is not None and ref.index != record.index:
        raise Corrupt(
            f"rank {ref.rank}'s chunk table is not the one its manifest lists; use another step"
        )
    return record


def open_run(
    store: Store | str, run_id: str, step: int | Literal["latest"] = "latest"
) -> Checkpoint:
    """Open a committed step of a run, found through its log.

    Args:
        store: The run's store, or its URL (credentials then come from the environment).
        run_id: Which run.
        step: An optimizer step, or the newest committed one.

    Raises:
        NotFound: The run has no such committed step here; says where the run went, if it moved.
        Corrupt: Stored bytes differ from their hash.
    """
    opened = open_store(store) if isinstance(store, str) else store
    state = RunLog(opened, run_id).sync()
    commits = [c for c in state.commits if step in ("latest", c.step)]
    if not commits:
        moved = f"; the run moved to {state.home_url}, look there" if state.home_url else ""
        steps = sorted({c.step for c in state.commits if c.step is not None})
        raise NotFound(
            f"run '{run_id}' has no committed step {step} in {opened.url} "
            f"(committed: {steps[-5:] or 'none'}){moved or '; check the run id and the store'}"
        )
    newest = max(commits, key=lambda c: (c.step or 0, c.seq)) if step == "latest" else commits[-1]
    return open_checkpoint(opened, run_id, newest)
