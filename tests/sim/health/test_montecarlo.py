from dataclasses import replace

import pytest

from cloudshift_lab.health.goodput import GoodputFacts, forecast
from cloudshift_lab.sim.health.montecarlo import drawn_share

A = GoodputFacts(
    mtbf_s=12 * 3600.0, save_s=60, detect_s=1800, restart_s=1800, interval_s=3 * 3600.0, step_s=10
)
B = replace(A, interval_s=None)
C = replace(B, detect_s=60, restart_s=300)
D = replace(C, save_s=2)
E = replace(D, jit_share=0.9, jit_s=10)
F = replace(E, recall=0.3, precision=0.5, move_s=60)
G = replace(A, recall=0.3, precision=0.5, move_s=600)


@pytest.mark.parametrize("facts", [A, B, C, D, E, F, G])
def test_the_formula_agrees_with_drawn_failures(facts: GoodputFacts) -> None:
    drawn = drawn_share(facts, num_failures=400_000, seed=20261123)
    assert forecast(facts).share == pytest.approx(drawn, abs=0.002)


def test_the_same_seed_draws_the_same() -> None:
    assert drawn_share(F, 1000, seed=1) == drawn_share(F, 1000, seed=1)
    assert drawn_share(F, 1000, seed=1) != drawn_share(F, 1000, seed=2)
