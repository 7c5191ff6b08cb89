"""The demo's, the simulation's and the chaos run's own files stand behind the README's figures."""

import msgspec
import pytest

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.sim.bench.proofs import read_result
from cloudshift_lab.sim.bench.rows import Machine
from cloudshift_lab.sim.chaos.report import Report as ChaosReport
from cloudshift_lab.sim.dst import run_histories

MACHINE = Machine("A CPU", 2, 2**30, 0.1, "Linux")
ORIGIN = {"command": "c", "date": "2026-01-01 10:00 UTC", "commit": "abc123", "machine": MACHINE}
SUMMARY = {
    "steps": 200, "lost_steps": 0, "loss_max_abs_diff": 0.0, "final_weights_equal": True,
    "bytes_state": 100, "bytes_moved": 80, "pause_s": 3.0, "still_s": 0.5, "seconds": 60.0,
    **ORIGIN,
}  # fmt: skip


def written(folder, bench, document):
    path = folder / f"{bench}.json"
    path.write_bytes(msgspec.json.encode(document))
    return read_result(path, bench)


def values(result):
    return {row.name: row.value for row in result.rows}


def test_the_demos_summary_is_a_result_with_its_commit(tmp_path):
    result = written(tmp_path, "demo", SUMMARY)
    assert (result.commit, result.size, result.passed) == ("abc123", "full", True)
    assert values(result)["bytes moved / state"] == pytest.approx(0.8)
    for change in (
        {"lost_steps": 1}, {"loss_max_abs_diff": 1e-9}, {"final_weights_equal": False}
    ):  # fmt: skip
        assert not written(tmp_path, "demo", {**SUMMARY, **change}).passed
    assert written(tmp_path, "demo", {**SUMMARY, "steps": 20}).size == "tiny"


def test_a_report_of_the_simulation_is_a_result_and_says_what_made_it(tmp_path):
    report = run_histories(range(2), quiet=True)
    result = written(tmp_path, "sim", report)
    assert (result.size, result.passed) == ("tiny", True)
    assert result.commit == report.commit and result.command == report.command
    assert "--seeds 2" in report.command and report.machine.num_cpus >= 1
    assert values(result)["violations"] == 0 and values(result)["histories"] == 2
    many = msgspec.structs.replace(report, histories=10_000, num_violations=1)
    assert (written(tmp_path, "sim", many).size, written(tmp_path, "sim", many).passed) == (
        "full", False,
    )  # fmt: skip


def test_a_planted_bugs_report_proves_something_only_if_the_bug_was_found(tmp_path):
    report = run_histories(range(1), quiet=True, bug="no-fencing")
    missed = msgspec.structs.replace(report, histories=100, seeds_with_violations=0)
    assert not written(tmp_path, "sim-no-fencing", missed).passed
    found = msgspec.structs.replace(missed, seeds_with_violations=30)
    assert written(tmp_path, "sim-no-fencing", found).passed
    with pytest.raises(Corrupt, match="was recorded with --plant no-fencing"):
        written(tmp_path, "sim-ref-before-chunks", found)
    with pytest.raises(Corrupt, match="was recorded with --plant no-fencing"):
        written(tmp_path, "sim", found)


def test_a_chaos_report_that_did_not_deliver_its_kills_proves_nothing(tmp_path):
    report = ChaosReport(
        seed=1, seconds=1.0, kills=100, killed=90, cut=10, others=3, wanted=100, never_killed=(),
        by_phase={}, by_victim={}, outcomes={}, steps=5, compared=5, lost_steps_planned=0,
        lost_steps_killed=2, split_brains=0, moves=(), violations=(), **ORIGIN,
    )  # fmt: skip
    assert written(tmp_path, "chaos", report).passed
    fewer = msgspec.structs.replace(report, kills=99)
    assert not written(tmp_path, "chaos", fewer).passed
    assert not written(tmp_path, "chaos", msgspec.structs.replace(report, violations=("x",))).passed


def test_a_file_without_its_origin_is_refused(tmp_path):
    for missing in ORIGIN:
        lacking = {key: value for key, value in SUMMARY.items() if key != missing}
        with pytest.raises(Corrupt, match=missing):
            written(tmp_path, "demo", lacking)
