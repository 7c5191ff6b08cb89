"""The run log alone, under racing owners."""

from __future__ import annotations

from cloudshift_lab.sim.log_history import UnfencedLog, run_log_history


def test_no_history_of_racing_owners_breaks_the_log() -> None:
    histories = [run_log_history(seed) for seed in range(40)]
    assert [violation for history in histories for violation in history.violations] == []
    assert sum(history.handovers for history in histories) > 40
    assert sum(history.crashes for history in histories) > 20
    assert sum(history.injected_faults for history in histories) > 400


def test_what_a_sleeper_wrote_in_the_calm_is_progress_though_it_had_dated_it_before() -> None:
    assert run_log_history(7068).violations == []


def test_a_log_without_fencing_is_found_out() -> None:
    histories = [run_log_history(seed, UnfencedLog) for seed in range(10)]
    assert all(history.violations for history in histories)


def test_a_seed_lives_the_same_history_again() -> None:
    assert run_log_history(3).digest == run_log_history(3).digest
    assert run_log_history(3).digest != run_log_history(4).digest
