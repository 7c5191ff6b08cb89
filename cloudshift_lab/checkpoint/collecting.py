"""The collector: a niced process that marks and sweeps one store once, then ends.

    python -m cloudshift_lab.checkpoint.collecting <run> <parent pid>

On its standard input it is told the saver's job: which store, and how to open it. It may be killed
at any moment, and is: by its owner, when a drain needs the machine. Its answer is one line of JSON
on its standard output.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.gc import GcReport, collect
from cloudshift_lab.checkpoint.priority import step_back
from cloudshift_lab.checkpoint.saving import SaverJob, open_saver_store
from cloudshift_lab.core.errors import CloudshiftError, Exhausted
from cloudshift_lab.core.lineage import die_with_parent
from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD, World

DEADLINE_S = 1800.0
_CONCURRENCY = 4
_BURIAL_S = 1.0


class Collected(msgspec.Struct, frozen=True):
    """How a collection ended: with a report, or with the class name and message of an error."""

    report: GcReport | None = None
    error_kind: str = ""
    message: str = ""


class CollectorProcess:
    """Runs one collection at a time, in a session of its own. No call waits for it.

    Args:
        job: Of the saver: names the store and how to open it.
        log_path: What it prints.
        world: Clock.
    """

    def __init__(self, job: SaverJob, log_path: Path, world: World = REAL_WORLD) -> None:
        self._job = job
        self._log = log_path
        self._world = world
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal = ""
        self._began = 0.0

    @property
    def busy(self) -> bool:
        """Whether a collection has begun whose end ``poll`` has not returned yet."""
        return self._process is not None or bool(self._refusal)

    def start(self) -> None:
        """Begin a collection. Only when not busy; what the machine refuses, ``poll`` tells."""
        assert not self.busy, "one collection at a time"
        self._began = self._world.monotonic()
        try:
            self._process = self._launch()
        except OSError as error:
            self._refusal = f"no collector could be started ({error}); free memory or disk space"

    def poll(self) -> Collected | None:
        """How the collection ended, once; None while there is nothing to tell."""
        refusal, self._refusal = self._refusal, ""
        if refusal:
            return Collected(error_kind=Exhausted.__name__, message=refusal)
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            if self._world.monotonic() - self._began < DEADLINE_S:
                return None
            self.close()
            late = f"a collection took longer than {DEADLINE_S / 60:.0f} minutes and was ended"
            return Collected(error_kind=Exhausted.__name__, message=f"{late}; run gc by hand")
        assert process.stdout is not None
        said = process.stdout.read()
        self.close()
        if process.returncode == 0:
            return from_json(said, Collected, what="the collector's answer")
        ended = f"the collector ended with code {process.returncode}"
        return Collected(
            error_kind=CloudshiftError.__name__,
            message=f"{ended}; it is started again, see {self._log.name}",
        )

    def close(self) -> None:
        """End a collection that runs; what it had marked or deleted so far stands."""
        process, self._process, self._refusal = self._process, None, ""
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_BURIAL_S)
        assert process.stdout is not None
        process.stdout.close()

    def _launch(self) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "cloudshift_lab.checkpoint.collecting",
                    self._job.run_id, str(os.getpid()),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(to_json(self._job))  # one that dies this moment is noticed by poll()
        return process


def main(arguments: Sequence[str]) -> None:
    """Collect once and say how it went."""
    _run_id, parent_pid = arguments
    die_with_parent(int(parent_pid))
    step_back()
    job = from_json(sys.stdin.buffer.read(), SaverJob, what="the collector's job")
    try:
        report = collect(open_saver_store(job), concurrency=_CONCURRENCY)
        said = Collected(report=report)
    except CloudshiftError as error:
        said = Collected(error_kind=type(error).__name__, message=error.message)
    sys.stdout.buffer.write(to_json(said))


if __name__ == "__main__":
    main(sys.argv[1:])
