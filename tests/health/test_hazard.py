import numpy as np
import pytest

from cloudshift_lab.health.finding import Finding, Subject
from cloudshift_lab.health.hazard import (
    TRAINED,
    choose,
    features,
    fit,
    placement_risk,
    week_risk,
    with_findings,
)

WARNED = Finding(
    rule_id="precursor.ecc", subject=Subject("gpu", "a"), severity="warning", evidence=(),
    action="drain the node", confidence=0.9, deterministic=False, words="", at=0.0,
)  # fmt: skip


def risk(own: list[float], fleet: list[float] | None = None, today: float = 100.0) -> float:
    return week_risk(features(own, fleet or own, 100, today))


def test_faults_raise_a_nodes_risk_and_fade() -> None:
    assert risk([99.0]) > risk([10.0]) > risk([])
    assert risk([98.0, 99.0]) > risk([99.0])


def test_a_bad_week_of_the_fleet_raises_everybodys_risk() -> None:
    assert risk([], [98.0] * 10) > risk([], [20.0])


def test_what_comes_after_today_is_not_looked_at() -> None:
    assert risk([101.0], [101.0, 120.0]) == risk([], [])


def test_the_shipped_model_gives_rates_as_they_are() -> None:
    assert 0.003 < risk([]) < 0.03
    assert 0.02 < risk([95.0, 99.0]) < 0.5
    assert all(weight > 0 for weight in TRAINED.weights)
    assert "2026" in TRAINED.source


def test_a_fit_finds_the_weights_that_made_the_data() -> None:
    rng = np.random.default_rng(2)
    values = rng.uniform(0, 2, (40_000, 2))
    chance = 1 / (1 + np.exp(-(-3 + 1.0 * values[:, 0] + 0.5 * values[:, 1])))
    found = fit(values, (rng.random(40_000) < chance).astype(float), source="test")
    assert found.intercept == pytest.approx(-3, abs=0.15)
    assert found.weights[0] == pytest.approx(1.0, abs=0.1)
    assert found.weights[1] == pytest.approx(0.5, abs=0.1)


def test_a_run_needs_all_its_nodes() -> None:
    assert placement_risk([]) == 0
    assert placement_risk([0.1, 0.2]) == pytest.approx(0.28)


def test_the_least_risky_are_chosen() -> None:
    assert choose({"c": 0.1, "a": 0.3, "b": 0.1}, 2) == ("b", "c")
    assert choose({"a": 0.3}, 5) == ("a",)


def test_a_warning_found_now_outweighs_any_past() -> None:
    assert with_findings(0.02, [WARNED]) > 0.9
    assert with_findings(0.02, []) == pytest.approx(0.02)
