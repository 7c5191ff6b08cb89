"""Around torchrun and around each rank: die with the parent, log to a file, keep the traceback.

    python -m cloudshift_lab.agent.bootstrap launch <parent pid> <errors dir> <torchrun arguments>
    python -m cloudshift_lab.agent.bootstrap rank <workdir> <script> [arguments]

Only what the standard library has is imported before the script runs: start-up is pause time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

from cloudshift_lab.core.lineage import die_with_parent

_LAUNCHER_ENV = "CLOUDSHIFT_LAUNCHER_PID"
LAUNCH_FILE = "launch.json"
LOGS = "logs"
ERRORS = "errors"
DONE_SUFFIX = ".done"
MODULES_FILE = "modules.json"
GATE_ENV = "CLOUDSHIFT_GATE"
IMPORTED_ENV = "CLOUDSHIFT_IMPORTED"
_NODE_DIR_ENV = "CLOUDSHIFT_NODE_DIR"
_GATE_POLL_S = 0.02
_BEGAN = time.time()


def launch(parent_pid: int, errors: Path, arguments: list[str]) -> None:
    """Be torchrun, and write down how its ranks ended."""
    die_with_parent(parent_pid)
    os.environ[_LAUNCHER_ENV] = str(os.getpid())
    sys.argv = ["torchrun", *arguments]
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except Exception as error:
        ends = _exit_codes(error)
        if ends is None:
            raise
        (errors / LAUNCH_FILE).write_text(json.dumps(ends))
        sys.exit(1)


def _exit_codes(error: Exception) -> dict[str, int] | None:
    """Rank to exit code from torchrun's own error; None when it is another one."""
    failures = getattr(error, "failures", None)
    if not isinstance(failures, dict):
        return None
    return {str(rank): int(failure.exitcode) for rank, failure in failures.items()}


def run_rank(workdir: Path, script: str, arguments: list[str]) -> None:
    """Run the researcher's script as ``__main__``; an exception is written down, then passed on.

    It is left in ``sys.last_value``, as the interpreter would, so that what runs at exit can tell.
    """
    die_with_parent(int(os.environ.get(_LAUNCHER_ENV, os.getppid())))
    rank = int(os.environ["RANK"])
    _log_to(workdir / LOGS / f"rank-{rank}.log")
    _preload()
    _wait_at_gate(rank)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            sys.last_value = error
        else:
            _tell_done(workdir, rank)
        raise
    except Exception as error:  # noqa: BLE001 - recorded for the agent, and ends the rank
        sys.last_value = error
        trimmed = trim(error.__traceback__)
        text = "".join(traceback.format_exception(type(error), error, trimmed))
        sys.stderr.write(text)
        _write_failure(workdir / ERRORS / f"rank-{rank}.json", rank, error, text)
        sys.exit(1)
    else:
        _tell_done(workdir, rank)


def _preload() -> None:
    """Import what the ranks before us had imported of installed packages; say how long it took."""
    known = Path(os.environ.get(_NODE_DIR_ENV, "")) / MODULES_FILE
    if not known.is_file():
        return
    for name in json.loads(known.read_text()):
        with contextlib.suppress(Exception):  # the script imports it itself, if it needs it
            importlib.import_module(name)
    os.environ[IMPORTED_ENV] = f"{_BEGAN} {time.time()}"


def _wait_at_gate(rank: int) -> None:
    """Be a spare, if that is what we are: until the gate's file is there."""
    name = os.environ.pop(GATE_ENV, None)
    if name is None:
        return
    gate = Path(name)
    gate.with_name(f"{gate.name}.ready-{rank}").touch()
    while not gate.exists():
        time.sleep(_GATE_POLL_S)


def _tell_done(workdir: Path, rank: int) -> None:
    """Say that this rank ends as it should: its end is no death."""
    (workdir / ERRORS / f"rank-{rank}{DONE_SUFFIX}").touch()


def trim(frames: TracebackType | None) -> TracebackType | None:
    """Leave out the frames before the script's own: ours and the interpreter's."""
    here = (__file__, "<frozen runpy>", runpy.__file__)
    found = frames
    while found is not None and found.tb_frame.f_code.co_filename in here:
        found = found.tb_next
    return found or frames


def _log_to(path: Path) -> None:
    """Send everything this process prints, also from C++, to a file of its own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _write_failure(path: Path, rank: int, error: Exception, text: str) -> None:
    first_line = (str(error).strip().splitlines() or [""])[0]
    name = type(error).__name__
    message = f"{name}: {first_line}" if first_line else name
    failure = {"rank": rank, "at": time.time(), "message": message, "traceback": text}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(failure))
    temporary.replace(path)


def main(arguments: list[str]) -> None:
    """Entry point of both uses."""
    kind, *rest = arguments
    if kind == "launch":
        launch(int(rest[0]), Path(rest[1]), rest[2:])
    else:
        run_rank(Path(rest[0]), rest[1], rest[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
