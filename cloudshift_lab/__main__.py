"""``python -m cloudshift_lab`` and the ``cloudshift`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on this process's arguments; returns the exit status."""
    from cloudshift_lab.lab.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
