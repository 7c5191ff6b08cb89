"""What a store must do for leases, as a test class: real processes race, sleep, die and disagree.

A test module inherits from ``LeaseContract`` and provides a pytest fixture ``place``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloudshift_lab.core.wire import from_json, to_json
from cloudshift_lab.core.world import REAL_WORLD
from cloudshift_lab.sim.racers import Place, Promise, RacerSpec, violations
from cloudshift_lab.storage.log import LogRecord, RunLog

TTL_S = 2.0
_YEAR_S = 3.2e7
_LIMIT_S = 120.0
CLOCKS = ((0.0, 1.0), (_YEAR_S, 0.5), (-_YEAR_S, 2.0), (3_600.0, 1.0))
"""Calendar error, seconds, and rate of each racer's clock."""


@dataclass
class Contender:
    """One racer's process and all it has said."""

    name: str
    process: subprocess.Popen[bytes]
    promises: list[Promise] = field(default_factory=list)


class Race:
    """Several racers of one run."""

    def __init__(self, place: Place, run_id: str, *, is_careless: bool = False) -> None:
        self._place = place
        self._run_id = run_id
        self._is_careless = is_careless
        self._told = threading.Condition()
        self.contenders: list[Contender] = []

    def enter(self, name: str, clock: tuple[float, float] = (0.0, 1.0)) -> Contender:
        """Start a process; it is ready when this returns, and waits for ``go``."""
        spec = RacerSpec(
            self._place, self._run_id, name, TTL_S, *clock, is_careless=self._is_careless
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "cloudshift_lab.sim.racers"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        contender = Contender(name, process)
        self.contenders.append(contender)
        threading.Thread(target=self._listen, args=(contender,), daemon=True).start()
        self._say(contender, to_json(spec))
        return contender

    def go(self) -> None:
        """Let all begin at once, when all are ready."""
        self.wait(lambda: all(each.promises for each in self.contenders), "all are ready")
        for each in self.contenders:
            self._say(each, b"go")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until something was said that fulfils the condition."""
        with self._told:
            assert self._told.wait_for(condition, _LIMIT_S), f"not within {_LIMIT_S} s: {what}"

    def owner(self) -> Contender:
        """Who was last promised the run."""
        with self._told:
            newest = max(self.all("acquired"), key=lambda each: each.generation)
        return next(each for each in self.contenders if each.name == newest.name)

    def all(self, kind: str) -> list[Promise]:
        """Everything of one kind that was said."""
        return [p for each in self.contenders for p in each.promises if p.kind == kind]

    def new(self, kind: str, after: float) -> list[Promise]:
        """That of it which was asked for after a moment."""
        return [each for each in self.all(kind) if each.asked_at > after]

    def end(self) -> list[str]:
        """Stop all; what was wrong."""
        for each in self.contenders:
            if each.process.stdin is not None:
                each.process.stdin.close()
        for each in self.contenders:
            each.process.wait(_LIMIT_S)
        with self._told:
            promises = [p for each in self.contenders for p in each.promises]
        return violations(self.records(), promises)

    def records(self) -> tuple[LogRecord, ...]:
        """The log as it is."""
        return RunLog(self._place.open(), self._run_id).sync().records

    def clear(self) -> None:
        """End what is left of the processes."""
        for each in self.contenders:
            each.process.kill()
            each.process.wait()
            for pipe in (each.process.stdin, each.process.stdout):
                if pipe is not None:
                    pipe.close()

    def _say(self, contender: Contender, line: bytes) -> None:
        assert contender.process.stdin is not None
        contender.process.stdin.write(line + b"\n")
        contender.process.stdin.flush()

    def _listen(self, contender: Contender) -> None:
        assert contender.process.stdout is not None
        for line in contender.process.stdout:
            promise = from_json(line, Promise, what=f"what {contender.name} said")
            with self._told:
                contender.promises.append(promise)
                self._told.notify_all()


@contextmanager
def racing(place: Place, *, num: int = 3, is_careless: bool = False) -> Iterator[Race]:
    """A race of ``num`` processes with clocks that disagree; none of them outlives it."""
    race = Race(place, REAL_WORLD.new_id("run"), is_careless=is_careless)
    try:
        for number in range(num):
            race.enter(f"racer-{number}", CLOCKS[number % len(CLOCKS)])
        race.go()
        yield race
    finally:
        race.clear()


class LeaseContract:
    """One owner at a time, whoever sleeps, dies, or has a wrong clock."""

    def test_racers_that_sleep_die_and_disagree_about_time_leave_one_history(
        self, place: Place
    ) -> None:
        with racing(place) as race:
            race.wait(lambda: len(race.all("committed")) >= 3, "three commits")
            self.let_the_owner_sleep(race)
            for _ in range(2):
                self.kill_the_owner(race)
            assert race.end() == []

    def let_the_owner_sleep(self, race: Race) -> None:
        """Longer than its lease: when it wakes, its next append is fenced."""
        sleeper = race.owner()
        sleeper.process.send_signal(signal.SIGSTOP)
        at = REAL_WORLD.monotonic()
        race.wait(lambda: race.new("acquired", at), "somebody takes the run over")
        race.wait(lambda: race.new("committed", at), "and commits")
        sleeper.process.send_signal(signal.SIGCONT)
        race.wait(
            lambda: [p for p in sleeper.promises if p.kind == "fenced" and p.told_at > at],
            "the sleeper is fenced",
        )  # fmt: skip

    def kill_the_owner(self, race: Race) -> None:
        """Somebody else takes the run over and goes on."""
        race.owner().process.kill()
        at = REAL_WORLD.monotonic()
        race.wait(lambda: race.new("acquired", at), "a successor")
        race.wait(lambda: race.new("committed", at), "its commit")
