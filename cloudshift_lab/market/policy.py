"""Where to run next: the expected cost to finish, compared over every place at every tick.

A place is worth what its machines train in the time they
are expected to last, and what its region may still offer after them, less what they cost, the
start and the egress.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudshift_lab.market.memory import Memory
from cloudshift_lab.market.places import Choice, Floats, Look, Places, Task
from cloudshift_lab.market.safety import SafetyNet
from cloudshift_lab.market.slack import Slack, hour_worth_usd, slack_of
from cloudshift_lab.market.tuning import Tuning


@dataclass(frozen=True, eq=False)
class Weighing:
    """What one look comes to, USD over the horizon.

    Args:
        value_usd_h: What an hour of training at pace 1 is worth now.
        worth_usd: [places], of taking spot machines there now; -inf where there are none.
        waiting_usd: Of waiting for machines where the checkpoint lies.
        current_usd: Of staying on the machines it runs on; -inf without any.
        on_demand: The way on demand that the net would take.
        on_demand_usd: Of taking it now; -inf where it runs on demand already.
        life_h: [places], how long spot machines there are expected to last.
    """

    value_usd_h: float
    worth_usd: Floats
    waiting_usd: float
    current_usd: float
    on_demand: Choice
    on_demand_usd: float
    life_h: Floats


class CostToFinish:
    """Takes the place with the most worth, under a net that keeps the deadline."""

    def __init__(
        self,
        places: Places,
        task: Task,
        *,
        net: SafetyNet | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self._places = places
        self._task = task
        self._net = net or SafetyNet.of(places, task)
        self._tuning = tuning or Tuning()
        self.memory = Memory(places)
        self._overhead_h = 0.0

    def choose(self, look: Look) -> Choice | None:
        """Remember the look, and say where to be for the next tick; None: wait."""
        self.memory.see(look, self._task.tick_h, self._left_h(look))
        choice = self._decide(look, self.weigh(look))
        if choice is not None:
            starting_h = (
                look.starting_h if choice == look.running else self._start_h(look)[choice.place]
            )
            self._overhead_h += min(float(starting_h), self._task.tick_h)
        return choice

    def weigh(self, look: Look) -> Weighing:
        """The worth of every choice; changes nothing."""
        value = self._value(look)
        life_h = np.minimum(self.memory.life_h(), self._tuning.longest_life_h)
        horizon_h = min(self._tuning.horizon_h, self._left_h(look))
        region_usd_h = self._region_worth(look, value)
        lasts_h = np.minimum(life_h, horizon_h)
        after_usd = (horizon_h - lasts_h) * region_usd_h[self.memory.region]
        gain_usd_h = value * self._places.pace - np.where(look.is_up, look.spot_usd_h, np.inf)
        worth = (
            lasts_h * gain_usd_h
            + after_usd
            - value * self._places.pace * self._start_h(look)
            - self._net.carry_usd(look.home)
        )
        current = self._current(look, value, lasts_h * gain_usd_h + after_usd, horizon_h)
        if look.running is not None and look.running.mode == "spot":
            worth[look.running.place] = -np.inf
        waiting = self._waiting(look, horizon_h, region_usd_h)
        fallback = self._net.fallback(look)
        return Weighing(
            value, worth, waiting, current, fallback,
            self._on_demand(look, fallback, value, horizon_h), life_h,
        )  # fmt: skip

    def _decide(self, look: Look, weighing: Weighing) -> Choice | None:
        best = int(np.argmax(weighing.worth_usd))
        staying = max(weighing.current_usd, weighing.waiting_usd)
        if look.running is not None:
            staying += self._tuning.hysteresis * weighing.value_usd_h
        is_better = weighing.worth_usd[best] > staying and bool(self._net.may_start(look)[best])
        if weighing.on_demand_usd > (weighing.worth_usd[best] if is_better else staying):
            return weighing.on_demand
        return Choice(best, "spot") if is_better else self._stay(look, weighing)

    def _stay(self, look: Look, weighing: Weighing) -> Choice | None:
        """Go on as it is, or wait, as far as the net allows either."""
        running = look.running
        may_wait = self._net.may_wait(look)
        prefers_to_run = weighing.current_usd >= weighing.waiting_usd or not may_wait
        if running is None or not prefers_to_run:
            return None if may_wait else weighing.on_demand
        if running.mode == "on-demand" or self._net.may_stay(look):
            return running
        return None if may_wait else weighing.on_demand

    def _value(self, look: Look) -> float:
        dearest = float((self._places.on_demand_usd_h / self._places.pace).min())
        usual = self.memory.usual_low_usd_h(look, self._left_h(look))
        return hour_worth_usd(self._slack(look), self._tuning, usual, dearest)

    def _slack(self, look: Look) -> Slack:
        return slack_of(self._task, self._tuning, look, self._overhead_h)

    def _left_h(self, look: Look) -> float:
        return max(self._task.work_h - look.done_h, 1e-6)

    def _region_worth(self, look: Look, value: float) -> Floats:
        """[regions], of an hour there, whether or not it has machines at that moment."""
        risk = self._tuning.region_risk * self._task.start_h / self.memory.region_life_h()
        gain = value * (1 - np.minimum(risk, 0.9)) - self.memory.region_usd_h(look)
        return np.asarray(self.memory.region_up() * np.maximum(gain, 0.0))

    def _waiting(self, look: Look, horizon_h: float, region_usd_h: Floats) -> float:
        if look.home is None:
            return 0.0
        region = self.memory.region[look.home]
        return float(
            max(horizon_h - self.memory.region_down_h()[region], 0.0) * region_usd_h[region]
        )

    def _current(self, look: Look, value: float, usd: Floats, horizon_h: float) -> float:
        if look.running is None:
            return -np.inf
        place, pace = look.running.place, self._places.pace[look.running.place]
        if look.running.mode == "on-demand":
            return float(horizon_h * (value * pace - self._places.on_demand_usd_h[place]))
        return float(usd[place] - value * pace * look.starting_h)

    def _on_demand(self, look: Look, choice: Choice, value: float, horizon_h: float) -> float:
        if choice == look.running:
            return -np.inf
        place = choice.place
        hour_usd = value * self._places.pace[place]
        gain_usd_h = hour_usd - self._places.on_demand_usd_h[place]
        start_usd = hour_usd * self._start_h(look)[place]
        return float(horizon_h * gain_usd_h - start_usd - self._net.carry_usd(look.home)[place])

    def _start_h(self, look: Look) -> Floats:
        """[places]; what runs is copied while it trains, what was preempted must wait for it."""
        carry_h = self._net.wait_h(look.home) if look.running is None else 0.0
        return self._task.start_h + carry_h * np.ones(len(self._places))
