"""A training script before it is sent: checked here, numbered as the person sees it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.engines.process import environment

CELL_HEADER = "# line 1 of the cell: %%cloudshift train\n"


def script_of_cell(body: str) -> str:
    """The script of a cell: line N of it is line N of the cell, so tracebacks point right.

    Raises:
        UsageError: The cell is empty or does not parse; names the line.
    """
    script = CELL_HEADER + body
    check_script(script, where="the cell")
    return script


def script_of_file(path: str) -> str:
    """The absolute path of a script that can be read and parses.

    Raises:
        UsageError: It cannot be read or does not parse; names the line.
    """
    file = Path(path).expanduser().absolute()
    try:
        check_script(file.read_text(encoding="utf-8"), where=path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read '{path}' ({reason}); give the path of a script") from error
    return str(file)


def with_modules_here(env: Mapping[str, str]) -> dict[str, str]:
    """``env`` with which a script that lies in no folder imports the modules beside its author."""
    paths = [str(Path.cwd()), env.get("PYTHONPATH", ""), environment().get("PYTHONPATH", "")]
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def name_of(path: str) -> str:
    """What to call the run of a script: its file's name, in letters that may name a run."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("-._")[:48] or "train"


def check_script(script: str, *, where: str) -> None:
    """Compile without running.

    Raises:
        UsageError: Nothing to run, or a syntax error with its line.
    """
    if not any(line.strip() and not line.lstrip().startswith("#") for line in script.splitlines()):
        raise UsageError(f"{where} holds no script; write the training code below the first line")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(script, where, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise UsageError(_explain(error, where)) from None


def _explain(error: SyntaxError | ValueError, where: str) -> str:
    if not isinstance(error, SyntaxError) or error.lineno is None:
        return f"{where} cannot be compiled ({error}); nothing was started"
    text = (error.text or "").strip()
    at = f"line {error.lineno} of {where}"
    shown = f": {text}" if text else ""
    if text.startswith(("%", "!")):
        return f"{at} is notebook magic{shown}; take it out of the script, nothing was started"
    return f"{at} has a syntax error ({error.msg}){shown} | mend it and run again: nothing started"
