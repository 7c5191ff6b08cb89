import numpy as np
import pytest

from cloudshift_lab.health.loss import find_loss_anomalies
from cloudshift_lab.health.windows import LossWindow


def curve(steps: int = 220) -> np.ndarray:
    rng = np.random.default_rng(5)
    return 3 * np.exp(-np.arange(steps) / 400) + 0.02 * rng.standard_normal(steps)


def rules(loss: np.ndarray, norm: np.ndarray | None = None) -> list[str]:
    return [each.rule_id for each in find_loss_anomalies(LossWindow(1000, loss, norm))]


def test_a_falling_curve_is_fine() -> None:
    assert rules(curve(), curve()) == []


@pytest.mark.parametrize(("value", "rule"), [(np.nan, "loss.nan"), (np.inf, "loss.inf")])
def test_what_is_no_number_is_found_at_once(value: float, rule: str) -> None:
    loss = curve()
    loss[-1] = value
    assert rules(loss) == [rule]
    (found,) = find_loss_anomalies(LossWindow(1000, loss))
    assert found.at == 1219
    assert "1219" in found.words


def test_three_leaps_of_five_are_a_spike_and_two_are_not() -> None:
    loss = curve()
    loss[[-5, -3]] += 4
    assert rules(loss) == []
    loss[-1] += 4
    assert rules(loss) == ["loss.spike"]


def test_the_gradient_norm_is_judged_alike() -> None:
    norm = curve()
    norm[-4:] *= 3
    assert rules(curve(), norm) == ["loss.spike.grad_norm"]


def test_a_flat_curve_does_not_turn_every_flicker_into_a_spike() -> None:
    loss = np.full(220, 2.0)
    loss[-5:] += 1e-4
    assert rules(loss) == []


def test_too_short_a_past_says_nothing() -> None:
    loss = curve(40)
    loss[-5:] += 5
    assert rules(loss) == []
    assert rules(np.zeros(0)) == []


def test_a_drop_is_no_spike() -> None:
    loss = curve()
    loss[-5:] -= 2
    assert rules(loss) == []
