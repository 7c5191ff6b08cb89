"""Findings over time: raised once, kept through short silence, gone after a longer one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cloudshift_lab.health.finding import SEVERITY_SCORE, Finding

QUIET_S = 15.0
"""A finding that was not made again for so long is gone."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A finding that stands against a run.

    Args:
        finding: As it was made last.
        since: When it was made first, wall-clock seconds.
        seen_at: When it was made last.
    """

    finding: Finding
    since: float
    seen_at: float

    @property
    def key(self) -> str:
        return self.finding.key


class Change(msgspec.Struct, frozen=True):
    """What a look changed: ``raised`` is new or graver than it was, ``gone`` stands no longer."""

    standing: tuple[Standing, ...]
    raised: tuple[Standing, ...]
    gone: tuple[Standing, ...]


def stand(
    before: Iterable[Standing], found: Sequence[Finding], now: float, *, quiet_s: float = QUIET_S
) -> Change:
    """What stands after a look.

    Detectors ask for enough evidence themselves, so a finding is raised at once. It goes only
    after it was not made for ``quiet_s``, so that one that flickers is one finding and not many.

    Args:
        before: What stood.
        found: Everything the look found.
        now: Wall-clock seconds.
        quiet_s: How long silence lasts before a finding is gone.
    """
    kept = {each.key: each for each in before}
    raised = []
    for finding in found:
        known = kept.get(finding.key)
        since = now if known is None else known.since
        kept[finding.key] = Standing(finding=finding, since=since, seen_at=now)
        if known is None or _is_graver(finding, known.finding):
            raised.append(kept[finding.key])
    gone = tuple(each for each in kept.values() if now - each.seen_at >= quiet_s)
    standing = tuple(each for each in kept.values() if now - each.seen_at < quiet_s)
    return Change(_ordered(standing), tuple(raised), gone)


def _is_graver(finding: Finding, known: Finding) -> bool:
    return _weight(finding) > _weight(known)


def _weight(finding: Finding) -> tuple[float, bool]:
    return SEVERITY_SCORE[finding.severity], finding.deterministic


def _ordered(standing: Iterable[Standing]) -> tuple[Standing, ...]:
    """Gravest first, then oldest."""
    return tuple(
        sorted(
            standing,
            key=lambda it: (-SEVERITY_SCORE[it.finding.severity], not it.finding.deterministic,
                            it.since, it.key),
        )
    )  # fmt: skip
