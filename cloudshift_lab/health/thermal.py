"""A GPU that gets warmer than its power and its own past explain, slowly and steadily.

Temperature follows power and the hour of the day; a model of both, fitted to the GPU's own past,
leaves a residual around zero. A failing fan or drying paste lets the residual climb. A hot room, a
new job or a blocked vent lets it jump and stay: that is not what is looked for. So a window of
residuals is cut into six blocks, and it is a climb if its whole rise is large, ends well above the
past, and is spread over the window: no two neighbouring steps hold most of it. While a jump enters
the window it may look like a climb for a moment; so it has to look so for the time of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudshift_lab.health.scan import Flags, Floats, Ints
from cloudshift_lab.health.windows import GpuWindow

BLOCKS = 6
DAY_S = 86400.0
_FIT_EVERY_S = 1800.0


@dataclass(frozen=True)
class ClimbLimits:
    """When a residual climbs.

    Args:
        windows_s: Lengths looked at, seconds; each is cut into six blocks.
        rise_c: Least rise over a window, and least height at its end, degrees.
        errors: Least rise in standard errors of a difference of two blocks.
        two_steps: Of a climb, two neighbouring steps of five hold less than this share; of a jump,
            nearly all.
        held: Share of the rows of one block that have to show it, up to the newest.
        history_s: How much past a model needs; about a day, to know the day's own ups and downs.
        lag_s: The newest rows are no part of the past.
    """

    windows_s: tuple[float, ...] = (1800.0, 3600.0, 7200.0, 14400.0)
    rise_c: float = 3.0
    errors: float = 6.5
    two_steps: float = 0.7
    held: float = 0.8
    history_s: float = 23 * 3600.0
    lag_s: float = 14400.0


def find_climbs(window: GpuWindow, limits: ClimbLimits | None = None) -> tuple[Flags, Floats]:
    """Rows at which a climb is seen, and how high the residual is there.

    A row is judged by rows before it alone; the model is fitted anew each half hour.

    Returns:
        Flags per row, and degrees above the past per row (0 where nothing is judged).
    """
    limits = limits or ClimbLimits()
    num = len(window.temp_c)
    hits, height = np.zeros(num, bool), np.zeros(num)
    every = max(1, round(_FIT_EVERY_S / window.every_s))
    first = round((limits.history_s + limits.windows_s[0]) / window.every_s)
    design = _design(window)
    is_read = np.isfinite(window.temp_c) & np.isfinite(design).all(axis=1)
    design, temp_c = np.where(is_read[:, None], design, 0.0), np.where(is_read, window.temp_c, 0.0)
    squares = _running(design[:, :, None] * design[:, None, :])
    products = _running(design * temp_c[:, None])
    reach = round(max(limits.windows_s) / window.every_s * (1 + 1 / BLOCKS)) + 1
    for begin in range(first, num, every):
        fitted = _past_rows(begin, window.every_s, limits)
        model = _solve(squares[fitted], products[fitted])
        if model is None:
            continue
        rows = slice(max(0, begin - reach), min(num, begin + every))
        residual = np.where(is_read[rows], temp_c[rows] - design[rows] @ model, np.nan)
        noise_c = _noise_c(temp_c[:fitted] - design[:fitted] @ model, is_read[:fitted])
        judged = rows.stop - begin
        flags, heights = _judge(residual, judged, noise_c, limits, window.every_s)
        hits[begin : rows.stop], height[begin : rows.stop] = flags, heights
    return hits, height


def _past_rows(begin: int, every_s: float, limits: ClimbLimits) -> int:
    """How many rows a model for row ``begin`` is fitted to: the history at least."""
    history = round(limits.history_s / every_s)
    return max(history, begin - round(limits.lag_s / every_s))


def _design(window: GpuWindow) -> Floats:
    """What the temperature is explained by: a constant, power, and the hour of the day."""
    angle = 2 * np.pi * window.times_s / DAY_S
    return np.stack(
        [np.ones(len(angle)), window.power_w / 100.0, np.sin(angle), np.cos(angle)], axis=1
    )


def _running(values: Floats) -> Floats:
    """Sums of the first 0, 1, 2, ... rows."""
    return np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])


def _solve(squares: Floats, products: Floats) -> Floats | None:
    """Least squares with a hint of shrinking, so that a constant power is no obstacle."""
    num = float(squares[0, 0])
    if num < 1:
        return None
    shrink = np.diag([0.0, 1e-3, 1e-3, 1e-3]) * num
    return np.asarray(np.linalg.solve(squares + shrink, products), dtype=np.float64)


def _noise_c(residual: Floats, is_read: Flags) -> float:
    """Spread from one row to the next: what is left of it is no trend."""
    steps = np.diff(residual)[is_read[1:] & is_read[:-1]]
    return float(1.4826 * np.median(np.abs(steps)) / np.sqrt(2)) if len(steps) else np.inf


def _judge(
    residual: Floats, judged: int, noise_c: float, limits: ClimbLimits, every_s: float
) -> tuple[Flags, Floats]:
    """The last ``judged`` rows of a residual."""
    sums = _running(np.nan_to_num(residual))
    counts = _running(np.isfinite(residual).astype(float))
    hits, heights = np.zeros(judged, bool), np.zeros(judged)
    for window_s in limits.windows_s:
        rows = max(1, round(window_s / every_s / BLOCKS))
        looked = min(len(residual), judged + rows)
        edges = np.arange(len(residual) - looked + 1, len(residual) + 1)[
            :, None
        ] - rows * np.arange(BLOCKS, -1, -1)
        least_c = max(limits.rise_c, limits.errors * noise_c * float(np.sqrt(2 / rows)))
        flags, height = _climbs(sums, counts, edges, least_c, limits)
        shown = _running(flags.astype(float))
        ends = np.arange(looked - judged + 1, looked + 1)
        lately = shown[ends] - shown[np.maximum(0, ends - rows)]
        held = flags[-judged:] & (lately >= limits.held * rows)
        hits |= held
        heights = np.where(held, np.maximum(heights, height[-judged:]), heights)
    return hits, heights


def _climbs(
    sums: Floats, counts: Floats, edges: Ints, least_c: float, limits: ClimbLimits
) -> tuple[Flags, Floats]:
    """Which windows, given by the edges of their blocks, hold a climb, and how high they end."""
    is_there = edges[:, 0] >= 0
    edges = np.maximum(edges, 0)
    read = np.diff(counts[edges], axis=1)
    means = np.diff(sums[edges], axis=1) / np.maximum(read, 1)
    rise = means[:, -1] - means[:, 0]
    two = (means[:, 2:] - means[:, :-2]).max(axis=1)
    enough = 2 * read.min(axis=1) >= np.diff(edges, axis=1).max(axis=1)
    flags = (
        is_there & enough & (rise >= least_c) & (means[:, -1] >= limits.rise_c)
        & (two <= limits.two_steps * rise)
    )  # fmt: skip
    return flags, means[:, -1]
