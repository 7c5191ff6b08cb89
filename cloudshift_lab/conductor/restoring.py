"""Writing a stored step as a file or folder that other tools open."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from cloudshift_lab.checkpoint.npz import write_npz
from cloudshift_lab.checkpoint.reader import Checkpoint
from cloudshift_lab.conductor.jobs import Task
from cloudshift_lab.core.errors import CloudshiftError, UsageError
from cloudshift_lab.core.steps import RestoreAsk, Restored
from cloudshift_lab.engines.process import environment

SUFFIX = {"npz": ".npz", "safetensors": ".safetensors", "state_dict": ".pt", "dcp": ""}
_POLL_S = 0.2
_GRACE_S = 5.0
_TAIL_CHARS = 2000


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


def restore(step: Checkpoint, ask: RestoreAsk, *, ref: str, python: str, task: Task) -> Restored:
    """Write the step; nothing is left behind when it fails or is cancelled.

    Args:
        step: What to write.
        ask: Format and place.
        ref: What people call the step: ``gpt@400``.
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
        _export(step, ask, path, python=python or sys.executable, task=task)
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return Restored(
        step=ref,
        format=ask.format,
        path=str(path),
        num_tensors=len(step.names()),
        num_bytes=sum(each.stat().st_size for each in files),
    )


def _export(step: Checkpoint, ask: RestoreAsk, path: Path, *, python: str, task: Task) -> None:
    """Let a process with torch write the formats that need it."""
    words = [
        python, "-m", "cloudshift_lab.training.interchange", "export",
        "--url", step.store.url, "--run", step.manifest.run_id, "--step", str(step.step),
        "--format", ask.format, "--to", str(path),
    ]  # fmt: skip
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    try:
        complaint = _wait(process, task)
    finally:
        _end(process)
        if process.returncode != 0:
            _remove(path)
    if process.returncode != 0:
        last = complaint.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise CloudshiftError(f"step {step.step} cannot be written as {ask.format}: {last[0]}")


def _wait(process: subprocess.Popen[str], task: Task) -> str:
    """The last of what the process complained about, once it has ended."""
    while True:
        try:
            _, complaint = process.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            task.check()
        else:
            return complaint[-_TAIL_CHARS:]


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
