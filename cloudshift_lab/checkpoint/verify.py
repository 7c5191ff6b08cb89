"""Prove that a step is stored whole: level 1 by stored hashes, level 2 by decoding every chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec
import numpy as np

from cloudshift_lab.checkpoint.delta import decode_checked
from cloudshift_lab.checkpoint.fetch import Piece, fetch_pieces
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.layout import blake3_hex, pack_key
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.storage.store import Store

_NOTHING = ((slice(0, 0),), np.empty(0, dtype=np.uint8))


class VerifyReport(msgspec.Struct, frozen=True):
    """What was checked: ``objects`` and their ``num_bytes``; ``problems`` in words.

    ``bad_keys`` are the objects to delete and copy again.
    """

    ok: bool
    level: int
    objects: int
    num_bytes: int
    problems: tuple[str, ...] = ()
    bad_keys: tuple[str, ...] = ()


def verify(
    store: Store, run_id: str, manifest_key: str, digest: str, *, level: Literal[1, 2] = 2,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:  # fmt: skip
    """Read every object of a step and check it.

    Level 1 checks hashes of stored bytes (manifest, records, chunk tables, packs). Level 2 also
    decodes every chunk and compares it with its id, with the very code that restores.

    Args:
        store: Where to check.
        run_id: Whose step it is.
        manifest_key: From the log's commit record.
        digest: The manifest's blake3, from there too.
        level: 1 or 2.
        progress: Called with bytes checked and bytes in all.

    Raises:
        Unavailable, Denied: The store did not let us look; nothing is said about the step.
    """
    try:
        checkpoint = open_checkpoint(store, run_id, manifest_key, digest=digest)
    except (Corrupt, NotFound) as error:
        bad = str(error.facts.get("key", manifest_key))
        return VerifyReport(
            ok=False,
            level=level,
            objects=1,
            num_bytes=0,
            problems=(error.message,),
            bad_keys=(bad,),
        )
    problems: dict[str, str] = {}
    chunks = _by_pack(checkpoint) if level == 2 else {}
    done, total = 0, sum(size for _, size in checkpoint.packs().values())
    for key, (pack, size) in checkpoint.packs().items():
        problem = _check_pack(store, key, pack, size=size, chunks=chunks.get(pack, ()))
        if problem is not None:
            problems[key] = problem
        done += size
        if progress is not None:
            progress(done, total)
    return VerifyReport(
        ok=not problems, level=level, objects=len(checkpoint.object_keys()), num_bytes=total,
        problems=tuple(problems.values()), bad_keys=tuple(problems),
    )  # fmt: skip


def _by_pack(checkpoint: Checkpoint) -> dict[str, list[ChunkLocation]]:
    found: dict[str, dict[ChunkLocation, None]] = {}
    for location in checkpoint.locations():
        found.setdefault(location.pack, {})[location] = None
    return {pack: list(locations) for pack, locations in found.items()}


def _check_pack(
    store: Store, key: str, pack: str, *, size: int, chunks: Iterable[ChunkLocation]
) -> str | None:
    """What is wrong with a pack; None when nothing is."""
    assert key == pack_key(pack), "keys are built from hashes"
    try:
        data = _read_pack(store, key, pack, size)
        view = memoryview(data)
        for chunk in (c for c in chunks if not c.refs):
            decode_checked(chunk, view[chunk.offset : chunk.offset + chunk.stored_len])
        fetch_pieces(store, [Piece(c, (c.raw_len,), *_NOTHING) for c in chunks if c.refs])
    except (Corrupt, NotFound) as error:
        return error.message
    return None


def _read_pack(store: Store, key: str, pack: str, size: int) -> bytes:
    for _ in range(2):
        data = store.get(key, start=0, end=size + 1)
        if len(data) == size and blake3_hex(data) == pack:
            return data
    raise Corrupt(
        f"{store.url}/{key} has {len(data)} of {size} bytes or other content than its name says; "
        "delete it and copy it again",
        key=key,
    )
