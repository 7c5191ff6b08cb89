"""Crashes and long pauses of actors at their yield points, drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloudshift_lab.sim.scheduler import Actor, Scheduler, derived_random


@dataclass(frozen=True)
class MischiefRates:
    """Probabilities per yield point; ``freeze_s`` is the longest pause, virtual seconds."""

    crash: float = 0.002
    freeze: float = 0.003
    freeze_s: float = 120.0
    calm_at_s: float = 300.0


PEACE = MischiefRates(crash=0.0, freeze=0.0)


class Mischief:
    """Kills or stops whoever yields, and starts the killed again.

    Args:
        scheduler: Whose actors.
        rates: How often.
    """

    def __init__(self, scheduler: Scheduler, rates: MischiefRates) -> None:
        self._scheduler = scheduler
        self._rates = rates
        self._random = derived_random(scheduler.seed, "mischief")
        self._actors: dict[str, tuple[Actor, Callable[[], None], MischiefRates]] = {}
        self._is_over = False
        self.freezes = 0
        self.crashes = 0

    def watch_over(
        self, actor: Actor, on_crash: Callable[[], None], rates: MischiefRates | None = None
    ) -> None:
        """From now on the actor may be hurt; ``on_crash`` runs in the moment it is killed."""
        if not self._is_over:
            self._actors[actor.name] = (actor, on_crash, rates or self._rates)

    def end(self) -> None:
        """From now on nobody is hurt, whoever begins later neither."""
        self._is_over = True
        self._actors.clear()

    def yielded(self, _operation: str) -> None:
        """Give to ``FaultyStore``: decide the fate of the actor that has just yielded."""
        known = self._actors.get(self._scheduler.current)
        if known is None or self._scheduler.clock_s >= known[2].calm_at_s:
            return
        actor, on_crash, rates = known
        draw = self._random.random()
        if draw < rates.crash:
            del self._actors[actor.name]
            self.crashes += 1
            self._scheduler.crash(actor)
            on_crash()
        elif draw < rates.crash + rates.freeze:
            self.freezes += 1
            self._scheduler.freeze(actor, self._random.random() * rates.freeze_s)
