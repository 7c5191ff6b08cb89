"""Jupyter server extension: the conductor's API behind Jupyter's own login, and its events."""

from __future__ import annotations

from cloudshift_lab.lab.server.extension import CloudshiftServer

__all__ = ["CloudshiftServer"]
