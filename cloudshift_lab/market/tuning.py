"""What the policy is set to, found on recorded markets; the plateau around it is flat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Numbers that hold for every market and every job.

    Args:
        lowest: An hour's worth with all slack left, in usual spot prices.
        steepness: How late the worth rises as slack is used; 1 is the one-way-trading curve.
        longest_life_h: Machines are not expected to last longer.
        horizon_h: How far a choice is looked ahead.
        hysteresis: A move must be worth that many hours' worth more than staying.
        spare_starts: Starts that are kept in reserve of the slack.
        anxious_starts: Below so many starts of slack an hour is worth more than it costs on
            demand: slack that is gone never comes back, and without it all the rest must be
            bought on demand, so machines that fail often are not worth the starts they cost.
        anxiety: That many times the price on demand is an hour worth without any slack.
        overhead: Expected share of restarts in all training, before any was measured.
        overhead_prior_h: Training that this expectation weighs as much as.
        region_risk: How much more often a region's machines restart than it is without any.
    """

    lowest: float = 1.4
    steepness: float = 0.7
    longest_life_h: float = 3.5
    horizon_h: float = 4.0
    hysteresis: float = 0.03
    spare_starts: float = 8.0
    anxious_starts: float = 15.0
    anxiety: float = 3.0
    overhead: float = 0.03
    overhead_prior_h: float = 10.0
    region_risk: float = 1.5
