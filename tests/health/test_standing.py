from __future__ import annotations

import msgspec

from cloudshift_lab.health.finding import Finding, Subject
from cloudshift_lab.health.standing import QUIET_S, stand


def finding(rule_id: str = "hang.run", **changes: object) -> Finding:
    made = Finding(
        rule_id=rule_id, subject=Subject("run", "run"), severity="warning", evidence=(),
        action="watch", confidence=0.9, deterministic=False, words="It hangs.", at=1.0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_a_finding_is_raised_once_however_often_it_is_made() -> None:
    first = stand((), [finding()], 100.0)
    again = stand(first.standing, [finding()], 101.0)
    assert [each.since for each in first.raised] == [100.0]
    assert again.raised == ()
    assert [(each.since, each.seen_at) for each in again.standing] == [(100.0, 101.0)]


def test_one_that_flickers_stays_and_one_that_stays_away_goes() -> None:
    first = stand((), [finding()], 100.0)
    flickering = stand(first.standing, [], 100.0 + QUIET_S - 1)
    assert (len(flickering.standing), flickering.gone) == (1, ())
    gone = stand(flickering.standing, [], 100.0 + QUIET_S)
    assert gone.standing == ()
    assert [each.key for each in gone.gone] == ["hang.run/run/run"]


def test_one_that_becomes_graver_or_proven_is_raised_again_since_it_began() -> None:
    first = stand((), [finding()], 100.0)
    graver = stand(first.standing, [finding(severity="critical")], 101.0)
    assert [(each.since, each.finding.severity) for each in graver.raised] == [(100.0, "critical")]
    proven = stand(graver.standing, [finding(severity="critical", deterministic=True)], 102.0)
    assert len(proven.raised) == 1


def test_the_gravest_comes_first() -> None:
    found = [finding("a"), finding("b", severity="critical"), finding("c", severity="watch")]
    assert [each.finding.rule_id for each in stand((), found, 1.0).standing] == ["b", "a", "c"]
