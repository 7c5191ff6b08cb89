"""A run's health and goodput: what stands against it with evidence, and what its time went into."""

from __future__ import annotations

from collections.abc import Iterable

from cloudshift_lab.core.money import format_duration
from cloudshift_lab.health.finding import Evidence, Finding
from cloudshift_lab.health.goodput import UNPLANNED
from cloudshift_lab.health.report import Bygone, GoodputReport, HealthReport, Told
from cloudshift_lab.lab.render.figures import ago, clock
from cloudshift_lab.lab.render.sheet import Sheet, Table

EVIDENCE_HEAD = ("seen", "value", "limit", "when")
TIME_HEAD = ("time went into", "", "share", "expected")
_SHOWN_EVIDENCE = 6
_MARKS = {"critical": "✗", "warning": "!", "watch": "·", "info": "·"}
_VERDICTS = {
    "act": "acted on", "would act": "may be acted on without asking", "ask": "asks you",
    "hold": "being acted on", "note": "nothing has to be done",
}  # fmt: skip
_ORDER = (
    "training", "starting", "saving", "planned moves", "slow ranks", "idle", "waiting for nodes",
    "lost work", "detecting", "restarting", "saving after a failure",
)  # fmt: skip


def health_sheet(report: HealthReport, prompt: str) -> Sheet:
    """What stands against a run, each with evidence and what to do; then what was looked at."""
    num = len(report.standing)
    count = "nothing is found" if not num else "1 finding" if num == 1 else f"{num} findings"
    return Sheet(
        "health",
        f"health of {report.name} ({report.state}): {count}, as of {clock(report.as_of)}",
        (
            *(_finding(told, report.as_of) for told in report.standing),
            Table(
                ("looked at", "seen"), [(each.what, each.seen) for each in report.looked],
                title="What was looked at",
            ),
            Table(
                ("when", "how long", "what"), [_bygone(each, report) for each in report.bygone],
                title="Before",
            ),
        ),
        following=tuple(_following(report, prompt)),
    )  # fmt: skip


def _finding(told: Told, now: float) -> Table:
    finding = told.finding
    sure = "proven" if finding.deterministic else f"{finding.confidence:.0%} sure"
    title = (
        f"{_MARKS[finding.severity]} {finding.words} ({finding.severity}, {sure}, seen since "
        f"{ago(told.since, now)}; {_done(finding)}: {_VERDICTS[told.verdict]}, {told.because})"
    )
    rows = [_evidence(each) for each in finding.evidence[:_SHOWN_EVIDENCE]]
    return Table(EVIDENCE_HEAD, rows, frozenset({1, 2}), title=title)


def _done(finding: Finding) -> str:
    return "no action" if finding.action == "none" else finding.action


def _evidence(row: Evidence) -> tuple[str, ...]:
    return row.what, _value(row.value, row.unit), _value(row.limit, row.unit), _when(row.at)


def _value(value: float | str | None, unit: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:,.6g} {unit}".rstrip()


def _when(at: float | None) -> str:
    """A step, or a time: no run has as many steps as seconds have passed since 1970."""
    if at is None:
        return ""
    return clock(at) if at > 1e9 else f"step {at:.0f}"


def _bygone(each: Bygone, report: HealthReport) -> tuple[str, ...]:
    lasted = "" if each.until is None else format_duration(each.until - each.since)
    return ago(each.since, report.as_of), lasted, each.words


def _following(report: HealthReport, prompt: str) -> Iterable[str]:
    actions = {told.finding.action for told in report.standing}
    rules = {told.finding.rule_id for told in report.standing}
    if report.state in ("failed", "lost", "stopped"):
        yield f"{prompt} resume {report.name}"
    elif actions & {"drain the node", "replace the node"}:
        yield f"{prompt} migrate {report.name} --to TARGET"
    elif actions & {"restart the run", "roll back"}:
        yield f"{prompt} stop {report.name}"
    if any(rule.startswith(("rank.", "run.", "hang.")) for rule in rules):
        yield f"{prompt} logs {report.name}"
    yield f"{prompt} goodput {report.name}"


def goodput_sheet(report: GoodputReport, prompt: str) -> Sheet:
    """What a run's time went into, cause by cause, beside what is to be expected."""
    found, expected = report.measured, report.expected
    return Sheet(
        "goodput",
        f"goodput of {report.name} ({report.state}): {found.share:.1%} of "
        f"{format_duration(report.whole_s)} trained and was kept",
        (Table(TIME_HEAD, list(_times(report)), frozenset({1, 2, 3})),),
        notes=(*_counts(report), *_forecast(report)),
        following=(f"{prompt} health {report.name}",),
        troubles=() if expected is not None else ("no forecast: it has not trained yet",),
    )


def _times(report: GoodputReport) -> Iterable[tuple[str, ...]]:
    expected = {} if report.expected is None else report.expected.by_cause
    for cause in _ORDER:
        seconds, share = report.seconds.get(cause, 0.0), expected.get(cause, 0.0)
        if seconds <= 0 and share <= 0:
            continue
        name = f"{cause} (unplanned)" if cause in UNPLANNED else cause
        yield (
            name, format_duration(seconds) if seconds > 0 else "-",
            f"{report.measured.by_cause.get(cause, 0.0):.2%}", f"{share:.2%}" if share > 0 else "-",
        )  # fmt: skip


def _counts(report: GoodputReport) -> Iterable[str]:
    failures = f"{report.num_failures} failure" + ("" if report.num_failures == 1 else "s")
    if report.num_failures:
        failures += f", {format_duration(report.measured.unplanned_s)} down and lost for each"
    if report.num_healed:
        failures += f", {report.num_healed} healed in place"
    steps = "no step was" if not report.lost_steps else f"{report.lost_steps} steps were"
    yield f"{failures}; {steps} computed twice"
    if report.num_saves:
        yield f"{report.num_saves} saves were counted"
    else:
        yield "no save was seen to be committed, so none is counted"
    yield "counted until its end, or its newest step: what comes after that is not known yet"


def _forecast(report: GoodputReport) -> Iterable[str]:
    if report.expected is None:
        return
    yield f"to be expected in the long run: {report.expected.share:.2%} of the time trains, from"
    yield from (f"  {line}" for line in report.basis)
