"""What judges of a run read from the store and leave there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloudshift_lab.telemetry.batch import encode
from cloudshift_lab.telemetry.findings import (
    found_row,
    gone_row,
    leave,
    newest_generation,
    newest_rows,
    past_findings,
    save_row,
    saves,
    sessions,
)
from cloudshift_lab.telemetry.schema import StepRow
from cloudshift_lab.telemetry.store import TelemetryStore

T0 = 1_764_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TelemetryStore]:
    opened = TelemetryStore(tmp_path / "telemetry.duckdb")
    yield opened
    opened.close()


def send(
    store: TelemetryStore, steps: range, *, begin: float, generation: int = 1, step_s: float = 1.0,
    ranks: int = 2, run_id: str = "run-1", **values: object,
) -> None:  # fmt: skip
    """Steps that begin at ``begin`` and follow each other."""
    rows = [
        StepRow(
            ts=begin + step_s * (number + 1), run_id=run_id, generation=generation, rank=rank,
            step=step, step_s=step_s, **values,
        )
        for number, step in enumerate(steps)
        for rank in range(ranks)
    ]  # fmt: skip
    store.ingest(f"{run_id}-{generation}-{begin}", "step", encode("step", rows))


def test_rows_come_back_as_arrays_oldest_first(store: TelemetryStore) -> None:
    send(store, range(1, 4), begin=T0, loss=2.5)
    send(store, range(1, 3), begin=T0, run_id="run-2")
    rows = newest_rows(store, "run-1", generation=1)
    assert rows.step.tolist() == [1, 1, 2, 2, 3, 3]
    assert rows.at.tolist() == [T0 + 1, T0 + 1, T0 + 2, T0 + 2, T0 + 3, T0 + 3]
    assert sorted(rows.rank[:2].tolist()) == [0, 1]
    assert rows.has_loss.all()
    assert set(rows.loss.tolist()) == {2.5}
    assert newest_rows(store, "run-1", generation=1, since=T0 + 2).step.tolist() == [3, 3]
    assert newest_generation(store, "run-1") == 1
    assert newest_generation(store, "run-9") is None


def test_what_was_not_reported_is_no_number(store: TelemetryStore) -> None:
    send(store, range(1, 3), begin=T0, ranks=1)
    rows = newest_rows(store, "run-1", generation=1)
    assert np.isnan(rows.loss).all()
    assert not rows.has_loss.any()
    assert len(newest_rows(store, "run-1", generation=7)) == 0


def test_sections_become_a_column_each(store: TelemetryStore) -> None:
    send(store, range(1, 3), begin=T0, ranks=1, sections={"forward": 0.25, "data": 0.5})
    send(store, range(3, 4), begin=T0 + 9, ranks=1, sections={"forward": 0.75})
    rows = newest_rows(store, "run-1", generation=1)
    assert rows.sections_s["forward"].tolist() == [0.25, 0.25, 0.75]
    assert np.isnan(rows.sections_s["data"][2])


def test_training_without_a_break_is_one_session(store: TelemetryStore) -> None:
    send(store, range(1, 101), begin=T0)
    (found,) = sessions(store, "run-1")
    assert (found.generation, found.first_step, found.last_step) == (1, 1, 100)
    assert (found.began, found.ended, found.kept_until) == (T0, T0 + 100, T0 + 100)
    assert (found.step_s, found.stalled_s) == (1.0, 0.0)
    assert sessions(store, "run-9") == ()


def test_steps_that_a_later_attempt_repeats_are_not_kept(store: TelemetryStore) -> None:
    send(store, range(1, 101), begin=T0)
    send(store, range(91, 121), begin=T0 + 150, generation=2)
    first, second = sessions(store, "run-1")
    assert (first.ended, first.kept_until) == (T0 + 100, T0 + 90)
    assert (second.began, second.kept_until) == (T0 + 150, T0 + 180)


def test_ranks_that_begin_again_in_their_attempt_begin_a_session(store: TelemetryStore) -> None:
    send(store, range(1, 51), begin=T0)
    send(store, range(50, 61), begin=T0 + 55)
    send(store, range(61, 71), begin=T0 + 70)  # no step twice, but time between
    found = sessions(store, "run-1")
    assert [(each.first_step, each.last_step) for each in found] == [(1, 50), (50, 60), (61, 70)]
    assert [each.kept_until for each in found] == [T0 + 49, T0 + 66, T0 + 80]


def test_time_of_steps_that_took_far_longer_is_told_apart(store: TelemetryStore) -> None:
    send(store, range(1, 51), begin=T0)
    send(store, range(51, 52), begin=T0 + 50, step_s=31.0)
    send(store, range(52, 101), begin=T0 + 81)
    (found,) = sessions(store, "run-1")
    assert found.stalled_s == pytest.approx(30.0)


def test_a_finding_is_kept_until_it_goes_and_one_that_stays_has_no_end(
    store: TelemetryStore,
) -> None:
    def found(at: float, key: str, words: str) -> None:
        row = found_row("run-1", 1, at, key=key, words=words, severity="error")
        leave(store, f"{key}-{at}", [row])

    found(T0, "hang.run/run/run", "It hangs.")
    found(T0 + 5, "hang.run/run/run", "Rank 2 hangs.")
    found(T0 + 6, "loss.nan/run/run", "It's no number.")
    leave(store, "gone", [gone_row("run-1", 1, T0 + 20, key="hang.run/run/run")])
    nan, hang = past_findings(store, "run-1")
    assert (hang.words, hang.since, hang.until) == ("Rank 2 hangs.", T0, T0 + 20)
    assert (nan.words, nan.until, nan.severity) == ("It's no number.", None, "error")
    assert past_findings(store, "run-2") == ()


def test_saves_are_counted_once_each_with_what_they_took(store: TelemetryStore) -> None:
    none = saves(store, "run-1")
    assert (none.num, none.lost_s, none.mean_s, none.every_s) == (0, 0.0, None, None)
    for number in range(3):
        row = save_row("run-1", 1, T0 + 60 * number, step=number, lost_s=0.25)
        leave(store, f"save-{number}", [row])
        leave(store, f"save-{number}", [row])
    found = saves(store, "run-1")
    assert (found.num, found.lost_s) == (3, 0.75)
    assert (found.mean_s, found.every_s) == (0.25, 60.0)


def test_a_name_with_a_quote_is_a_name(store: TelemetryStore) -> None:
    assert newest_generation(store, "x' OR 1=1 --") is None
