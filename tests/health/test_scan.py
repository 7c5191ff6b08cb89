import numpy as np
import pytest

from cloudshift_lab.health.scan import Scan, ScanLimits

LIMITS = ScanLimits(memory=200, lag=50, clear=80)


def noise(samples: int, series: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, series))


def first_hits(samples: np.ndarray, past: int = 100) -> dict[int, int]:
    scan = Scan(samples[:past], LIMITS, floor=0.2)
    first: dict[int, int] = {}
    for at, sample in enumerate(samples[past:], past):
        for series in np.flatnonzero(scan.push(sample)[0]):
            first.setdefault(int(series), at)
    return first


def test_noise_alone_raises_nothing() -> None:
    assert first_hits(noise(2000, 30)) == {}


def test_noise_that_wavers_slowly_raises_nothing_either() -> None:
    samples = noise(2000, 30)
    for at in range(1, 2000):
        samples[at] += 0.5 * samples[at - 1]
    assert first_hits(samples) == {}


@pytest.mark.parametrize(("shift", "within"), [(4.0, 8), (1.0, 60)])
def test_a_large_shift_shows_at_once_and_a_small_one_later(shift: float, within: int) -> None:
    samples = noise(500, 30)
    samples[300:, 7] += shift
    hits = first_hits(samples)
    assert set(hits) == {7}
    assert 300 <= hits[7] <= 300 + within


def test_a_shift_downwards_raises_nothing() -> None:
    samples = noise(500, 10)
    samples[300:, 3] -= 4
    assert first_hits(samples) == {}


def test_an_excess_below_the_floor_is_not_worth_a_word_however_sure_it_is() -> None:
    samples = noise(900, 4) * 0.01
    samples[300:, 2] += 0.1
    assert first_hits(samples) == {}
    samples[300:, 2] += 0.2
    assert set(first_hits(samples)) == {2}


def test_what_is_raised_stays_until_it_has_been_quiet() -> None:
    samples = noise(600, 3)
    samples[200:300, 1] += 3
    scan = Scan(samples[:100], LIMITS, floor=0.8)
    states = []
    for sample in samples[100:]:
        scan.push(sample)
        states.append(bool(scan.raised[1]))
    assert states[100:200].count(True) > 90
    assert states[200]
    assert not any(states[310:])


def test_what_is_raised_does_not_become_the_new_normal() -> None:
    samples = noise(1500, 3)
    samples[200:, 1] += 3
    scan = Scan(samples[:100], LIMITS, floor=0.2)
    for sample in samples[100:]:
        scan.push(sample)
    assert scan.raised.tolist() == [False, True, False]
    assert scan.excess(40)[1] == pytest.approx(3, abs=0.7)
    assert scan.mean[1] == pytest.approx(0, abs=0.4)


def test_a_series_that_may_not_be_raised_is_not() -> None:
    samples = noise(200, 3)
    samples[150:, 1] += 5
    scan = Scan(samples[:100], LIMITS, floor=0.2)
    forbidden = np.array([True, False, True])
    assert not any(scan.push(sample, allowed=forbidden)[0].any() for sample in samples[100:])
