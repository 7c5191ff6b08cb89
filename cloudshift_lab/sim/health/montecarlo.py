"""The goodput model's assumptions, drawn instead of solved: what the formula is checked against."""

from __future__ import annotations

import numpy as np

from cloudshift_lab.core.save_policy import young_daly_interval_s
from cloudshift_lab.health.goodput import GoodputFacts


def drawn_share(facts: GoodputFacts, num_failures: int, seed: int) -> float:
    """Share of time that trains and is kept, over so many random failures."""
    rng = np.random.default_rng(seed)
    interval_s = facts.interval_s or young_daly_interval_s(facts.save_s, facts.mtbf_s)
    cycle_s = interval_s + facts.save_s
    lives_s = rng.exponential(facts.mtbf_s, num_failures)
    is_foreseen = rng.random(num_failures) < facts.recall
    is_saved = rng.random(num_failures) < facts.jit_share
    num_saves = np.floor(lives_s / cycle_s)
    trained_s = num_saves * interval_s + np.minimum(lives_s - num_saves * cycle_s, interval_s)
    kept_s = np.where(
        is_foreseen, trained_s,
        np.where(is_saved, trained_s - facts.step_s * rng.random(num_failures),
                 num_saves * interval_s),
    )  # fmt: skip
    down_s = facts.detect_s + facts.restart_s + np.where(is_saved, facts.jit_s, 0.0)
    alarms = is_foreseen.sum() / facts.precision if facts.recall else 0.0
    whole_s = lives_s.sum() + np.where(is_foreseen, 0.0, down_s).sum() + alarms * facts.move_s
    return float(np.maximum(kept_s, 0).sum() / whole_s)
