"""``python -m cloudshift_lab`` and the ``cloudshift`` command."""

from __future__ import annotations

import io
import sys


def main() -> int:
    """Run the command line on this process's arguments; returns the exit status."""
    from cloudshift_lab.lab.cli import main as run

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot draw a sign shows '?'
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
