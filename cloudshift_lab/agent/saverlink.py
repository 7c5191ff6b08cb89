"""The agent's end of the pipe to its saver process, which may die and is then started again."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from cloudshift_lab.agent.bootstrap import LOGS
from cloudshift_lab.agent.protocols import Saved, SaveFailed
from cloudshift_lab.agent.saver import (
    Answer,
    FailedAnswer,
    LearnRequest,
    Request,
    SavedAnswer,
    SaveRequest,
)
from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.run import JobSpec
from cloudshift_lab.core.wire import to_json

SAVER_LOG = "saver.log"
_ANSWERS = msgspec.json.Decoder(Answer)


class SaverProcess:
    """Implements ``SaverProtocol`` with a process of its own session, so that nothing but its own
    fault or the agent's end can end it.

    Args:
        job: Whose steps.
        job_file: The same, as a file.
        node_dir: Where the ranks stage.
    """

    def __init__(self, job: JobSpec, job_file: Path, node_dir: Path) -> None:
        self._job_file = job_file
        self._node_dir = node_dir
        self._log = Path(job.workdir) / LOGS / SAVER_LOG
        self._process: subprocess.Popen[bytes] | None = self._start()
        self._saving: int | None = None
        self._committed: LearnRequest | None = None
        self._received = b""
        self._not_started = ""

    @property
    def busy(self) -> bool:
        return self._saving is not None

    def start(self, step: int) -> None:
        assert self._saving is None, "one save at a time"
        self._saving = step
        self._send(SaveRequest(step))

    def poll(self) -> Saved | SaveFailed | None:
        if self._saving is None:
            return None
        answer = self._receive()
        if isinstance(answer, SavedAnswer):
            self._saving = None
            return Saved(**msgspec.structs.asdict(answer))
        if isinstance(answer, FailedAnswer):
            self._saving = None
            return SaveFailed(answer.step, answer.error_kind, answer.message)
        if self._process is None or self._process.poll() is not None:
            step, self._saving = self._saving, None
            return SaveFailed(step, CloudshiftError.__name__, self._obituary())
        return None

    def learn(self, manifest_key: str, manifest_digest: str) -> None:
        self._committed = LearnRequest(manifest_key, manifest_digest)
        self._send(self._committed)

    def close(self) -> None:
        process, self._process = self._process, None
        self._saving = None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None and process.stdout is not None
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

    def _bury(self) -> None:
        """Give back the pipes of a dead saver."""
        saving = self._saving
        self.close()
        self._saving, self._received = saving, b""

    def _write(self, process: subprocess.Popen[bytes], request: Request) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(to_json(request) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return  # it died this moment: poll() will notice

    def _start_or_explain(self) -> subprocess.Popen[bytes] | None:
        """A new saver; None where the system refuses one: poll() then says why."""
        try:
            return self._start()
        except OSError as error:
            self._not_started = str(error)
            return None

    def _obituary(self) -> str:
        """Why there is no saver, as far as one can tell."""
        if self._process is None:
            return f"no saver could be started ({self._not_started}); free memory or disk space"
        code = self._process.returncode
        how = f"ended with code {code}"
        if code < 0:
            hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
            how = f"was killed by {signal.Signals(-code).name}{hint}"
        return f"the saver {how}; see {self._log.name}"

    def _start(self) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable, "-m", "cloudshift_lab.agent.saver", str(self._job_file),
                    str(self._node_dir), str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def _receive(self) -> SavedAnswer | FailedAnswer | None:
        """One answer, if it is there; never waits."""
        if self._process is None or self._process.stdout is None:
            return None
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            if ready.select(timeout=0):
                self._received += os.read(self._process.stdout.fileno(), 1 << 16)
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        answer: Answer = _ANSWERS.decode(line)
        return answer
