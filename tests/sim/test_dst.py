"""Whole histories: the production code has no violation, every planted bug has some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudshift_lab.core.plan import FINAL_PHASES
from cloudshift_lab.sim.dst import main, run_histories
from cloudshift_lab.sim.move_history import run_move_history
from cloudshift_lab.sim.plants import PLANTS


def test_sixty_histories_keep_every_promise() -> None:
    report = run_histories(range(60), quiet=True)
    assert report.violations == []
    assert set(report.by_final_phase) <= {*FINAL_PHASES, "partial"}
    assert report.by_final_phase["source_retired"] >= 20
    assert report.by_final_phase["rolled_back"] >= 5
    assert report.crashes >= 60
    assert min(report.faults_by_kind[kind] for kind in ("before", "after", "late", "outage")) > 0


@pytest.mark.parametrize("seed", [51, 167, 381, 601, 660, 1283, 1409, 1583, 2483, 2539, 4346])
def test_a_history_that_once_showed_a_bug_stays_clean(seed: int) -> None:
    assert run_move_history(seed).violations == []


@pytest.mark.parametrize(
    ("seed", "event"),
    [
        (203, "near, so copied"),
        (226, "near, so copied"),
        (259, "ranks failed after the handover"),
        (383, "ranks failed after the handover"),
    ],
)
def test_what_is_rare_happens_and_harms_nothing(seed: int, event: str) -> None:
    history = run_move_history(seed)
    assert history.events[event] == 1
    assert history.violations == []


FOUND = [
    ("ref-before-chunks", range(3), "a committed step is whole"),
    ("no-fencing", range(40), "commit by the owner only"),
    ("cleanup-after-ambiguous", range(80, 120), "the outcome of a move is the log's"),
    ("gc-no-grace", range(40), "what a commit names stays"),
    ("gc-deaf-save", range(60, 90), "a committed step is whole"),
    ("replay-without-proof", range(3020, 3040), "only a proved state is handed over"),
    ("near-is-equal", range(324, 330), "only a proved state is handed over"),
    ("lift-limit-before-commit", range(3005, 3040), "only the owner runs"),
    ("resume-after-handover", range(85, 93), "only the owner runs"),
    ("spend-past-limit", range(40, 60), "money is never spent beyond the limit"),
]


@pytest.mark.parametrize(("bug", "seeds", "invariant"), FOUND)
def test_a_planted_bug_is_found(bug: str, seeds: range, invariant: str) -> None:
    reports = (run_histories([seed], bug=bug, quiet=True) for seed in seeds)
    assert any(invariant in report.by_invariant for report in reports)


def test_every_planted_bug_has_its_test() -> None:
    assert {bug for bug, _, _ in FOUND} == set(PLANTS)


def test_the_number_of_processes_does_not_change_what_happens() -> None:
    alone, shared = (run_histories(range(12), quiet=True, jobs=jobs) for jobs in (1, 2))
    assert alone.trace_digest == shared.trace_digest


def test_a_seed_replays_the_same_history() -> None:
    once, again = run_move_history(11), run_move_history(11)
    assert once.trace == again.trace
    assert once.digest == again.digest != run_move_history(12).digest


def test_a_seed_replays_under_another_hash_seed_in_another_process() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "cloudshift_lab.sim.dst", "--seeds", "6", "--json", "-"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        report = json.loads(done.stdout)
        assert report["python_hash_seed"] == hash_seed
        digests.add(report["trace_digest"])
    assert len(digests) == 1


def test_the_command_writes_its_report_and_tells_violations_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sim.json"
    assert main(["--seeds", "3", "--first", "5", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert (report["histories"], report["first_seed"]) == (3, 5)
    assert {"injected_faults", "crashes", "violations", "by_final_phase", "seconds"} <= set(report)
    assert "3 histories of moves" in capsys.readouterr().out
    assert main(["--seed", "1", "--plant", "ref-before-chunks", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["violations"][0]["seed"] == 1


def test_one_seed_can_be_traced(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    assert main(["--seed", "4", "--trace", str(path)]) == 0
    assert "phase provisioning" in path.read_text()


@pytest.mark.parametrize("argv", [["--plant", "nothing"], ["--seeds", "many"], ["--what"]])
def test_a_wrong_call_says_so(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert argv[-1] in said or "choose one of" in said
