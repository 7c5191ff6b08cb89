"""Writing a stored step as a file or folder that other tools open."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from cloudshift_lab.checkpoint.npz import write_npz
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.conductor.jobs import Task
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.steps import RestoreAsk, Restored
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.engines.process import environment

SUFFIX = {"npz": ".npz", "safetensors": ".safetensors", "state_dict": ".pt", "dcp": ""}
_POLL_S = 0.2
_GRACE_S = 5.0
_LONGEST = 500


class _Told(msgspec.Struct, frozen=True):
    """A line of an export's output; the last one has none of these."""

    done_bytes: int = 0
    total_bytes: int = 0


def place_of(ask: RestoreAsk, ref: str) -> Path:
    """Where the file or folder goes: ``ask.to``, or inside it when it is a folder already.

    Raises:
        UsageError: Not an absolute path, in no folder, or something is there already.
    """
    path = Path(ask.to)
    if not path.is_absolute():
        raise UsageError(f"'{ask.to}' is a relative path; give the whole path")
    if path.is_dir() and (ask.format != "dcp" or any(path.iterdir())):
        path /= ref.replace("@", "-") + SUFFIX[ask.format]
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}; make it, or choose another place")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} is there already; choose another place, or remove it first")
    return path


def restore(
    step: Checkpoint, ask: RestoreAsk, *, ref: str, home: Path, cloud: str, python: str, task: Task
) -> Restored:
    """Write the step; nothing is left behind when it fails or is cancelled.

    Args:
        step: What to write.
        ask: Format and place.
        ref: What people call the step: ``gpt@400``.
        home: State directory, whose cloud list has the store's options.
        cloud: Whose store it is.
        python: Interpreter of the run, which has torch.
        task: Progress and cancellation.

    Raises:
        UsageError: The place is taken by now.
        CloudshiftError: As the reader or the exporting process reported.
    """
    path = place_of(ask, ref)
    if ask.format == "npz":
        write_npz(step, path, task.tell)
    else:
        words = [
            python or sys.executable, "-m", "cloudshift_lab.training.interchange", "export",
            "--url", step.store.url, "--run", step.manifest.run_id, "--step", str(step.step),
            "--format", ask.format, "--home", str(home), "--cloud", cloud,
        ]  # fmt: skip
        _export(words, path, task)
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    num_bytes = sum(each.stat().st_size for each in files)
    return Restored(step=ref, format=ask.format, path=str(path), num_bytes=num_bytes)


def _export(words: list[str], path: Path, task: Task) -> None:
    """Let a process with torch write a format that needs it, beside its place; then put it there.

    Raises:
        CloudshiftError: It failed; its own words.
    """
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        with _Exporting([*words, "--to", str(made)], Path(folder) / "complaint") as process:
            complaint = process.wait(task)
        if complaint is not None:
            raise CloudshiftError(f"the step cannot be written as {path.name}: {complaint}")
        if path.is_dir():
            path.rmdir()
        made.replace(path)


class _Exporting:
    """A running export: its progress is followed, and it ends with the context.

    Args:
        words: The command.
        complaint: File for what it writes on standard error.
    """

    def __init__(self, words: list[str], complaint: Path) -> None:
        self._complaint = complaint
        self._newest = (0, 0)
        with complaint.open("wb") as stderr:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env=environment(),
            )
        self._reader = threading.Thread(target=self._read, name="export", daemon=True)

    def __enter__(self) -> _Exporting:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_S)
        self._reader.join()

    def wait(self, task: Task) -> str | None:
        """Stay until it has ended; what went wrong, or None."""
        while True:
            task.tell(*self._newest)
            try:
                if self._process.wait(_POLL_S) == 0:
                    return None
            except subprocess.TimeoutExpired:
                continue
            last = self._complaint.read_text(errors="replace").strip().splitlines()[-1:]
            return last[0][:_LONGEST] if last else f"exit status {self._process.returncode}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                told = from_json(line, _Told, what="the export's progress")
                if told.total_bytes:
                    self._newest = (told.done_bytes, told.total_bytes)
