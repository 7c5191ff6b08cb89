"""The saver: a niced process that reads staged slots, encodes, uploads and seals.

    python -m cloudshift_lab.agent.saver <job file> <node dir> <parent pid>

One request per line on its standard input, one answer per line on its standard output, both JSON.
It reads shared memory, never the ranks, and commits nothing: that is the agent's.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloudshift_lab.agent.bootstrap import die_with_parent
from cloudshift_lab.agent.stores import open_job_store
from cloudshift_lab.checkpoint.boxes import TensorBox
from cloudshift_lab.checkpoint.known import KnownChunks
from cloudshift_lab.checkpoint.leaves import decode_leaves
from cloudshift_lab.checkpoint.reader import open_checkpoint
from cloudshift_lab.checkpoint.seal import seal
from cloudshift_lab.checkpoint.write import Staged, write_rank
from cloudshift_lab.core.errors import CloudshiftError, Exhausted, NotFound, Unavailable
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.staging import NUM_SLOTS, StagedHead, StagedRank, staged_file
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.storage.store import Store

NICENESS = 10


class SaveRequest(msgspec.Struct, frozen=True, tag="save"):
    """Save a staged step."""

    step: int


class LearnRequest(msgspec.Struct, frozen=True, tag="learn"):
    """A manifest was committed."""

    manifest_key: str
    manifest_digest: str


class SavedAnswer(msgspec.Struct, frozen=True, tag="saved"):
    """The step is sealed."""

    step: int
    manifest_key: str
    manifest_digest: str
    raw_bytes: int
    stored_bytes: int
    new_bytes: int


class FailedAnswer(msgspec.Struct, frozen=True, tag="failed"):
    """The step could not be saved."""

    step: int
    error_kind: str
    message: str


Request = SaveRequest | LearnRequest
Answer = SavedAnswer | FailedAnswer
_REQUESTS = msgspec.json.Decoder(Request)


class Encoder:
    """Saves staged steps of one attempt into its store.

    Args:
        job: Whose steps; the generation becomes part of every key.
        node_dir: Where the ranks stage.
        store: Where to.
    """

    def __init__(self, job: JobSpec, node_dir: Path, store: Store) -> None:
        self._job = job
        self._node_dir = node_dir
        self._store = store
        self._committed: LearnRequest | None = None
        self._known = KnownChunks()

    def learn(self, request: LearnRequest) -> None:
        """Remember what was committed; it is read when the next save needs it."""
        self._committed = request

    def save(self, step: int) -> SavedAnswer:
        """Store all ranks' shares of a step and seal it.

        Raises:
            NotFound: A rank has not staged that step (any more).
            CloudshiftError: As the store or the format reported; may be tried again.
        """
        self._refresh_known()
        job = self._job
        num_ranks = job.placement.world_size
        written = [
            write_rank(
                self._store,
                job.run_id,
                read_slot(self._node_dir, rank, step),
                generation=job.generation,
                known=self._known,
            )
            for rank in range(num_ranks)
        ]
        sealed = seal(
            self._store,
            job.run_id,
            step,
            generation=job.generation,
            world_size=num_ranks,
            written=written,
        )
        return SavedAnswer(
            step=step,
            manifest_key=sealed.manifest_key,
            manifest_digest=sealed.manifest_digest,
            raw_bytes=sealed.raw_bytes,
            stored_bytes=sealed.stored_bytes,
            new_bytes=sum(part.new_bytes for part in written),
        )

    def _refresh_known(self) -> None:
        """Dedup against the newest commit only: what it does not hold is uploaded again."""
        committed, self._committed = self._committed, None
        if committed is not None:
            self._known = KnownChunks.from_checkpoint(
                open_checkpoint(
                    self._store,
                    self._job.run_id,
                    committed.manifest_key,
                    digest=committed.manifest_digest,
                )
            )


def read_slot(node_dir: Path, rank: int, step: int) -> Staged:
    """A rank's staged share, as views of the shared memory.

    Raises:
        NotFound: The rank has not staged that step (any more).
    """
    for slot in range(NUM_SLOTS):
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
    )


def answer(encoder: Encoder, request: Request) -> Answer | None:
    """Serve one request; a failure is an answer, not an end."""
    if isinstance(request, LearnRequest):
        encoder.learn(request)
        return None
    try:
        return encoder.save(request.step)
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


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the agent closes the pipe or dies."""
    job_file, node_dir, parent_pid = arguments
    die_with_parent(int(parent_pid))
    os.nice(NICENESS)
    job = from_json(Path(job_file).read_bytes(), JobSpec, what=job_file)
    encoder = Encoder(job, Path(node_dir), open_job_store(job))
    for line in sys.stdin.buffer:
        reply = answer(encoder, _REQUESTS.decode(line))
        if reply is not None:
            sys.stdout.buffer.write(to_json(reply) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
