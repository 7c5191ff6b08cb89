"""Loading a framework only where it is asked for, and saying how to get it where it is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from cloudshift_lab.core.errors import UsageError


def load(module: str, extra: str) -> Any:
    """Import a framework.

    Args:
        module: Its name.
        extra: Of this package, which brings it.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; run: pip install 'cloudshift-lab[{extra}]'"
        ) from error


def bare(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer within a framework's own."""
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
