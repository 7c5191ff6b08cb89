"""Where people meet CloudShift: magics, command line, Python API, widgets, server extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics and their completion, and print one line about where things stand."""
    from cloudshift_lab.lab.magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take completion and background followers away again; the magics stay harmless."""
    from cloudshift_lab.lab.magics import unload

    unload(shell)
