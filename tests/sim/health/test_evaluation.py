import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.sim.health.data import labelled_runs
from cloudshift_lab.sim.health.evaluation import evaluate
from cloudshift_lab.sim.health.main import main
from cloudshift_lab.sim.health.stragglers import judge_run

STEPS, RANKS, ONSET = 300, 16, 200


def write_run(folder: Path, name: str, slow: tuple[int, ...], factor: float) -> str:
    rng = np.random.default_rng(len(name) + len(slow))
    compute = 1e6 * np.exp(0.03 * rng.standard_normal((STEPS, RANKS)))
    compute[ONSET:, list(slow)] *= factor
    step, rank = np.mgrid[0:STEPS, 0:RANKS]
    table = {
        "step": step.ravel(), "rank": rank.ravel(), "compute_us": compute.ravel().astype(int),
        "data_wait_us": np.full(STEPS * RANKS, 2e4).astype(int),
        "step_us": compute.max(axis=1).repeat(RANKS).astype(int),
    }  # fmt: skip
    parquet.write_table(pa.table(table), folder / name)
    onset = ONSET if slow else -1
    ranks = " ".join(map(str, slow))
    return f"{name},{'step' if slow else 'none'},{RANKS},8,{ranks},{onset},-1,{factor}"


def write_runs(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = ["file,kind,world,ranks_per_node,straggler_ranks,onset_step,end_step,factor"]
    rows += [write_run(folder, f"s{n}.parquet", (n,) if n % 2 else (), 1.3) for n in range(6)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def write_gpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    minutes = 1500
    labels = ["gpu,fail_minute,failure_kind,precursor_onset,benign_lookalike"]
    columns: dict[str, list[np.ndarray]] = {}
    for gpu in range(10):
        rng = np.random.default_rng(gpu)
        fails = gpu < 4
        flaps = np.zeros(minutes)
        if fails and gpu != 3:
            flaps[[minutes - 100, minutes - 60]] = 1
        part = {
            "minute": np.arange(minutes), "gpu": np.full(minutes, gpu),
            "temp_c": 60 + rng.standard_normal(minutes), "power_w": np.full(minutes, 600.0),
            "ecc_corrected": np.zeros(minutes), "remapped_rows": np.zeros(minutes),
            "pcie_replay": np.zeros(minutes), "nic_flap": flaps, "throttle_bits": np.zeros(minutes),
        }  # fmt: skip
        for name, column in part.items():
            columns.setdefault(name, []).append(column)
        kind = "none" if not fails else "sudden" if gpu == 3 else "nic"
        fail, onset = (minutes - 1, minutes - 120) if fails else (-1, -1)
        labels.append(f"{gpu},{fail},{kind},{onset},")
    table = {name: np.concatenate(parts).astype(int) for name, parts in columns.items()}
    parquet.write_table(pa.table(table), folder / "telemetry_1min.parquet")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")


def write_xids(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "xid_log_lines.csv").write_text(
        "line,expected_xid,expected_pci,source_repo\n"
        '"NVRM: Xid (PCI:0000:01:00): 31, pid=1",31,0000:01:00,x\n'
        '"[1.0] NVRM: Xid (PCI:0000:02:00): 79, off the bus",79,0000:02:00,x\n'
    )


def write_trace(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(8)
    rows = ["node_id,start_day,end_day,level,class,desc"]
    for node in range(30):
        day = rng.uniform(0, 60)
        while day < 340:
            rows.append(f"n{node},{day:.2f},{day + 1:.2f},Hardware Failure,GPU,x")
            day += rng.exponential(15 if node < 8 else 150)
    (folder / "fault_episodes.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_runs(folder / "straggler_sim")
    write_gpus(folder / "precursor_sim")
    write_xids(folder / "xid")
    write_trace(folder / "infinitehbd")
    return folder


def silent(line: str) -> None:
    assert line


def test_a_folder_laid_out_like_the_given_one_is_judged_whole(data: Path) -> None:
    document = evaluate(data, silent)
    values = {each.name: each.value for each in document.result.rows}
    assert values["stragglers: precision"] == 1.0
    assert values["stragglers: recall"] == 1.0
    assert values["stragglers: delay"] <= 25
    assert values["precursors: precision"] == 1.0
    assert values["precursors: recall, 5 min ahead"] == 0.75
    assert values["XID: lines read right"] == 1.0
    assert values["node faults in 7 days: AUC"] > 0.61
    assert document.left_out == ()
    assert len(document.runs) == 6
    assert len(document.gpus) == 10
    assert document.coefficients is not None


def test_the_command_writes_everything_and_says_whether_goals_were_met(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "xid").symlink_to(data / "xid")
    out = tmp_path / "out.json"
    assert main(["evaluate", "--data", str(tmp_path / "part"), "--json", str(out)]) == 0
    assert json.loads(out.read_bytes())["result"]["rows"][0]["passed"] is True
    shown = capsys.readouterr().out
    assert "XID: lines read right" in shown
    assert "not judged: straggler_sim" in shown


def test_a_line_that_is_read_wrong_misses_the_goal(tmp_path: Path) -> None:
    write_xids(tmp_path / "xid")
    with (tmp_path / "xid" / "xid_log_lines.csv").open("a") as lines:
        lines.write('"not an XID at all",31,0000:01:00,x\n')
    assert main(["evaluate", "--data", str(tmp_path)]) == 1


def test_a_false_alarm_counts_against_precision_and_silence_against_recall(data: Path) -> None:
    run = labelled_runs(data / "straggler_sim")[1]
    right = judge_run(run)
    assert (right.counts.right, right.counts.wrong, right.counts.missed) == (1, 0, 0)
    from dataclasses import replace

    blind = judge_run(replace(run, ranks=frozenset({7})))
    assert (blind.counts.right, blind.counts.wrong, blind.counts.missed) == (0, 1, 1)
    early = judge_run(replace(run, onset=STEPS - 1))
    assert (early.counts.right, early.counts.wrong) == (0, 1)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="straggler_sim"):
        evaluate(tmp_path, silent)


def test_a_file_that_lacks_a_column_is_said_to_be_broken(tmp_path: Path) -> None:
    write_runs(tmp_path / "straggler_sim")
    run = labelled_runs(tmp_path / "straggler_sim")[0]
    parquet.write_table(pa.table({"step": [0], "rank": [0]}), run.file)
    with pytest.raises(Corrupt):
        judge_run(run)
