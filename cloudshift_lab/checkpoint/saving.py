"""The saver: a niced process that reads staged slots, encodes, uploads and seals.

    python -m cloudshift_lab.checkpoint.saving <run> <node dir> <parent pid>

On its standard input the job, which may hold credentials and so is written nowhere, then one
request per line; on its standard output one answer per save, and before it lines that say how far
the save is. All are JSON. It reads shared memory, never the ranks, and
commits nothing: that is its owner's.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import msgspec

from cloudshift_lab.checkpoint.boxes import TensorBox, TensorSpec
from cloudshift_lab.checkpoint.gains import PastGains
from cloudshift_lab.checkpoint.gathering import Gathering, tell_ready
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.layout import Coverage, step_dir
from cloudshift_lab.checkpoint.leaves import decode_leaves
from cloudshift_lab.checkpoint.priority import step_back
from cloudshift_lab.checkpoint.reader import Checkpoint, open_checkpoint
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.tombs import tombstoned
from cloudshift_lab.checkpoint.upload import UploadStore
from cloudshift_lab.checkpoint.write import Staged, WrittenRank, write_rank
from cloudshift_lab.core.errors import (
    CloudshiftError,
    Conflict,
    Corrupt,
    Exhausted,
    NotFound,
    Unavailable,
)
from cloudshift_lab.core.home import load_clouds
from cloudshift_lab.core.lineage import die_with_parent
from cloudshift_lab.core.rescue import RESCUE_SLOT
from cloudshift_lab.core.staging import NUM_SLOTS, StagedHead, StagedRank, staged_file
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World
from cloudshift_lab.storage.store import Store, open_cloud_store, open_store

PROGRESS_EVERY_S = 0.5
PACKS_IN_FLIGHT = 3
_MAX_THREADS = 4


class SaverJob(msgspec.Struct, frozen=True):
    """What a saver serves.

    ``ranks`` are those that stage on this node; when they are not all of ``world_size``, the saver
    that has rank 0 waits up to ``gather_s`` seconds for the others' shares. The store's options
    are those of ``home``'s ``cloud``, or ``store_options`` as raw JSON values. ``threads`` 0:
    as many as the machine can spare. A request that a throttling store turns away is tried for
    ``patience_s`` seconds.
    """

    run_id: str
    generation: int
    world_size: int
    ranks: tuple[int, ...]
    store_url: str
    home: str = ""
    cloud: str | None = None
    threads: int = 0
    gather_s: float = 60.0
    patience_s: float = 90.0
    store_options: dict[str, msgspec.Raw] | None = None


class SaveRequest(msgspec.Struct, frozen=True, tag="save"):
    """Save a staged step; ``incarnation`` is the same for all nodes of one start of the ranks.

    ``standalone``: without deltas to the step before, so that it needs nothing of it to be read:
    more is written, and less has to be copied with it.
    """

    step: int
    incarnation: str = ""
    standalone: bool = False


class LearnRequest(msgspec.Struct, frozen=True, tag="learn"):
    """A manifest was committed."""

    manifest_key: str
    manifest_digest: str


class AbandonRequest(msgspec.Struct, frozen=True, tag="abandon"):
    """Give up the save of this step, if it is under way: another one matters more."""

    step: int


class ProgressAnswer(msgspec.Struct, frozen=True, tag="progress"):
    """The save goes on; ``done_bytes`` of the raw state are behind it."""

    step: int
    done_bytes: int


class SavedAnswer(msgspec.Struct, frozen=True, tag="saved"):
    """The step is sealed, and not yet committed. ``save_s``: seconds the saver worked on it.

    ``warning``: what is damaged in the store, so that nothing of it was used again.
    """

    step: int
    manifest_key: str
    manifest_digest: str
    raw_bytes: int
    stored_bytes: int
    new_bytes: int
    save_s: float = 0.0
    coverage: Coverage = "complete"
    warning: str | None = None


class WrittenAnswer(msgspec.Struct, frozen=True, tag="written"):
    """This node's shares are stored; the saver that has rank 0 seals the step."""

    step: int
    raw_bytes: int
    stored_bytes: int
    new_bytes: int
    save_s: float = 0.0


class FailedAnswer(msgspec.Struct, frozen=True, tag="failed"):
    """The step could not be saved; it is still staged and may be saved again."""

    step: int
    error_kind: str
    message: str


Request = SaveRequest | LearnRequest | AbandonRequest
Outcome = SavedAnswer | WrittenAnswer | FailedAnswer
Answer = ProgressAnswer | SavedAnswer | WrittenAnswer | FailedAnswer
_REQUESTS = msgspec.json.Decoder(Request)


class Encoder:
    """Saves staged steps of one job into its store.

    Args:
        job: Whose steps; the generation becomes part of every key.
        node_dir: Where the ranks stage.
        store: Where to.
        world: Clock.
        moved: Told the raw bytes that are done, whenever something has moved.
    """

    def __init__(
        self, job: SaverJob, node_dir: Path, store: Store, world: World = REAL_WORLD, *,
        moved: Callable[[int], None] = lambda _done_bytes: None,
    ) -> None:  # fmt: skip
        self._job = job
        self._node_dir = node_dir
        self._store = UploadStore(store, lambda _written: moved(self._done_bytes))
        self._world = world
        self._moved = moved
        self._threads = job.threads or spare_threads()
        self._committed: LearnRequest | None = None
        self._known = KnownChunks()
        self._base: Checkpoint | None = None
        self._dead_packs: frozenset[str] = frozenset()
        self._is_unproven = False
        self._is_standalone = False
        self._warning: str | None = None
        self._gains = PastGains()
        self._done_bytes = 0

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        """Remember what was committed; it is read when the next save needs it."""
        self._committed = LearnRequest(manifest_key, manifest_digest)
        self._is_unproven = False

    def save(
        self, step: int, incarnation: str = "", *, standalone: bool = False
    ) -> SavedAnswer | WrittenAnswer:
        """Store this node's shares of a step, and seal it if rank 0 is among them.

        Whoever commits it gives the log position from before this call as ``since``: packs that a
        collection is about to delete, as told now, are neither used nor written. What is damaged
        of the step before costs nothing but time: the step is then stored in full. ``standalone``
        is as in ``SaveRequest``; chunks that have not changed are shared all the same.

        Raises:
            NotFound: A rank has not staged that step (any more).
            CloudshiftError: As the store or the format reported; may be tried again.
        """
        began, self._done_bytes, self._warning = self._world.monotonic(), 0, None
        self._dead_packs = tombstoned(self._store)
        self._store.begin(step, self._dead_packs)
        self._refresh_known()
        self._is_standalone = standalone
        try:
            return self._store_step(step, incarnation, began)
        except Corrupt as error:
            self._store.forget()
            if self._base is None:
                raise
            self._distrust(error)
        return self._store_step(step, incarnation, began)

    def _store_step(
        self, step: int, incarnation: str, began: float
    ) -> SavedAnswer | WrittenAnswer:  # fmt: skip
        written = [self._write(rank, step, incarnation) for rank in self._job.ranks]
        if 0 in self._job.ranks:
            return self._seal(step, incarnation, written, began)
        self._is_unproven = True
        return WrittenAnswer(
            step=step,
            raw_bytes=sum(part.raw_bytes for part in written),
            stored_bytes=sum(part.stored_bytes for part in written),
            new_bytes=sum(part.new_bytes for part in written),
            save_s=self._world.monotonic() - began,
        )

    def _write(self, rank: int, step: int, incarnation: str) -> WrittenRank:
        job = self._job
        staged = read_slot(self._node_dir, rank, step)
        before = self._done_bytes
        written = write_rank(
            self._store, job.run_id, staged, generation=job.generation, known=self._known,
            concurrency=PACKS_IN_FLIGHT, threads=self._threads,
            base=None if self._is_standalone else self._base,
            dead_packs=self._dead_packs, gains=self._gains,
            progress=lambda done_bytes: self._advance(before + done_bytes),
        )  # fmt: skip
        if len(job.ranks) < job.world_size:
            place = step_dir(job.run_id, step, job.generation)
            tell_ready(self._store, place, job.world_size, written, incarnation=incarnation)
        return written

    def _advance(self, done_bytes: int) -> None:
        self._done_bytes = done_bytes
        self._moved(done_bytes)

    def _seal(
        self, step: int, incarnation: str, written: list[WrittenRank], began: float
    ) -> SavedAnswer:
        job = self._job
        sealed = seal(
            self._store,
            job.run_id,
            step,
            generation=job.generation,
            world_size=job.world_size,
            written=[*written, *self._others(step, incarnation)],
        )
        return SavedAnswer(
            step=step,
            manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest,
            raw_bytes=sealed.raw_bytes,
            stored_bytes=sealed.stored_bytes,
            new_bytes=sum(part.new_bytes for part in written),
            save_s=self._world.monotonic() - began,
            coverage=sealed.coverage,
            warning=self._warning,
        )

    def _others(self, step: int, incarnation: str) -> list[WrittenRank]:
        """The shares of the other nodes' ranks, as far as they come in time."""
        job = self._job
        others = set(range(job.world_size)) - set(job.ranks)
        gathering = Gathering(
            self._store, self._world, wait_s=job.gather_s,
            waiting=lambda: self._moved(self._done_bytes),
        )  # fmt: skip
        place = step_dir(job.run_id, step, job.generation)
        return gathering.gather(place, job.world_size, others, incarnation=incarnation)

    def _refresh_known(self) -> None:
        """Dedup and deltas go by the newest commit only: what it lacks is uploaded again.

        A share that nobody committed may have referred to what is lost: only who seals sees that.
        """
        if self._is_unproven:
            self._known, self._base = KnownChunks(), None
        if (committed := self._committed) is None:
            return
        try:
            self._base = open_checkpoint(
                self._store,
                self._job.run_id,
                committed.manifest_key,
                digest=committed.manifest_digest,
            )
            self._known, self._committed = KnownChunks.from_checkpoint(self._base), None
        except (Corrupt, NotFound) as error:
            self._distrust(error)

    def _distrust(self, error: CloudshiftError) -> None:
        """The newest commit is damaged: nothing that it holds is used, until there is another."""
        self._known, self._base, self._committed = KnownChunks(), None, None
        self._warning = (
            f"the step before is damaged, this one was stored in full ({error.message}): "
            f"see `cloudshift verify {self._job.run_id}`"
        )
        print(self._warning, file=sys.stderr)


def spare_threads() -> int:
    """Threads that encode: a machine of one or two cores has none to spare beside the ranks."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(_MAX_THREADS, cores // 2))


def read_slot(node_dir: Path, rank: int, step: int) -> Staged:
    """A rank's staged share, as views of the shared memory.

    Raises:
        NotFound: The rank has not staged that step (any more).
    """
    for slot in (*range(NUM_SLOTS), RESCUE_SLOT):
        path = staged_file(node_dir, rank, slot)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if from_json(data, StagedHead, what=path.name).step == step:
            return _view(node_dir, from_json(data, StagedRank, what=path.name))
    raise NotFound(f"rank {rank} has no staged step {step} any more; the next save will do")


def _view(node_dir: Path, staged: StagedRank) -> Staged:
    with (node_dir / staged.slot_file).open("rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return Staged(
        step=staged.step,
        rank=staged.rank,
        world_size=staged.world_size,
        boxes=tuple(
            TensorBox(box.name, box.dtype, box.global_shape, box.offset, box.shape)
            for box in staged.boxes
        ),
        buffers=tuple(memory[box.start : box.start + box.num_bytes] for box in staged.boxes),
        leaves=decode_leaves(staged.leaves),
        catalog=tuple(TensorSpec(s.name, s.dtype, s.global_shape) for s in staged.catalog),
    )


def open_saver_store(job: SaverJob) -> Store:
    """The job's store, with the options that it names.

    Raises:
        UsageError: Its cloud is not configured here.
    """
    if job.cloud is not None:
        cloud = load_clouds(Path(job.home)).find(job.cloud)
        place = msgspec.structs.replace(cloud, store_url=job.store_url)
        return open_cloud_store(place, inside=True, deadline_s=job.patience_s)
    options = {k: msgspec.json.decode(v) for k, v in (job.store_options or {}).items()}
    return open_store(job.store_url, options, deadline_s=job.patience_s)


def answer(encoder: Encoder, request: SaveRequest | LearnRequest) -> Outcome | None:
    """Serve one request; a failure is an answer, not an end."""
    if isinstance(request, LearnRequest):
        encoder.learn(request.manifest_key, request.manifest_digest)
        return None
    try:
        return encoder.save(request.step, request.incarnation, standalone=request.standalone)
    except (CloudshiftError, OSError, MemoryError) as error:
        if not isinstance(error, CloudshiftError):
            traceback.print_exc()
        told = explained(error)
        return FailedAnswer(request.step, type(told).__name__, told.message)


def explained(error: CloudshiftError | OSError | MemoryError) -> CloudshiftError:
    """The same in our words: what a disk, the memory or a wire said that no store explained."""
    if isinstance(error, CloudshiftError):
        return error
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return Exhausted("no memory left to save the state; use a machine with more, or more ranks")
    what = f"the state could not be saved: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"{what}; free space or choose another store")
    if isinstance(error, ConnectionError | TimeoutError):
        return Unavailable(f"{what}; it is tried again")
    return CloudshiftError(f"{what}; the saver's log says more")


class Channel:
    """The saver's end of the pipe to its owner; progress goes through it now and then."""

    def __init__(self, pipe: BinaryIO, world: World = REAL_WORLD) -> None:
        self._pipe = pipe
        self._world = world
        self._lock = threading.Lock()
        self._told_at = float("-inf")
        self._abandoned: int | None = None
        self.step = -1

    def abandon(self, step: int | None) -> None:
        """Let the save of a step end with the next thing that moves; None: let all go on."""
        self._abandoned = step

    def moved(self, done_bytes: int) -> None:
        """Something has moved; safe to call from several threads.

        Raises:
            Conflict: The save was abandoned.
        """
        if self._abandoned is not None and self._abandoned == self.step:
            raise Conflict(f"step {self.step} gave way to a newer one; that one is saved instead")
        with self._lock:
            now = self._world.monotonic()
            if now - self._told_at >= PROGRESS_EVERY_S:
                self._told_at = now
                self._write(ProgressAnswer(self.step, done_bytes))

    def say(self, outcome: Outcome) -> None:
        """Say how the save ended."""
        with self._lock:
            self._write(outcome)

    def _write(self, message: Answer) -> None:
        self._pipe.write(to_json(message) + b"\n")
        self._pipe.flush()


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the owner closes the pipe or dies."""
    _run_id, node_dir, parent_pid = arguments
    die_with_parent(int(parent_pid))
    pipe = _claim_output()
    step_back()
    owner = FileIO(0, closefd=False)
    job = from_json(owner.readline(), SaverJob, what="the saver's job")
    channel = Channel(pipe)
    encoder = Encoder(job, Path(node_dir), open_saver_store(job), moved=channel.moved)
    requests: SimpleQueue[SaveRequest | LearnRequest | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(owner, channel, requests), daemon=True).start()
    while (request := requests.get()) is not None:
        if isinstance(request, SaveRequest):
            channel.step = request.step
        outcome = answer(encoder, request)
        if outcome is not None:
            channel.say(outcome)


def _listen(
    owner: FileIO, channel: Channel, requests: SimpleQueue[SaveRequest | LearnRequest | None]
) -> None:
    """Hear the owner also during a save; its silence for good is the end.

    Not through ``sys.stdin``: its lock, held here, would turn an error of the main thread into an
    abort of the interpreter.
    """
    for line in owner:
        request = _REQUESTS.decode(line)
        if isinstance(request, AbandonRequest):
            channel.abandon(request.step)
            continue
        if isinstance(request, SaveRequest):
            channel.abandon(None)
        requests.put(request)
    requests.put(None)


def _claim_output() -> BinaryIO:
    """The pipe for our answers alone: what a library prints goes to the log."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


if __name__ == "__main__":
    main(sys.argv[1:])
