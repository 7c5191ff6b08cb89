"""A simulated market is the same again for the same seed, and a possible one."""

from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.sim.market.weather import simulated_job


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_the_same_market_again(seed: int) -> None:
    one, again = simulated_job(seed), simulated_job(seed)
    assert np.array_equal(one.is_up, again.is_up)
    assert np.array_equal(one.spot_usd_h, again.spot_usd_h)
    assert one.task == again.task


@pytest.mark.parametrize("seed", range(5))
def test_spot_is_never_dearer_than_on_demand_and_machines_come_and_go(seed: int) -> None:
    each = simulated_job(seed)
    assert (each.spot_usd_h <= each.places.on_demand_usd_h).all()
    assert 0.05 < each.is_up.mean() < 1.0


def test_inside_a_region_a_checkpoint_moves_for_nothing() -> None:
    each = simulated_job(1, transfer_h=0.5)
    same = np.array(each.places.regions)[:, None] == np.array(each.places.regions)[None, :]
    assert (each.places.carry_usd[same] == 0).all()
    assert (each.places.carry_usd[~same] > 0).all()
    assert (each.transfer_h[~same] == 0.5).all()
