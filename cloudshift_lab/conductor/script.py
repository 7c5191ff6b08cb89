"""A run's script: read, checked before anything starts, and frozen for all its attempts."""

from __future__ import annotations

import warnings
from pathlib import Path

import msgspec

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.core.home import write_private
from cloudshift_lab.core.run import RunSpec


def read_script(spec: RunSpec) -> str:
    """The source of a run: ``spec.script`` itself when it has a line break, else that file.

    Raises:
        UsageError: It cannot be read, is empty or does not parse; nothing was started.
    """
    if "\n" in spec.script:
        source, name = spec.script, "the script"
    else:
        source, name = _read_file(spec.script), spec.script
    if not source.strip():
        raise UsageError(f"{name} is empty; write the training code into it")
    _check_syntax(source, name)
    return source


def freeze_script(spec: RunSpec, source: str, folder: Path) -> RunSpec:
    """Keep the script beside the run, so that a later edit cannot change what a move restarts.

    The folder that the script came from stays importable through ``PYTHONPATH``.
    """
    frozen = folder / "script.py"
    write_private(frozen, source.encode())
    if "\n" in spec.script:
        return msgspec.structs.replace(spec, script=str(frozen))
    origin = str(Path(spec.script).parent)
    before = spec.env.get("PYTHONPATH")
    path = f"{origin}:{before}" if before else origin
    env = {**spec.env, "PYTHONPATH": path}
    return msgspec.structs.replace(spec, script=str(frozen), env=env)


def _read_file(script: str) -> str:
    path = Path(script)
    if not path.is_absolute():
        raise UsageError(f"'{script}' is a relative path; give the script's whole path")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read '{script}' ({reason}); give the path of a script") from error


def _check_syntax(source: str, name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        text = (error.text or "").strip()
        shown = f": {text}" if text else ""
        raise UsageError(
            f"line {error.lineno} of {name} has a syntax error ({error.msg}){shown} "
            "- nothing was started, mend it and run again"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{name} cannot be compiled ({error}); nothing was started, mend it and run again"
        ) from error
