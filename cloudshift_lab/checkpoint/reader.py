"""The reader that needs no torch: open a committed step by its run, log record or manifest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from cloudshift_lab.checkpoint.index import ChunkTable, read_index
from cloudshift_lab.checkpoint.layout import (
    Manifest,
    ObjectRef,
    RankRecord,
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

__all__ = ["BoxRequest", "Checkpoint", "open_checkpoint", "open_run"]


def open_checkpoint(
    store: Store, run_id: str, commit: LogRecord | str, *, digest: str | None = None,
    concurrency: int = 8,
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
    if (manifest.run_id, manifest.step, manifest.generation) != place:
        raise Corrupt(f"{key} is the manifest of another step; use another step")
    records = _read_records(store, place, manifest, concurrency)
    tables = _read_tables(store, place, records, concurrency)
    parts = list(zip(records, tables, strict=True))
    return Checkpoint(store, place, manifest, ObjectRef(digest, len(data)), parts)


def _read_records(
    store: Store, place: StepDir, manifest: Manifest, concurrency: int
) -> list[RankRecord]:
    refs = manifest.ranks
    if len({ref.rank for ref in refs}) != len(refs):
        raise Corrupt(f"the manifest of step {manifest.step} lists a rank twice; use another step")
    keys = [place.record_key(ref.rank, manifest.world_size, ref.blake3) for ref in refs]
    wanted = [(k, ref.blake3, ref.size) for k, ref in zip(keys, refs, strict=True)]
    records = [
        parse_document(data, RankRecord, key)
        for key, data in zip(keys, fetch_all_verified(store, wanted, concurrency), strict=True)
    ]
    for ref, record in zip(refs, records, strict=True):
        check_belongs(record, place, manifest.world_size, ref.rank)
        if not set(record.packs) <= set(manifest.packs):
            raise Corrupt(
                f"rank {ref.rank} uses packs its manifest does not list; use another step"
            )
    return records


def _read_tables(
    store: Store, place: StepDir, records: Iterable[RankRecord], concurrency: int
) -> list[ChunkTable]:
    listed = list(records)
    keys = [place.index_key(r.rank, r.world_size, r.index.blake3) for r in listed]
    wanted = [(k, r.index.blake3, r.index.size) for k, r in zip(keys, listed, strict=True)]
    blobs = fetch_all_verified(store, wanted, concurrency)
    return [
        read_index(data, record.packs, key)
        for key, data, record in zip(keys, blobs, listed, strict=True)
    ]


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
