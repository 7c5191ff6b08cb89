"""Writing a run's ledger to a file, in the columns of FOCUS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cloudshift_lab.core.costs import CostEntry
from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.market.focus import focus_rows, to_csv, to_parquet

_WRITERS = {".csv": to_csv, ".parquet": to_parquet}


def check_export(path: Path) -> None:
    """Refuse a file whose ending is not known, before anything is asked for.

    Raises:
        UsageError: It ends otherwise than in ``.csv`` or ``.parquet``.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(f"'{path}' has to end in .csv or .parquet; give --export such a path")


def write_charges(path: Path, charges: Sequence[CostEntry], *, run_id: str, name: str) -> str:
    """Write them to a new file, in the form that its ending names.

    Args:
        path: Of the file; it must not exist.
        charges: A run's ledger.
        run_id: Whose.
        name: What people call it.

    Returns:
        What was written, in words.

    Raises:
        UsageError: The file exists, cannot be written, or has another ending.
    """
    check_export(path)
    data = _WRITERS[path.suffix](focus_rows(charges, run_id=run_id, name=name))
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        why = "exists already" if path.exists() else str(error.strerror)
        raise UsageError(f"{path} {why}; give --export another path") from error
    return (
        f"the ledger of {name} ({len(charges):,} charges) was written to {path}, as FOCUS names it"
    )
