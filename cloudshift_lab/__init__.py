"""CloudShift Lab: move a running PyTorch job to another cloud without losing a training step."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = frozenset(
    {"Migration", "Run", "ScriptFailed", "approve", "branch", "cost", "diff", "du", "forget", "gc",
     "goodput", "jobs", "log", "maintenance", "migrate", "move", "notice", "pin", "receipts",
     "reject", "repair", "restore", "resume", "run", "runs", "status", "stop", "targets", "train",
     "unpin", "verify"}
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used: the package itself stays light."""
    if name not in _API:
        raise AttributeError(f"module 'cloudshift_lab' has no attribute '{name}'")
    return getattr(import_module("cloudshift_lab.lab.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext cloudshift_lab``."""
    import_module("cloudshift_lab.lab").load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext cloudshift_lab``."""
    import_module("cloudshift_lab.lab").unload_ipython_extension(shell)


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "cloudshift-lab"}]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    server = import_module("cloudshift_lab.lab.server")
    return [{"module": "cloudshift_lab.lab.server", "app": server.CloudshiftServer}]
