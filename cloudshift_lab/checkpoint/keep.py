"""Which committed steps to keep, as policies; pure, the forgetting and collecting are others'."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.storage.log import LogRecord

DEFAULT_KEEP = "5"
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER = re.compile(r"[0-9]{1,12}")
_EVERY = re.compile(r"(?P<number>[0-9]{1,12})(?P<unit>[smhd]?)")
_HOW = "give 'all', or a number of newest steps, and 'every=1000', 'every=2h' or 'best=3' after it"


class KeepPolicy(Protocol):
    """Chooses steps to keep among those that exist."""

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        """Steps to keep.

        Args:
            commits: What exists, oldest first.
            metrics: Per step the figure that ``KeepBest`` looks at; smaller is better.
        """


@dataclass(frozen=True)
class KeepAll:
    """Every step."""

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        del metrics
        return _steps(commits)


@dataclass(frozen=True)
class KeepLatest:
    """The ``num_steps`` newest."""

    num_steps: int

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        del metrics
        return frozenset(sorted(_steps(commits))[-self.num_steps :])


@dataclass(frozen=True)
class KeepEvery:
    """The first commit at or after every multiple of ``steps``: saves need not hit one exactly."""

    steps: int

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        del metrics
        first: dict[int, int] = {}
        for step in sorted(_steps(commits)):
            first.setdefault(step // self.steps, step)
        return frozenset(first.values())


@dataclass(frozen=True)
class KeepEverySeconds:
    """The first commit of every ``seconds`` of wall-clock time."""

    seconds: float

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        del metrics
        first: dict[int, int] = {}
        for commit in commits:
            assert commit.step is not None, "a commit names its step"
            first.setdefault(int(commit.at // self.seconds), commit.step)
        return frozenset(first.values())


@dataclass(frozen=True)
class KeepBest:
    """The ``num_steps`` with the smallest metric; a step without one is never best."""

    num_steps: int

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        known = [
            step for step in _steps(commits) if metrics.get(step, float("nan")) == metrics.get(step)
        ]
        return frozenset(sorted(known, key=lambda step: (metrics[step], -step))[: self.num_steps])


@dataclass(frozen=True)
class AnyOf:
    """What any of the policies keeps."""

    policies: tuple[KeepPolicy, ...]

    def kept(self, commits: Sequence[LogRecord], metrics: Mapping[int, float]) -> frozenset[int]:
        return frozenset().union(*(policy.kept(commits, metrics) for policy in self.policies))


def steps_to_forget(
    commits: Sequence[LogRecord], policy: KeepPolicy, *, pinned: Collection[int] = (),
    metrics: Mapping[int, float] | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """Steps that ``RunLog.forget`` is to be given, ascending. Never the newest, never a pinned one.

    Args:
        commits: ``LogState.commits``: what exists, oldest first.
        policy: What to keep.
        pinned: Steps of this run that a pin holds (``gc.list_pins``).
        metrics: Per step its figure, smaller is better, for ``KeepBest``.
    """
    if not commits:
        return ()
    kept = policy.kept(commits, metrics or {}) | {commits[-1].step} | set(pinned)
    return tuple(sorted(_steps(commits) - kept))


def goes_by_metric(policy: KeepPolicy) -> bool:
    """Whether a policy needs to know how good each step was."""
    parts = policy.policies if isinstance(policy, AnyOf) else (policy,)
    return any(isinstance(part, KeepBest) for part in parts)


def parse_keep(text: str) -> KeepPolicy:
    """Read a policy: ``5`` (the newest five), ``5,every=1000``, ``3,every=2h,best=2``, ``all``.

    Raises:
        UsageError: Something else; says what it may be.
    """
    policies = [_parse_part(part.strip(), text) for part in text.split(",")]
    return policies[0] if len(policies) == 1 else AnyOf(tuple(policies))


def _parse_part(part: str, text: str) -> KeepPolicy:
    name, has_value, value = part.partition("=")
    if part == "all":
        return KeepAll()
    if not has_value and _NUMBER.fullmatch(name) and int(name) > 0:
        return KeepLatest(int(name))
    every = _EVERY.fullmatch(value)
    if name == "every" and every is not None and int(every["number"]) > 0:
        number = int(every["number"])
        unit = every["unit"]
        return KeepEverySeconds(number * _SECONDS[unit]) if unit else KeepEvery(number)
    if name == "best" and _NUMBER.fullmatch(value) and int(value) > 0:
        return KeepBest(int(value))
    raise UsageError(f"'{text[:80]}' does not say which steps to keep; {_HOW}")


def _steps(commits: Sequence[LogRecord]) -> frozenset[int]:
    return frozenset(commit.step for commit in commits if commit.step is not None)
