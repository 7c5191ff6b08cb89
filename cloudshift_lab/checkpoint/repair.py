"""What can be saved of a damaged store: heal objects by their hashes, then say what is lost.

Ids are content addresses, so healing cannot lie: an object is written only when its bytes hash to
its own name. Sources are copies in other stores, and the same chunks in other packs of the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from cloudshift_lab.checkpoint.delta import to_read
from cloudshift_lab.checkpoint.index import ChunkLocation
from cloudshift_lab.checkpoint.layout import blake3_hex, pack_key
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.core.errors import Corrupt, NotFound
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.fanout import fan_out_each
from cloudshift_lab.storage.log import LogRecord, RunLog
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.storage.store import Store

StepState = Literal["whole", "damaged", "gone"]
Progress = Callable[[int, int], None]
_NAMED = re.compile(r".*\b(?P<hash>[0-9a-f]{64})\.(?:json|index|pack)")
_MOST_DOCUMENTS = 100_000


class StepVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a committed step.

    ``whole``: every tensor reads. ``damaged``: ``lost`` tensors cannot be read whole, all others
    can. ``gone``: a manifest, record or chunk table is lost, so that nobody knows where anything
    lies; ``problem`` says which.
    """

    step: int
    manifest_key: str
    state: StepState
    lost: tuple[str, ...] = ()
    num_tensors: int = 0
    problem: str = ""


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts by step, newest first; objects that were ``healed`` and that are still ``bad``."""

    run_id: str
    dry_run: bool
    steps: tuple[StepVerdict, ...]
    healed: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    num_bytes: int = 0

    @property
    def newest_whole(self) -> int | None:
        """The step to restore; None when no step is whole."""
        return next((verdict.step for verdict in self.steps if verdict.state == "whole"), None)


class _Broken(NamedTuple):
    """A commit that could not be opened."""

    commit: LogRecord
    problem: str


def repair(
    store: Store, run_id: str, *, other: Store | Sequence[Store] | None = None,
    steps: Sequence[int] | None = None, world: World = REAL_WORLD, dry_run: bool = False,
    concurrency: int = 4, progress: Progress | None = None,
) -> RepairReport:  # fmt: skip
    """Heal what can be healed of a run's committed steps, and say what is lost.

    Writes only to keys whose object is missing or differs from its hash, and only bytes that match
    it: never makes anything worse, and may be ended and begun again at any line. A step that can
    only be read in part is left as it is.

    Args:
        store: The damaged one.
        run_id: Whose steps.
        other: Where copies may be: the store of a move's other side, a backup.
        steps: Only these; None: every step that the log has.
        world: Clock of the log.
        dry_run: Only say what could be healed.
        concurrency: Packs (of about 16 MiB) read at a time.
        progress: Called with bytes checked and bytes in all.

    Raises:
        Corrupt: The run's log cannot be read; restore the record it names from a copy.
        NotFound: The log has no such step.
        Unavailable, Denied, Exhausted: As a store reported; call again to go on.
    """
    donors = [] if other is None else [other] if not isinstance(other, Sequence) else list(other)
    commits = _chosen(RunLog(store, run_id, world).sync().commits, run_id, steps)
    work = _Repair(store, run_id, donors, dry_run=dry_run)
    opened = [work.open(commit) for commit in commits]
    work.check_packs(
        [step for step in opened if isinstance(step, Checkpoint)], concurrency, progress
    )
    work.heal_packs()
    verdicts = tuple(
        _verdict_of_broken(step) if isinstance(step, _Broken) else work.judge(step)
        for step in opened
    )
    return RepairReport(
        run_id=run_id, dry_run=dry_run, steps=verdicts, healed=tuple(work.healed),
        bad=tuple(sorted({*work.lost_documents, *map(pack_key, work.bad)})),
        num_bytes=work.num_bytes,
    )  # fmt: skip


def _chosen(
    commits: Sequence[LogRecord], run_id: str, steps: Sequence[int] | None
) -> list[LogRecord]:
    """One commit per step, the one that counts, newest first."""
    by_step = {commit.step: commit for commit in commits}
    if steps is not None:
        missing = sorted(set(steps) - set(by_step))
        if missing:
            raise NotFound(
                f"run '{run_id}' has no committed step {missing[0]}; leave the step out to see all"
            )
        by_step = {step: commit for step, commit in by_step.items() if step in steps}
    return list(reversed(by_step.values()))


class _Overlay(MemoryStore):
    """The damaged store, with healed documents in place of the damaged ones."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.url)
        self._store = store

    def get(self, key: str, *, start: int | None = None, end: int | None = None) -> bytes:
        held = self.size(key) is not None
        read = super().get if held else self._store.get
        return read(key, start=start, end=end)


class _Repair:
    """Everything known about one run's objects while it is being repaired."""

    def __init__(
        self, store: Store, run_id: str, donors: Sequence[Store], *, dry_run: bool
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._donors = donors
        self._dry_run = dry_run
        self._sizes: dict[str, int] = {}
        self._rows: dict[str, set[ChunkLocation]] = {}
        self._places: dict[bytes, set[ChunkLocation]] = {}
        self.healed: list[str] = []
        self.lost_documents: list[str] = []
        self.bad: dict[str, frozenset[ChunkLocation]] = {}
        self.num_bytes = 0

    # -- documents ---------------------------------------------------------------------------------

    def open(self, commit: LogRecord) -> Checkpoint | _Broken:
        """Open a step, healing its manifest, records and chunk tables from copies on the way."""
        overlay = _Overlay(self._store)
        for _ in range(_MOST_DOCUMENTS):
            try:
                step = open_checkpoint(overlay, self._run_id, commit)
            except (Corrupt, NotFound) as error:
                key = str(error.facts.get("key", ""))
                is_named = _NAMED.fullmatch(key) is not None
                data = None if not is_named or overlay.size(key) is not None else self._copy_of(key)
                if data is None:
                    self.lost_documents += [key] if is_named else []
                    return _Broken(commit, error.message)
                overlay.put(key, data)
                self._write(key, data)
                continue
            self._learn(step)
            return step
        raise Corrupt(f"step {commit.step} has more documents than any step; use another step")

    def _copy_of(self, key: str) -> bytes | None:
        """An object from another store, if one has exactly the bytes that the key's hash wants."""
        match = _NAMED.fullmatch(key)
        if match is None:
            return None
        for donor in self._donors:
            try:
                data = donor.get(key)
            except NotFound:
                continue
            if blake3_hex(data) == match["hash"]:
                return data
        return None

    def _write(self, key: str, data: bytes) -> None:
        self.healed.append(key)
        if not self._dry_run:
            self._store.put(key, data)

    def _learn(self, step: Checkpoint) -> None:
        for key, (_, size) in step.packs().items():
            self._sizes[key] = size
        for location in step.locations():
            plain = location._replace(refs=())
            self._rows.setdefault(location.pack, set()).add(plain)
            self._places.setdefault(location.id, set()).add(plain)

    # -- packs -------------------------------------------------------------------------------------

    def check_packs(
        self, steps: Iterable[Checkpoint], concurrency: int, progress: Progress | None
    ) -> None:
        """Read every pack once; of one that differs from its hash, note which blobs are sound."""
        packs = {key: pack for step in steps for key, (pack, _) in step.packs().items()}
        total, keys = sum(self._sizes.values()), list(packs)

        def check(key: str) -> frozenset[ChunkLocation] | None:
            return self._sound_blobs(key, packs[key])

        for number, sound in fan_out_each(check, keys, concurrency):
            if sound is not None:
                self.bad[packs[keys[number]]] = sound
            self.num_bytes += self._sizes[keys[number]]
            if progress is not None:
                progress(self.num_bytes, total)

    def _sound_blobs(self, key: str, pack: str) -> frozenset[ChunkLocation] | None:
        """None when the pack is whole; otherwise the chunks whose stored bytes are still right."""
        data = b""
        for _ in range(2):
            try:
                data = self._store.get(key)
            except NotFound:
                break
            if blake3_hex(data) == pack:
                return None
        return frozenset(row for row in self._rows.get(pack, ()) if _is_sound(row, data))

    def heal_packs(self) -> None:
        """Copy or rebuild bad packs until nothing more can be done: one may be another's donor."""
        is_moving = True
        while is_moving:
            is_moving = False
            for pack in list(self.bad):
                data = self._copy_of(pack_key(pack)) or self._rebuilt(pack)
                if data is not None:
                    self._write(pack_key(pack), data)
                    del self.bad[pack]
                    is_moving = True

    def _rebuilt(self, pack: str) -> bytes | None:
        """The pack of its sound parts and equal blobs elsewhere; None: it cannot be had."""
        size = self._sizes[pack_key(pack)]
        try:
            damaged = self._store.get(pack_key(pack))
        except NotFound:
            damaged = b""
        data = bytearray(damaged[:size].ljust(size, b"\0"))
        for row in self._rows.get(pack, set()) - self.bad[pack]:
            blob = self._equal_blob(row)
            if blob is not None:
                data[row.offset : row.offset + row.stored_len] = blob
        return bytes(data) if blake3_hex(bytes(data)) == pack else None

    def _equal_blob(self, row: ChunkLocation) -> bytes | None:
        """The same stored bytes from another pack that holds this chunk."""
        wanted = (row.stored_len, row.xxh3)
        for place in self._places[row.id]:
            is_sound = place.pack not in self.bad or place in self.bad[place.pack]
            if place == row or not is_sound or (place.stored_len, place.xxh3) != wanted:
                continue
            blob = self._blob_at(place)
            if blob is not None:
                return blob
        return None

    def _blob_at(self, place: ChunkLocation) -> bytes | None:
        """A chunk's stored bytes, also from a copy: a dry run has written no pack back."""
        key, end = pack_key(place.pack), place.offset + place.stored_len
        for store in (self._store, *self._donors):
            try:
                blob = store.get(key, start=place.offset, end=end)
            except NotFound:
                continue
            if _is_sound(place._replace(offset=0), blob):
                return blob
        return None

    # -- verdicts ----------------------------------------------------------------------------------

    def judge(self, step: Checkpoint) -> StepVerdict:
        """Which tensors of an opened step cannot be read whole."""
        lost = tuple(
            name
            for name in step.names()
            if self._is_lost([location for _, location in step.chunks_of(name)])
        )
        return StepVerdict(
            step=step.step, manifest_key=step.manifest_key,
            state="damaged" if lost else "whole", lost=lost, num_tensors=len(step.names()),
        )  # fmt: skip

    def _is_lost(self, chunks: Sequence[ChunkLocation]) -> bool:
        """Whether what these, or any of them, are read from has no sound place in its pack."""
        return any(
            part.pack in self.bad and part._replace(refs=()) not in self.bad[part.pack]
            for together in (chunks, *([chunk] for chunk in chunks))
            for part in to_read(together)
        )


def _is_sound(row: ChunkLocation, data: bytes) -> bool:
    blob = memoryview(data)[row.offset : row.offset + row.stored_len]
    return len(blob) == row.stored_len and xxh3_64_intdigest(blob) == row.xxh3


def _verdict_of_broken(step: _Broken) -> StepVerdict:
    commit = step.commit
    return StepVerdict(
        step=commit.step or 0, manifest_key=commit.manifest_key or "", state="gone",
        problem=step.problem,
    )  # fmt: skip
