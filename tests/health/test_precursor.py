from dataclasses import replace

import numpy as np
import pytest

from cloudshift_lab.health.precursor import find_precursors, first_precursors
from cloudshift_lab.health.windows import GpuWindow

MINUTES = 2400
DAY = 1440


def gpu(seed: int = 1, minutes: int = MINUTES) -> GpuWindow:
    """A healthy GPU: its temperature follows its power and the hour of the day."""
    rng = np.random.default_rng(seed)
    power_w = 640 + 12 * rng.standard_normal(minutes)
    idle = rng.integers(200, minutes - 100, 6)
    for begin in idle:
        power_w[begin : begin + int(rng.integers(10, 50))] = 110.0
    hour = 2.5 * np.sin(2 * np.pi * np.arange(minutes) / DAY + rng.uniform(0, 6))
    temp_c = 30 + 0.055 * power_w + hour + 0.8 * rng.standard_normal(minutes)
    zeros = np.zeros(minutes)
    return GpuWindow(
        gpu="n1/PCI:0000:3b:00", begin_s=0.0, every_s=60.0, temp_c=np.round(temp_c),
        power_w=power_w, ecc_corrected=zeros.copy(), remapped_rows=zeros.copy(),
        pcie_replays=zeros.copy(), nic_flaps=zeros.copy(),
        throttle_bits=np.zeros(minutes, np.int64),
    )  # fmt: skip


def rules(window: GpuWindow) -> list[str]:
    return [each.rule_id for each in first_precursors(window)]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_gpu_shows_no_sign(seed: int) -> None:
    assert rules(gpu(seed)) == []


@pytest.mark.parametrize(
    ("field", "rows", "rule"),
    [
        ("ecc_corrected", range(2000, 2050, 5), "precursor.ecc"),
        ("pcie_replays", range(2000, 2030, 3), "precursor.replaying"),
        ("nic_flaps", (2000, 2100), "precursor.flapping"),
    ],
)
def test_enough_events_in_time_are_a_sign_and_one_less_is_none(
    field: str, rows: range | tuple[int, ...], rule: str
) -> None:
    counts = np.zeros(MINUTES)
    counts[list(rows)] = 1
    assert rules(replace(gpu(), **{field: counts})) == [rule]
    (found,) = first_precursors(replace(gpu(), **{field: counts}))
    assert found.at == list(rows)[-1] * 60
    counts[rows[0]] = 0
    assert rules(replace(gpu(), **{field: counts})) == []


def test_events_that_are_far_apart_are_no_sign() -> None:
    flaps = np.zeros(MINUTES)
    flaps[[1000, 1181]] = 1
    assert rules(replace(gpu(), nic_flaps=flaps)) == []


def test_a_row_remapped_now_is_a_sign_and_one_remapped_long_ago_is_none() -> None:
    assert rules(replace(gpu(), remapped_rows=np.full(MINUTES, 3.0))) == []
    growing = np.full(MINUTES, 3.0)
    growing[2000:] = 4
    assert rules(replace(gpu(), remapped_rows=growing)) == ["precursor.remapped"]


def test_clocks_held_down_for_half_of_ten_minutes_are_a_sign() -> None:
    bits = np.zeros(MINUTES, np.int64)
    bits[2000:2004] = 0x40
    assert rules(replace(gpu(), throttle_bits=bits)) == []
    bits[2004] = 0x40
    assert rules(replace(gpu(), throttle_bits=bits)) == ["precursor.throttled"]
    assert rules(replace(gpu(), throttle_bits=bits // 0x40 * 0x04)) == []


@pytest.mark.parametrize(("minutes", "rise_c"), [(45, 9.0), (180, 10.0), (500, 12.0)])
def test_a_climb_of_the_temperature_is_a_sign_before_it_is_over(
    minutes: int, rise_c: float
) -> None:
    window = gpu()
    window.temp_c[-minutes:] += np.linspace(0, rise_c, minutes)
    (found,) = first_precursors(window)
    assert found.rule_id == "precursor.climbing"
    assert MINUTES - minutes < found.at / 60 < MINUTES - 5


@pytest.mark.parametrize("jump_c", [4.0, 8.0])
def test_a_jump_of_the_temperature_is_a_hot_room_and_no_sign(jump_c: float) -> None:
    window = gpu()
    window.temp_c[1800:2100] += jump_c
    assert rules(window) == []


def test_a_jump_on_top_of_a_slow_rise_is_no_sign() -> None:
    window = gpu()
    window.temp_c[1700:2000] += np.linspace(0, 2.8, 300)
    window.temp_c[2000:] += 7.0
    assert rules(window) == []


def test_more_power_is_no_sign() -> None:
    window = gpu()
    more_w = np.zeros(MINUTES)
    more_w[1800:] = np.linspace(0, 100, 600)
    hotter = replace(window, power_w=window.power_w + more_w, temp_c=window.temp_c + 0.055 * more_w)
    assert rules(hotter) == []


def test_a_sign_does_not_depend_on_rows_that_come_after_it() -> None:
    window = gpu()
    window.temp_c[-300:] += np.linspace(0, 12, 300)
    (whole,) = first_precursors(window)
    rows = int(whole.at / 60) + 1
    cut = replace(
        window,
        **{
            name: getattr(window, name)[:rows]
            for name in ("temp_c", "power_w", "ecc_corrected", "remapped_rows", "pcie_replays",
                         "nic_flaps", "throttle_bits")
        },
    )  # fmt: skip
    assert first_precursors(cut) == (whole,)
    assert find_precursors(cut) == (whole,)


def test_less_than_a_day_of_past_says_nothing_of_the_temperature() -> None:
    window = gpu(minutes=1300)
    window.temp_c[-300:] += np.linspace(0, 12, 300)
    assert rules(window) == []


def test_gaps_in_the_readings_are_no_sign() -> None:
    window = gpu()
    window.temp_c[1700:1760] = np.nan
    window.power_w[2000:2030] = np.nan
    assert rules(window) == []
