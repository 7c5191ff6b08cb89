"""Checkpoints to and from other formats, from Python and from the command line.

::

    python -m cloudshift_lab.training.interchange export --url URL --run RUN [--step N]
        --format safetensors|dcp|state_dict --to PATH [--home DIR --cloud NAME]
    python -m cloudshift_lab.training.interchange import --from dcp|safetensors PATH --trust
        --url URL --run RUN [--step N] [--home DIR --cloud NAME]

Progress goes to standard output, a JSON line ``{"done_bytes", "total_bytes"}`` now and then and one
with the result at the end; an error is one line on standard error, and exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.core.home import load_clouds, store_options
from cloudshift_lab.core.wire import to_json
from cloudshift_lab.training.exports import (
    Step,
    export_dcp,
    export_safetensors,
    export_state_dict,
)
from cloudshift_lab.training.imports import Imported, import_dcp, import_safetensors

__all__ = [
    "Imported",
    "export_dcp",
    "export_safetensors",
    "export_state_dict",
    "import_dcp",
    "import_safetensors",
    "main",
]

EXPORTS = {"safetensors": export_safetensors, "dcp": export_dcp, "state_dict": export_state_dict}
IMPORTS = {"dcp": import_dcp, "safetensors": import_safetensors}


def main(arguments: Sequence[str]) -> int:
    """Run one export or import; the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        print(to_json(_run(asked)).decode(), flush=True)
    except CloudshiftError as error:
        print(error.message, file=sys.stderr)
        return 1
    except (OSError, MemoryError) as error:
        print(f"{error}; free space or memory, or choose another place", file=sys.stderr)
        return 1
    return 0


def _run(asked: argparse.Namespace) -> object:
    options = _options(asked)
    if asked.action == "export":
        step: Step = "latest" if asked.step is None else asked.step
        num_bytes = EXPORTS[asked.format](
            asked.url, asked.run, Path(asked.to), step=step, store_options=options, progress=_tell
        )
        return {"path": asked.to, "num_bytes": num_bytes}
    return IMPORTS[asked.source](
        Path(asked.path), asked.url, asked.run, trusted=asked.trust, step=asked.step,
        store_options=options, progress=_tell,
    )  # fmt: skip


def _options(asked: argparse.Namespace) -> Mapping[str, object]:
    """The store's options from a state directory, so that no credential is on a command line."""
    if asked.cloud is None:
        return {}
    return store_options(load_clouds(Path(asked.home)).find(asked.cloud), inside=False)


def _tell(done_bytes: int, total_bytes: int) -> None:
    print(to_json({"done_bytes": done_bytes, "total_bytes": total_bytes}).decode(), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cloudshift_lab.training.interchange")
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="write a stored step in another format")
    export.add_argument("--format", choices=sorted(EXPORTS), required=True)
    export.add_argument("--to", required=True, metavar="PATH")
    bring = actions.add_parser("import", help="bring a checkpoint of another format in")
    bring.add_argument("path", metavar="PATH")
    bring.add_argument("--from", dest="source", choices=sorted(IMPORTS), required=True)
    bring.add_argument("--trust", action="store_true", help="you know where it comes from")
    for action in (export, bring):
        action.add_argument("--url", required=True)
        action.add_argument("--run", required=True)
        action.add_argument("--step", type=int)
        action.add_argument("--home", default=".")
        action.add_argument("--cloud", help="whose store options to take from --home")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
