"""Prove that a step is stored whole: level 1 by stored hashes, level 2 by decoding every chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Literal

import msgspec
import numpy as np

from cloudshift_lab.checkpoint.delta import decode_checked, to_read
from cloudshift_lab.checkpoint.fetch import (
    INLINE_BYTES,
    MAX_THREADS,
    Piece,
    fetch_pieces,
    usable_cpus,
)
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.layout import blake3_hex, pack_key
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.storage.store import Store

Progress = Callable[[int, int], None]
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
    progress: Progress | None = None, concurrency: int = 4, threads: int | None = None,
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
        progress: Called with bytes checked and bytes in all; deltas are read twice and count so.
        concurrency: Packs (of about 16 MiB) read at a time; a few more wait for a thread.
        threads: Threads that hash and decode; None: one per usable processor, up to 8.

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
    check = _Check(store, checkpoint, level, progress)
    check.read_packs(concurrency, threads)
    if level == 2 and not check.problems:
        check.read_deltas()
    problems = dict(sorted(check.problems.items()))
    return VerifyReport(
        ok=not problems, level=level, objects=len(checkpoint.object_keys()),
        num_bytes=check.total, problems=tuple(problems.values()), bad_keys=tuple(problems),
    )  # fmt: skip


class _Check:
    """Packs stream in, are hashed and decoded meanwhile; only this thread calls the store."""

    def __init__(
        self, store: Store, checkpoint: Checkpoint, level: int, progress: Progress | None
    ) -> None:
        self._store = store
        self._packs = checkpoint.packs()
        self._chunks = _by_pack(checkpoint) if level == 2 else {}
        self._progress = progress
        self._done = 0
        self.total = sum(size for _, size in self._packs.values())
        self._to_do = self.total + sum(
            chunk.stored_len for chunks in self._chunks.values() for chunk in chunks if chunk.refs
        )
        self.problems: dict[str, str] = {}

    def read_packs(self, concurrency: int, threads: int | None) -> None:
        """Every pack once; one that is not there is met again when asked for alone."""
        left = dict.fromkeys(self._packs)
        try:
            self._stream(left, concurrency, threads)
        except NotFound:
            for key in list(left):
                self._settle(key, self._judge(key))

    def read_deltas(self) -> None:
        """Every chunk that is decoded with others; what they refer to was found sound."""
        for key, (pack, _) in self._packs.items():
            deltas = [chunk for chunk in self._chunks.get(pack, ()) if chunk.refs]
            try:
                for group in apart(deltas):
                    fetch_pieces(self._store, [Piece(c, (c.raw_len,), *_NOTHING) for c in group])
            except (Corrupt, NotFound) as error:
                self.problems[key] = error.message
            if deltas:
                self._advance(sum(chunk.stored_len for chunk in deltas))

    def _stream(self, left: dict[str, None], concurrency: int, threads: int | None) -> None:
        """Read what is ``left``, and take out of it what is settled."""
        keys = list(left)
        requests = [(key, 0, self._packs[key][1] + 1) for key in keys]
        if threads is None:
            threads = 1 if self.total <= INLINE_BYTES else min(usable_cpus(), MAX_THREADS)
        pending: deque[tuple[str, Future[str | None]]] = deque()
        with ExitStack() as stack:
            answers = stack.enter_context(closing(self._store.get_each(requests, concurrency)))
            pool = stack.enter_context(ThreadPoolExecutor(threads, "verify"))
            for number, body in answers:
                pending.append((keys[number], pool.submit(self._problem, keys[number], body)))
                while len(pending) > threads:
                    self._take(left, *pending.popleft())
            while pending:
                self._take(left, *pending.popleft())

    def _take(self, left: dict[str, None], key: str, found: Future[str | None]) -> None:
        problem = found.result()
        self._settle(key, None if problem is None else self._judge(key))
        del left[key]

    def _judge(self, key: str) -> str | None:
        """A second reading tells damage on the way from damage at rest; None: it is sound."""
        try:
            body = self._store.get(key, start=0, end=self._packs[key][1] + 1)
        except NotFound as error:
            return error.message
        return self._problem(key, body)

    def _settle(self, key: str, problem: str | None) -> None:
        if problem is not None:
            self.problems[key] = problem
        self._advance(self._packs[key][1])

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._to_do)

    def _problem(self, key: str, data: bytes) -> str | None:
        """What is wrong with a pack's bytes; None when nothing is."""
        pack, size = self._packs[key]
        assert key == pack_key(pack), "keys are built from hashes"
        if len(data) != size or blake3_hex(data) != pack:
            return (
                f"{self._store.url}/{key} has {len(data)} of {size} bytes or other content than "
                "its name says; delete it and copy it again"
            )
        view = memoryview(data)
        try:
            for chunk in self._chunks.get(pack, ()):
                if not chunk.refs:
                    decode_checked(chunk, view[chunk.offset : chunk.offset + chunk.stored_len])
        except Corrupt as error:
            return error.message
        return None


def apart(deltas: Sequence[ChunkLocation]) -> Iterator[list[ChunkLocation]]:
    """Deltas in groups in which each is decoded itself, not a plain chunk of the same content.

    Left out are deltas to their own content: nobody ever decodes these.
    """
    read = set(to_read(deltas))
    yield [delta for delta in deltas if delta in read]
    for delta in deltas:
        if delta not in read and delta in to_read([delta]):
            yield [delta]


def _by_pack(checkpoint: Checkpoint) -> dict[str, list[ChunkLocation]]:
    found: dict[str, dict[ChunkLocation, None]] = {}
    for location in checkpoint.locations():
        found.setdefault(location.pack, {})[location] = None
    return {pack: list(locations) for pack, locations in found.items()}
