"""Opening the DuckDB file, also after a crash, a torn write or a flipped bit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import duckdb

from cloudshift_lab.core.errors import CloudshiftError, Conflict, Denied, Unavailable

_DAMAGE = re.compile(
    r"checksum|corrupt|replaying WAL|not a valid DuckDB database|Could not read enough bytes",
    re.IGNORECASE,
)
_DATABASE_DAMAGE = re.compile(
    r"Corrupt database|not a valid DuckDB database|Could not read enough bytes", re.IGNORECASE
)
_WAL_POSITION = re.compile(r"Corrupt WAL file: entry at byte position (\d+)")
_WHAT_TO_DO = (
    "what the spool and the archive beside it have is taken back by itself; "
    "delete the set-aside file when you do not miss anything"
)


class Damaged(Exception):
    """DuckDB found the file or its log unreadable; never leaves this room."""


def open_database(
    path: Path, config: Mapping[str, str]
) -> tuple[duckdb.DuckDBPyConnection, tuple[str, ...]]:
    """Open or make the database; set aside what cannot be read and say so.

    A damaged write-ahead log is cut at the first bad entry, or left out; a damaged database file
    is replaced by an empty one. What is set aside keeps its bytes as ``*.damaged-<n>``.

    Returns:
        The connection, and one line for each thing that was set aside.

    Raises:
        Conflict: Another process has the file open.
        Denied: The file may not be read or written.
        Unavailable: The file system failed in another way.
    """
    warnings: list[str] = []
    for repair in (_cut_log, _leave_out_log, _start_anew):
        try:
            return _open_checked(path, config), tuple(warnings)
        except Damaged as damage:
            warning = repair(path, str(damage))
            if warning:
                warnings.append(warning)
    return _open_checked(path, config), tuple(warnings)


def ended_uncleanly(path: Path) -> bool:
    """Whether the process that had the database open was cut off: its log was not merged."""
    log = _log_of(path)
    return log.exists() and log.stat().st_size > 0


def _open_checked(path: Path, config: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    """Open; after an unclean end also merge the log and read every block once.

    DuckDB opens without a word when the log's first bytes are damaged: it ignores the log. A log
    that a checkpoint leaves behind was ignored. What cannot be noticed: damage in the length of an
    entry (8 of its bytes) looks like the torn tail that every kill leaves, and is cut silently.
    """
    was_unclean = ended_uncleanly(path)
    connection = _connect(path, config)
    if not was_unclean:
        return connection
    try:
        connection.execute("CHECKPOINT").fetchall()
        if ended_uncleanly(path):
            raise Damaged("the write-ahead log was not replayed")
        _read_everything(connection)
    except (duckdb.Error, Damaged) as error:
        connection.close()
        if isinstance(error, duckdb.Error) and not _DAMAGE.search(str(error)):
            raise _open_error(path, error) from error
        raise Damaged(str(error)) from error
    return connection


def _connect(path: Path, config: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return duckdb.connect(str(path), config=dict(config))
    except duckdb.Error as error:
        if _DAMAGE.search(str(error)):
            raise Damaged(str(error)) from error
        raise _open_error(path, error) from error
    except OSError as error:
        raise _open_error(path, error) from error


def _read_everything(connection: duckdb.DuckDBPyConnection) -> None:
    tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    for (name,) in tables:
        connection.execute(f'SELECT sum(hash(COLUMNS(*))) FROM "{name}"').fetchall()


def _open_error(path: Path, error: Exception) -> CloudshiftError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if "Could not set lock" in reason:
        return Conflict(
            f"another process has {path} open ({reason}); stop it or ask it for the data"
        )
    if "Permission denied" in reason or isinstance(error, PermissionError):
        return Denied(f"{path} may not be opened ({reason}); mend its permissions")
    return Unavailable(f"{path} could not be opened ({reason}); mend the disk or name another path")


def _cut_log(path: Path, damage: str) -> str | None:
    """Keep the log's good entries: everything before the first bad one."""
    position = _WAL_POSITION.search(damage)
    log = _log_of(path)
    if position is None or not log.exists():
        return None
    aside = _free_name(log)
    shutil.copyfile(log, aside)
    os.truncate(log, int(position[1]))
    return f"telemetry's newest rows were damaged and are set aside in {aside}; {_WHAT_TO_DO}"


def _leave_out_log(path: Path, damage: str) -> str | None:
    """Go back to the last checkpoint."""
    log = _log_of(path)
    if _DATABASE_DAMAGE.search(damage) or not log.exists():
        return None
    aside = _free_name(log)
    log.replace(aside)
    return f"telemetry since the last checkpoint is unreadable, now in {aside}; {_WHAT_TO_DO}"


def _start_anew(path: Path, damage: str) -> str | None:
    aside = _free_name(path)
    path.replace(aside)
    log = _log_of(path)
    if log.exists():
        log.replace(_log_of(aside))
    reason = damage.splitlines()[0]
    return f"the telemetry file was unreadable ({reason}), now in {aside}; {_WHAT_TO_DO}"


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return candidate
