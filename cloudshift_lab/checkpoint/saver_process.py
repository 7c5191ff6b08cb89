"""The owner's end of the pipe to its saver, which may die or hang and is then started again."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.saving import (
    AbandonRequest,
    Answer,
    FailedAnswer,
    LearnRequest,
    Outcome,
    ProgressAnswer,
    Request,
    SaveRequest,
    SaverJob,
)
from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.core.world import REAL_WORLD, World

DEADLINE_S = 120.0
_BURIAL_S = 1.0
# glibc: blobs and packs come from memory that the process has already; fresh pages cost as much
# processor time as coding them.
_MEMORY_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
_ANSWERS = msgspec.json.Decoder(Answer)


class SaverProcess:
    """A saver in a session of its own, so that nothing but its own fault or its owner's end can
    end it. No call but the constructor waits for it.

    Args:
        job: What it serves; told through the pipe, since it may hold credentials.
        node_dir: Where the ranks stage.
        log_path: What it prints.
        deadline_s: Longest time without any progress of a save, seconds; then it is ended.
        world: Clock.
    """

    def __init__(
        self, job: SaverJob, node_dir: Path, log_path: Path, *,
        deadline_s: float = DEADLINE_S, world: World = REAL_WORLD,
    ) -> None:  # fmt: skip
        self._job = job
        self._node_dir = node_dir
        self._log = log_path
        self._deadline_s = deadline_s
        self._world = world
        self._saving: int | None = None
        self._moved_at = 0.0
        self._committed: LearnRequest | None = None
        self._received = b""
        self._not_started = ""
        self.done_bytes = 0
        self._process = self._start_or_explain()

    @property
    def busy(self) -> bool:
        """Whether a save has begun whose outcome ``poll`` has not returned yet."""
        return self._saving is not None

    @property
    def pid(self) -> int | None:
        """The saver's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self, step: int, incarnation: str = "", *, standalone: bool = False) -> None:
        """Begin to save a staged step, as ``SaveRequest`` says. Only when not busy."""
        assert self._saving is None, "one save at a time"
        self._saving, self.done_bytes = step, 0
        self._moved_at = self._world.monotonic()
        self._send(SaveRequest(step, incarnation, standalone))

    def abandon(self) -> None:
        """Have the save under way end soon, as failed with ``Conflict``; too late is no error."""
        if self._saving is not None and self._process is not None:
            self._write(self._process, AbandonRequest(self._saving))

    def poll(self) -> Outcome | None:
        """The outcome of the save, once; None while there is none. Never waits."""
        step = self._saving
        if step is None:
            return None
        outcome = self._receive()
        if outcome is None and (self._process is None or self._process.poll() is not None):
            outcome = FailedAnswer(step, CloudshiftError.__name__, self._obituary())
        if outcome is None and self._is_overdue():
            self._bury()
            outcome = FailedAnswer(step, Exhausted.__name__, self._lateness())
        if outcome is not None:
            self._saving = None
        return outcome

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        """A manifest was committed: its chunks need not be uploaded again."""
        self._committed = LearnRequest(manifest_key, manifest_digest)
        self._send(self._committed)

    def close(self) -> None:
        """Stop at once; an unfinished save is given up."""
        self._saving = None
        self._bury()

    def _bury(self) -> None:
        """End the process, if it has not ended, and give back its pipes."""
        process, self._process = self._process, None
        self._received = b""
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_BURIAL_S)  # one that hangs in the kernel ends when that lets it go
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()

    def _send(self, request: Request) -> None:
        """Write a request; a saver that died is replaced, and told the newest commit again."""
        process = self._process
        if process is None or process.poll() is not None:
            self._bury()
            process = self._process = self._start_or_explain()
            if process is None:
                return
            if self._committed is not None and request is not self._committed:
                self._write(process, self._committed)
        self._write(process, request)

    def _write(self, process: subprocess.Popen[bytes], request: Request | SaverJob) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(to_json(request) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return  # it died this moment: poll() will notice

    def _start_or_explain(self) -> subprocess.Popen[bytes] | None:
        """A new saver; None where the system refuses one: poll() then says why."""
        try:
            process = self._start()
        except OSError as error:
            self._not_started = str(error)
            return None
        self._write(process, self._job)
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable, "-m", "cloudshift_lab.checkpoint.saving", self._job.run_id,
                    str(self._node_dir), str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**_MEMORY_KEPT, **os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def _is_overdue(self) -> bool:
        return self._world.monotonic() - self._moved_at >= self._deadline_s

    def _lateness(self) -> str:
        return (
            f"the saver made no progress for {self._deadline_s:.0f} s and was ended; "
            f"the next save starts a new one, {self._log.name} may say what it waited for"
        )

    def _obituary(self) -> str:
        """Why there is no saver, as far as one can tell."""
        if self._process is None:
            return f"no saver could be started ({self._not_started}); free memory or disk space"
        code = self._process.returncode
        how = f"ended with code {code}"
        if code < 0:
            hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
            how = f"was killed by {signal.Signals(-code).name}{hint}"
        return f"the saver {how}; the next save starts a new one, see {self._log.name}"

    def _receive(self) -> Outcome | None:
        """The outcome, if it is there; every line before it says that the saver goes on."""
        if self._process is None or self._process.stdout is None:
            return None
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            if ready.select(timeout=0):
                self._received += os.read(self._process.stdout.fileno(), 1 << 16)
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            message: Answer = _ANSWERS.decode(line)
            self._moved_at = self._world.monotonic()
            if not isinstance(message, ProgressAnswer):
                return message
            self.done_bytes = message.done_bytes
        return None
