"""Answers about a run's health and goodput, put together from journal, agent and telemetry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from cloudshift_lab.conductor.formerly import modernised
from cloudshift_lab.conductor.healing import restarted_words
from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.conductor.moves import Move
from cloudshift_lab.conductor.records import AttemptStarted, RunEnded, RunEvent, RunResumed
from cloudshift_lab.conductor.shown import run_state
from cloudshift_lab.conductor.tending import RunTender
from cloudshift_lab.core.orders import STARTED_AGAIN, AgentStatus
from cloudshift_lab.core.plan import FINAL_PHASES
from cloudshift_lab.core.save_policy import assumed_mtbf_s
from cloudshift_lab.health.course import Course, Ending, Happened, course_of
from cloudshift_lab.health.expected import Shown, expect
from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.goodput import measured
from cloudshift_lab.health.live import AgentWord, LiveWatch, Looked
from cloudshift_lab.health.outcome import (
    find_budget,
    find_end,
    find_healing,
    find_notice,
    find_troubles,
)
from cloudshift_lab.health.policy import rule
from cloudshift_lab.health.report import Bygone, GoodputReport, HealthReport, Told
from cloudshift_lab.health.standing import Standing, stand
from cloudshift_lab.market.budget import budget_words
from cloudshift_lab.telemetry.findings import (
    Saves,
    Session,
    heals,
    newest_generation,
    newest_rows,
    past_findings,
    saves,
    sessions,
    summarised_since,
)
from cloudshift_lab.telemetry.store import TelemetryStore

_BYGONE = 10
_SUMMARY_S = 60.0
_HEAL = re.compile(rf"{STARTED_AGAIN} ([0-9]+)")
_EVENTS: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)


def agent_word(tender: RunTender, now: float) -> AgentWord:
    """What is known of a run beside its rows, for its detectors."""
    owner, status = tender.owner, tender.status
    is_own = status is not None and status.generation == owner.job.generation
    if status is None or not is_own:
        return AgentWord(now=now, is_training=False)
    return AgentWord(
        now=now,
        is_training=(
            run_state(tender) == "running" and status.state == "running"
            and status.first_step_at is not None
        ),
        step=status.step,
        said_at=status.at,
        silent_s=tender.side(owner).line.silent_for_s(),
        healed_after=None if (heal := newest_heal(status)) is None else heal.step,
    )  # fmt: skip


class Heal(NamedTuple):
    """Ranks that failed and began anew after ``step``, in their agent's words."""

    step: int
    words: str


def newest_heal(status: AgentStatus) -> Heal | None:
    """The last time an agent started its ranks again; None when it never has."""
    for words in reversed(status.warnings):
        match = _HEAL.search(words)
        if match is not None:
            return Heal(int(match[1]), words)
    return None


def facts_found(tender: RunTender, now: float) -> tuple[Finding, ...]:
    """Findings that need no statistics: how it ended, what troubles it, whose machine goes."""
    record, status, ended = tender.record, tender.status, tender.record.ended
    if ended is not None:
        if ended.state not in ("failed", "lost"):
            return ()
        lines = (ended.traceback or "").rstrip().splitlines()
        why = ended.error or "see its logs"
        last_line = lines[-1] if lines else ""
        return (
            find_end(ended.state, why, ended.at, rank=ended.error_rank, last_line=last_line),
        )  # fmt: skip
    warnings = () if status is None else status.warnings
    heal = None if status is None else newest_heal(status)
    others = [words for words in warnings if _HEAL.search(words) is None]
    found = find_troubles(tender.trouble, others, now)
    if heal is not None and status is not None and (status.step or 0) <= heal.step:
        found += (find_healing(heal.words, now),)
    budget = record.budget_micro_usd
    told = [each for each in record.alarms if each.budget_micro_usd == budget]
    if budget is not None and told:
        words = budget_words(budget, told[-1].spent_micro_usd, None)
        found += (find_budget(told[-1].percent, words, told[-1].at),)
    notice = record.notices.get(tender.owner.job.generation)
    if notice is not None and notice.deadline > now:
        found += (find_notice(notice.deadline - now, now, notice.words or "its machine goes"),)
    return found


def found_in_rows(tender: RunTender, watch: LiveWatch, word: AgentWord) -> tuple[Finding, ...]:
    """What the rows say; nothing of a run that has ended as it should."""
    ended = tender.record.ended
    return () if ended is not None and ended.state in ("finished", "stopped") else watch.look(word)


def watch_from_rows(telemetry: TelemetryStore, tender: RunTender) -> LiveWatch:
    """A watch that has seen the newest rows of a run."""
    watch = LiveWatch(tender.owner.job.placement.ranks_per_node)
    generation = newest_generation(telemetry, tender.run_id)
    if generation is not None:
        watch.take(newest_rows(telemetry, tender.run_id, generation=generation))
    return watch


def health_report(
    telemetry: TelemetryStore, tender: RunTender, watch: LiveWatch, now: float, *,
    standing: Sequence[Standing] | None = None, also: tuple[Looked, ...] = (),
) -> HealthReport:  # fmt: skip
    """A run's health now.

    Args:
        telemetry: Where earlier findings are.
        tender: The run.
        watch: That has seen its rows.
        now: Wall-clock seconds.
        standing: What is known to stand; None: nobody watches it, so this is the first look.
        also: What else was looked at.
    """
    word = agent_word(tender, now)
    if standing is None:
        found = (*facts_found(tender, now), *found_in_rows(tender, watch, word))
        standing = stand((), found, now).standing
    keys = {each.key for each in standing}
    past = past_findings(telemetry, tender.run_id)
    return HealthReport(
        run_id=tender.run_id,
        name=tender.record.spec.name,
        state=run_state(tender),
        as_of=now,
        standing=tuple(_told(standing, now)),
        bygone=tuple(
            Bygone(each.words, each.severity, each.since, each.until)
            for each in past
            if each.until is not None or each.key not in keys
        )[:_BYGONE],
        looked=(*watch.looked(word), *_restarts(tender), *also),
    )


def _restarts(tender: RunTender) -> tuple[Looked, ...]:
    """That a run went on by itself: by then its end is no finding any more."""
    num, words = len(tender.record.restarts), restarted_words(tender.record)
    if not num:
        return ()
    return (Looked("restarts", f"{num} by itself; the last time: {words}"),)


def _told(standing: Sequence[Standing], now: float) -> Iterable[Told]:
    since = {each.key: each.since for each in standing}
    for ruling in rule([each.finding for each in standing], (), now):
        yield Told(
            ruling.finding, since[ruling.finding.key], ruling.verdict, ruling.because
        )  # fmt: skip


def goodput_report(
    telemetry: TelemetryStore, tender: RunTender, folder: Path, now: float, *, is_still: bool
) -> GoodputReport:
    """What a run's time went into, and what is to be expected of it.

    Args:
        telemetry: Where its steps are.
        tender: The run.
        folder: Of the run, where its journal is.
        now: Wall-clock seconds.
        is_still: It stands still although it should train.

    Raises:
        UsageError: It has not trained yet.
        Corrupt: Its journal is damaged.
    """
    trained, saved, happened = _lived(telemetry, tender, folder, now, is_still=is_still)
    course = course_of(trained, happened)
    shown = _shown(tender, trained, saved)
    found, basis = (None, ()) if not trained else expect(course, shown)
    seconds: dict[str, float] = {}
    for span in course.spans:
        seconds[span.cause] = seconds.get(span.cause, 0.0) + span.end_s - span.begin_s
    return GoodputReport(
        run_id=tender.run_id,
        name=tender.record.spec.name,
        state=run_state(tender),
        began_at=happened.created_at,
        as_of=now,
        whole_s=sum(seconds.values()),
        seconds=seconds,
        measured=measured(
            course.spans, num_failures=len(course.failures), interval_s=shown.interval_s or 0.0
        ),
        num_failures=len(course.failures),
        num_healed=course.num_healed,
        lost_steps=course.lost_steps,
        num_saves=saved.num,
        expected=found,
        basis=basis,
    )


def course_so_far(
    telemetry: TelemetryStore, tender: RunTender, folder: Path, now: float
) -> Course | None:
    """What a run's time went into; None while no step of it is known.

    Args:
        telemetry: Where its steps are.
        tender: The run.
        folder: Of the run, where its journal is.
        now: Wall-clock seconds.
    """
    trained, _, happened = _lived(telemetry, tender, folder, now, is_still=False)
    return course_of(trained, happened) if trained else None


def _lived(
    telemetry: TelemetryStore, tender: RunTender, folder: Path, now: float, *, is_still: bool
) -> tuple[tuple[Session, ...], Saves, Happened]:
    """Its training, its saves, and what happened beside them since it is counted."""
    trained = sessions(telemetry, tender.run_id)
    since = _counted_since(telemetry, tender, trained)
    saved = saves(telemetry, tender.run_id, since=since)
    happened = _happened(telemetry, tender, folder, saved, now=now, is_still=is_still)
    return trained, saved, replace(happened, created_at=since)


def _counted_since(
    telemetry: TelemetryStore, tender: RunTender, trained: Sequence[Session]
) -> float:
    """When it was asked for; of a run whose first steps are kept in summary only, its others."""
    oldest = summarised_since(telemetry, tender.run_id)
    if trained and oldest is not None and oldest < trained[0].began - _SUMMARY_S:
        return trained[0].began
    return tender.record.created.at


def _happened(
    telemetry: TelemetryStore, tender: RunTender, folder: Path, saved: Saves, *, now: float,
    is_still: bool,
) -> Happened:  # fmt: skip
    events = [
        _EVENTS.decode(modernised(line))
        for line in Journal(folder / "journal.jsonl").replay()
    ]  # fmt: skip
    starts = [event.at for event in events if isinstance(event, AttemptStarted)]
    starts += [event.attempt.at for event in events if isinstance(event, RunResumed)]
    return Happened(
        created_at=tender.record.created.at,
        endings=tuple(Ending(each.at, each.state) for each in events if isinstance(each, RunEnded)),
        starts=tuple(sorted(starts)),
        heals=heals(telemetry, tender.run_id),
        moves=tuple(
            (began, until)
            for move in tuple(tender.moves.values())
            if (began := _began(move)) is not None
            for until in [_through(move, now)]
        ),
        now=now,
        is_over=tender.record.ended is not None,
        is_still=is_still,
        saving_s=saved.lost_s,
    )


def _began(move: Move) -> float | None:
    """When a move took its run out of training; None when it never got so far."""
    phases = [entry.at for entry in move.saga.timeline if entry.phase == "draining"]
    return phases[0] if phases else None


def _through(move: Move, now: float) -> float:
    entries = move.saga.timeline
    return entries[-1].at if entries[-1].phase in FINAL_PHASES else now


def _shown(tender: RunTender, trained: Sequence[Session], saved: Saves) -> Shown:
    told = None if tender.status is None else tender.status.saves.lost_s
    return Shown(
        step_s=trained[-1].step_s if trained else 0.0,
        save_s=saved.mean_s if told is None else told,
        interval_s=saved.every_s or None,
        assumed_mtbf_s=assumed_mtbf_s(tender.owner.job.placement),
    )
