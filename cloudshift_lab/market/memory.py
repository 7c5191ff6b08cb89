"""What a job has seen of its market: how long machines last, and how often a region has any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloudshift_lab.market.places import Flags, Floats, Look, Places

_SPOT_HALF_LIFE_H = 3.0
_REGION_HALF_LIFE_H = 24.0
_PRICE_HALF_LIFE_H = 12.0
_PRIOR_H = 1.0
_REGION_PRIOR_H = 5.0
_ZONE_IS_UP = 0.65
_LONGEST_DOWN_H = 3.0
_SHORTEST_H = 1.0


class Memory:
    """Rates that forget; a Gamma prior stands for what was not seen yet.

    A spot machine lives as long as exposure over failures of its place says (half-life 3 h); a
    region is up while any of its places is.
    """

    def __init__(self, places: Places) -> None:
        names, self.region = np.unique(np.array(places.regions), return_inverse=True)
        self._inside = self.region[None, :] == np.arange(len(names))[:, None]
        self._prior_up = 1 - (1 - _ZONE_IS_UP) ** np.sqrt(self._inside.sum(axis=1))
        self._places = places
        self._zone = np.zeros((2, len(places)))
        self._brief = np.zeros((2, len(names)))
        self._lasting = np.zeros((5, len(names)))
        self._seen_h = 0.0
        self._last: tuple[Flags, Flags] | None = None
        self._low = np.nan

    def see(self, look: Look, tick_h: float, left_h: float = np.inf) -> None:
        """Take in what one tick shows; once per tick. ``left_h``: of the job's work."""
        up: Flags = look.is_up
        region_up: Flags = (up[None, :] & self._inside).any(axis=1)
        if self._last is not None:
            self._forget(tick_h)
            self._count(*self._last, up, region_up, tick_h)
            self._price(look, tick_h)
        self._last = up, region_up
        self._remember_low(look, tick_h, left_h)

    def life_h(self) -> Floats:
        """[places], how long spot machines there are expected to last, hours."""
        up_h, ends = self._zone
        return np.asarray((_PRIOR_H + up_h) / (1.0 + ends))

    def region_life_h(self) -> Floats:
        """[regions], how long a region is expected to have any machines, hours."""
        up_h, ends = self._brief
        return np.asarray((2 * _PRIOR_H + up_h) / (1.0 + ends))

    def region_up(self) -> Floats:
        """[regions], share of the time in which it had any machines."""
        seen_h = _REGION_PRIOR_H * self._prior_up + self._lasting[0]
        return np.asarray(seen_h / (_REGION_PRIOR_H + self._seen_h))

    def region_down_h(self) -> Floats:
        """[regions], how long it is without any, hours, three at most."""
        down = (_PRIOR_H + self._lasting[1]) / (1.0 + self._lasting[2])
        return np.asarray(np.minimum(down, _LONGEST_DOWN_H))

    def region_usd_h(self, look: Look) -> Floats:
        """[regions], mean of the cheapest price to be had, per hour at pace 1; or the one shown."""
        price_h, priced_h = self._lasting[3:]
        mean = price_h / np.maximum(priced_h, 1e-9)
        return np.where(priced_h > 0, mean, self._lowest(look, self._inside))

    def usual_low_usd_h(self, look: Look, left_h: float = np.inf) -> float:
        """The cheapest price that can usually be had, or now if that is lower; at pace 1.

        Egress to a place is part of its price, spread over the work that is left.
        """
        return min(self._low, self._now(look, left_h))

    def _forget(self, tick_h: float) -> None:
        brief = 0.5 ** (tick_h / _SPOT_HALF_LIFE_H)
        lasting = 0.5 ** (tick_h / _REGION_HALF_LIFE_H)
        self._zone *= brief
        self._brief *= brief
        self._lasting *= lasting
        self._seen_h = self._seen_h * lasting + tick_h

    def _count(
        self, was: Flags, region_was: Flags, up: Flags, region_up: Flags, tick_h: float
    ) -> None:
        self._zone += (was * tick_h, was & ~up)
        self._brief += (region_was * tick_h, region_was & ~region_up)
        self._lasting[:3] += (
            region_was * tick_h, ~region_was * tick_h, ~region_was & region_up,
        )  # fmt: skip

    def _price(self, look: Look, tick_h: float) -> None:
        lowest = self._lowest(look, self._inside & look.is_up[None, :])
        known = np.isfinite(lowest)
        self._lasting[3:] += (np.where(known, lowest, 0.0) * tick_h, known * tick_h)

    def _lowest(self, look: Look, which: npt.NDArray[np.bool_]) -> Floats:
        return np.asarray(np.where(which, look.spot_usd_h / self._places.pace, np.inf).min(axis=1))

    def _prices(self, look: Look, left_h: float) -> Floats:
        """[places], per hour at pace 1, carrying the checkpoint there included."""
        usd_h: Floats = look.spot_usd_h / self._places.pace
        if look.home is None:
            return usd_h
        return np.asarray(usd_h + self._places.carry_usd[look.home] / max(left_h, _SHORTEST_H))

    def _now(self, look: Look, left_h: float) -> float:
        return float(np.where(look.is_up, self._prices(look, left_h), np.inf).min())

    def _remember_low(self, look: Look, tick_h: float, left_h: float) -> None:
        """A mean of logarithms of the lowest price that could be had."""
        now = self._now(look, left_h)
        if np.isnan(self._low):
            self._low = now if np.isfinite(now) else float(self._prices(look, left_h).min())
        elif np.isfinite(now):
            kept = 0.5 ** (tick_h / _PRICE_HALF_LIFE_H)
            self._low = self._low**kept * now ** (1 - kept)
