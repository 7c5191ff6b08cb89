"""What checkpoints cost and what is kept of them, in words."""

from __future__ import annotations

from cloudshift_lab.core.money import format_bytes
from cloudshift_lab.core.run import SaveStats
from cloudshift_lab.core.save_policy import format_seconds


def saves_lines(saves: SaveStats | None) -> tuple[str, ...]:
    """The newest checkpoint's figures, how often one is made and why, and what stays."""
    if saves is None or not saves.policy:
        return ()
    return tuple(line for line in (_newest(saves), _plan(saves)) if line)


def _newest(saves: SaveStats) -> str:
    if not saves.raw_bytes:
        return ""
    took = "" if saves.save_s is None else f", {format_seconds(saves.save_s)}"
    lost = "" if saves.lost_s is None else f", {format_seconds(saves.lost_s)} of training lost"
    return (
        f"checkpoint {format_bytes(saves.raw_bytes)} -> {format_bytes(saves.stored_bytes)}"
        f"{took}, new {format_bytes(saves.new_bytes)}{lost}"
    )


def _plan(saves: SaveStats) -> str:
    size = "" if saves.kept_bytes is None else f", {format_bytes(saves.kept_bytes)}"
    steps = "step" if saves.kept_steps == 1 else "steps"
    kept = f" ({saves.kept_steps} {steps}{size})" if saves.kept_steps else ""
    return f"saved {saves.policy}; keeps {saves.keep}{kept}"
