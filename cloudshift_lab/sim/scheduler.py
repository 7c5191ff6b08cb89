"""Deterministic actors: exactly one runs at a time, on a virtual clock, ordered by a seed.

Production code runs unchanged in actors. An actor gives the baton away only at a yield point:
``pause`` (every ``World.sleep`` and every operation of a simulated store). Whoever gives it away
picks the next by virtual time, so an order of events is a pure function of the seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from cloudshift_lab.core.errors import NotFound

try:
    from greenlet import getcurrent, greenlet
except ModuleNotFoundError as error:
    raise NotFound(
        "the simulation needs more packages; run: pip install 'cloudshift-lab[demo]'"
    ) from error

EPOCH_S = 1_700_000_000.0


class ActorCrashed(BaseException):
    """Raised in a crashed actor at its yield point; no handler of errors may stop it."""


def derived_seed(root: int, *names: str | int) -> int:
    """An independent seed for a named part; the same in every process and version."""
    text = "/".join(str(part) for part in (root, *names))
    return int.from_bytes(blake3(text.encode()).digest(length=8), "big")


def derived_random(root: int, *names: str | int) -> random.Random:
    """A generator for a named part, independent of all others."""
    return random.Random(derived_seed(root, *names))


@dataclass(eq=False)
class Actor:
    """One simulated process."""

    name: str
    body: Callable[[], None]
    crashed: bool = False
    done: bool = False
    frozen_s: float = 0.0
    ticket: int = 0
    _stack: greenlet | None = None

    def begin(self, live: Callable[[Actor], None], hub: greenlet) -> greenlet:
        """Where it runs, from its first turn on; ``hub`` runs when it is done."""
        if self._stack is None:
            self._stack = greenlet(lambda: live(self), hub)
        return self._stack


class _Entry(NamedTuple):
    """Compared by ``at``, ``tie`` and ``seq`` alone, for no two have the same ``seq``."""

    at: float
    tie: float
    seq: int
    wake: Actor | Callable[[], object]
    ticket: int


class Scheduler:
    """The virtual clock and the baton.

    Args:
        seed: Breaks ties between actors that wake at the same time.
        horizon_s: Virtual seconds after which the simulation ends whatever is still going on.
    """

    def __init__(self, seed: int, *, horizon_s: float = 3_600.0) -> None:
        self.seed = seed
        self.clock_s = 0.0
        self.switches = 0
        self._horizon_s = horizon_s
        self._random = derived_random(seed, "scheduler")
        self._heap: list[_Entry] = []
        self._seq = 0
        self._current: Actor | None = None
        self._stopped = False
        self._error: BaseException | None = None
        self._hub: greenlet | None = None
        self._trace = blake3()
        self.lines: list[str] = []

    @property
    def current(self) -> str:
        """Name of the actor that holds the baton; ``-`` between actors."""
        return self._current.name if self._current is not None else "-"

    def trace(self, line: str) -> None:
        """Note what happened; the digest over all lines tells two histories apart."""
        text = f"{self.clock_s:.6f} {self.current} {line}"
        self._trace.update(text.encode())
        self.lines.append(text)

    def digest(self) -> str:
        """blake3 of the whole trace so far."""
        return self._trace.hexdigest()

    def spawn(self, name: str, body: Callable[[], None], *, after_s: float = 0.0) -> Actor:
        """Start an actor; it first runs ``after_s`` virtual seconds from now."""
        actor = Actor(name=name, body=body)
        self._push(after_s, actor)
        return actor

    def call_later(self, after_s: float, action: Callable[[], object]) -> None:
        """Run a short action between actors; it must not pause."""
        self._push(after_s, action)

    def pause(self, seconds: float) -> None:
        """Yield point of the current actor: others may run until virtual time has passed.

        Raises:
            ActorCrashed: The actor was killed meanwhile, or the simulation is over.
        """
        actor = self._current
        assert actor is not None, "only an actor may pause"
        if actor.crashed or self._stopped:
            raise ActorCrashed(actor.name)
        self._push(max(0.0, seconds) + actor.frozen_s, actor)
        actor.frozen_s = 0.0
        self._hand_on(actor)
        if actor.crashed or self._stopped:
            raise ActorCrashed(actor.name)

    def crash(self, actor: Actor) -> None:
        """Kill an actor at its next (or present) yield point, now."""
        if actor.done or actor.crashed:
            return
        actor.crashed = True
        self.trace(f"crash {actor.name}")
        if actor is not self._current:
            actor.ticket += 1  # what it was waiting for no longer wakes it
            self._push(0.0, actor)

    def freeze(self, actor: Actor, seconds: float) -> None:
        """Let an actor sleep through its next yield point, as a stopped process does."""
        if not actor.done:
            self.trace(f"freeze {actor.name}")
            actor.frozen_s += seconds

    def stop(self) -> None:
        """End the simulation: every actor leaves at its next yield point."""
        self._stopped = True

    def run(self) -> None:
        """Run until every actor is done, ``stop`` is called or the horizon is reached.

        Raises:
            BaseException: Whatever an actor or an action did not handle, the first one.
        """
        self._hub = getcurrent()
        while (taker := self._next()) is not None:
            self._give_to(taker)
        if self._error is not None:
            raise self._error

    def _push(self, after_s: float, wake: Actor | Callable[[], object]) -> None:
        self._seq += 1
        ticket = wake.ticket if isinstance(wake, Actor) else 0
        entry = _Entry(self.clock_s + after_s, self._random.random(), self._seq, wake, ticket)
        heapq.heappush(self._heap, entry)

    def _hand_on(self, giver: Actor) -> None:
        """Let the next actor in time run, until it is the giver's turn again."""
        taker = self._next()
        if taker is giver:
            self._current = giver
        elif taker is not None:
            self._give_to(taker)
        else:
            assert self._hub is not None, "an actor runs within run()"
            self._hub.switch()

    def _give_to(self, taker: Actor) -> None:
        assert self._hub is not None, "actors run within run()"
        self._current = taker
        self.switches += 1
        taker.begin(self._live, self._hub).switch()

    def _next(self) -> Actor | None:
        """The next actor to run, with the clock moved on; None when the simulation is over."""
        self._current = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            actor = entry.wake if isinstance(entry.wake, Actor) else None
            if actor is not None and (actor.done or entry.ticket != actor.ticket):
                continue
            if not self._stopped:
                self.clock_s = max(self.clock_s, entry.at)
                self._stopped = self.clock_s > self._horizon_s
            if actor is not None:
                return actor
            if not self._stopped:
                self._act(entry.wake)
        return None

    def _act(self, action: Actor | Callable[[], object]) -> None:
        assert not isinstance(action, Actor)
        try:
            action()
        except Exception as error:  # noqa: BLE001 - kept for run(), which raises it
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        self._error = self._error or error
        self._stopped = True

    def _live(self, actor: Actor) -> None:
        try:
            if not (actor.crashed or self._stopped):
                actor.body()
        except ActorCrashed:
            pass
        except BaseException as error:  # noqa: BLE001 - kept for run(), which raises it
            self._end_with(error)
        actor.done = True


class SimWorld:
    """A ``core.world.World`` for one actor: its own clock error, its own randomness.

    Args:
        scheduler: Whose clock.
        name: Seeds the randomness; the same name gives the same ids.
        wall_error_s: How wrong this machine's wall clock is, seconds.
    """

    def __init__(self, scheduler: Scheduler, name: str, *, wall_error_s: float = 0.0) -> None:
        self._scheduler = scheduler
        self._wall_error_s = wall_error_s
        self._random = derived_random(scheduler.seed, "world", name)

    def now(self) -> float:
        return EPOCH_S + self._scheduler.clock_s + self._wall_error_s

    def monotonic(self) -> float:
        return self._scheduler.clock_s

    def sleep(self, seconds: float) -> None:
        self._scheduler.pause(seconds)

    def random(self) -> float:
        return self._random.random()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{self._random.getrandbits(48):012x}"
