import io
import json
import time
from pathlib import Path

import pytest

from cloudshift_lab.conductor.discovery import find_daemon
from cloudshift_lab.core.placement import Placement
from cloudshift_lab.lab.cli import main
from cloudshift_lab.sim.clouds import SimClouds


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main(words, out=out, err=err)
    return status, out.getvalue(), err.getvalue()


def test_a_wrong_call_exits_with_2_and_one_line(home) -> None:
    status, out, err = call("migrat")
    assert (status, out) == (2, "")
    assert err == "there is no 'migrat': did you mean 'migrate'?\n"


def test_our_own_error_exits_with_1_and_one_line(service) -> None:
    status, out, err = call("watch", "nothing")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "no run called 'nothing'" in err


def test_status_lists_runs(service, make_run) -> None:
    service.views = [make_run()]
    status, out, _ = call("status")
    assert status == 0
    assert "first" in out


def test_status_as_json_can_be_read_by_a_program(service, make_run, make_move) -> None:
    service.views, service.moves = [make_run()], [make_move()]
    data = json.loads(call("status", "--json")[1])
    assert data["runs"][0]["step"] == 120
    assert data["waiting"][0]["plan"]["bill"]["total_micro_usd"] == -194_500


def test_cost_as_json_and_as_text(service, make_run) -> None:
    service.views = [make_run()]
    assert json.loads(call("cost", "--json")[1])["total_micro_usd"] == 8_833
    assert "$0.0088" in call("cost", "first")[1]


def test_a_budget_is_given_and_a_ledger_written(service, make_run, tmp_path: Path) -> None:
    service.views = [make_run()]
    assert call("cost", "first", "--budget", "2.50")[0] == 0
    assert service.budgets == [("run-1", 2_500_000)]
    path = tmp_path / "costs.csv"
    status, out, _ = call("cost", "first", "--export", str(path))
    assert (status, "the ledger of first (1 charges) was written" in out) == (0, True)
    assert "0.008833" in path.read_text()
    status, _, err = call("cost", "first", "--export", "costs.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert "has to end in .csv or .parquet" in err


def test_train_sends_the_script_and_every_flag(service, tmp_path: Path) -> None:
    script = tmp_path / "gpt.py"
    script.write_text("print(1)\n")
    status, out, _ = call("train", str(script), "--on", "aws-sim", "--ranks", "4", "--budget", "2",
                          "--seed", "3", "--env", "A=1", "--approve", "never",
                          "--restart-on", "aws-sim:us-west-2,aws-sim:eu-1")  # fmt: skip
    (spec,) = service.specs
    assert status == 0
    assert "gpt (run-1)" in out
    assert (spec.name, spec.script, spec.target) == ("gpt", str(script), "aws-sim")
    assert (spec.ranks_per_node, spec.budget_micro_usd, spec.seed) == (4, 2_000_000, 3)
    assert (spec.env, spec.approve) == ({"A": "1"}, "never")
    assert (spec.restart, spec.restart_on) == ("auto", ("aws-sim:us-west-2", "aws-sim:eu-1"))


def test_train_without_a_script_says_what_is_missing(service) -> None:
    status, _, err = call("train")
    assert (status, service.specs) == (2, [])
    assert "needs a script" in err


def test_an_unknown_target_starts_nothing(service, tmp_path: Path) -> None:
    script = tmp_path / "gpt.py"
    script.write_text("print(1)\n")
    status, _, err = call("train", str(script), "--on", "mars")
    assert (status, service.specs) == (2, [])
    assert "no cloud called 'mars'" in err


def test_waiting_for_a_script_that_raises_shows_the_ranks_traceback(
    service, make_run, tmp_path: Path
) -> None:
    script = tmp_path / "gpt.py"
    script.write_text("print(1)\n")
    service.started = make_run(state="failed", error="ValueError: no", error_rank=1,
                               traceback='File "gpt.py", line 3\nValueError: no')  # fmt: skip
    status, out, err = call("train", str(script), "--wait")
    assert status == 1
    assert "gpt failed" in out
    assert err.splitlines()[:2] == ['File "gpt.py", line 3', "ValueError: no"]
    assert "rank 1 of gpt failed" in err


def test_migrate_prints_the_bill_and_decides_nothing(service, make_run) -> None:
    service.views = [make_run()]
    status, out, _ = call("migrate", "--to", "gcp-sim")
    assert status == 0
    assert "pays for itself" in out
    assert "cloudshift approve mig-1" in out
    assert service.decisions == []


def test_migrate_yes_approves_the_plan_it_got(service, make_run) -> None:
    service.views = [make_run()]
    assert call("migrate", "--to", "gcp-sim", "--yes")[0] == 0
    (decision,) = service.decisions
    assert (decision.verdict, decision.plan_digest) == ("approve", "digest-of-the-plan")
    assert decision.by.endswith("(terminal)")


def test_approving_what_was_rejected_says_who_decided(service, make_move) -> None:
    service.moves = [make_move()]
    assert call("reject", "mig-1")[0] == 0
    status, _, err = call("approve", "mig-1")
    assert status == 1
    assert "already decided by" in err


def test_watching_a_run_that_has_ended_prints_it_and_returns(service, make_run) -> None:
    service.views = [make_run(state="finished")]
    status, out, _ = call("watch", "first")
    assert status == 0
    assert "first finished on aws-sim:us-east-1 step 120 loss 2.3456" in out


def test_logs_are_printed_as_they_are(service, make_run) -> None:
    service.views = [make_run()]
    out = call("logs", "first", "--rank", "1", "--tail", "5")[1]
    assert out == "hello <b>from</b> rank 1, last 5\n"


def test_the_doctor_reports_the_conductors_checks_too(service) -> None:
    out = call("doctor")[1]
    assert "mount it writable" in out
    assert "ipykernel" in out


def test_the_conductor_tells_about_itself(service) -> None:
    status, out, _ = call("conductor", "status")
    assert status == 0
    assert "pid" in out


def test_looking_for_a_conductor_does_not_start_one(home) -> None:
    status, _, err = call("conductor", "status")
    assert status == 1
    assert "no conductor runs" in err
    assert not (home / "daemon.json").exists()


def test_clouds_lists_this_machine_when_nothing_is_configured(home) -> None:
    status, out, _ = call("clouds")
    assert status == 0
    assert "local:here" in out


@pytest.fixture
def clouds_down(home, monkeypatch) -> list[str]:
    """What was downed; there is no server."""
    done: list[str] = []
    monkeypatch.setattr(SimClouds, "down", lambda self, progress: done.append("down"))
    (home / "runs").mkdir()
    return done


def test_clouds_under_an_active_run_stay_up_unless_forced(service, make_run, clouds_down) -> None:
    service.views = [make_run(), make_run(name="second", state="stopped")]
    status, _, err = call("clouds", "down")
    assert (status, clouds_down) == (1, [])
    assert "still active: first on aws-sim; stop first (cloudshift stop first)" in err
    assert "clouds down --force" in err
    assert call("clouds", "down", "--force")[0] == 0
    assert clouds_down == ["down"]


def test_clouds_that_a_run_is_moving_to_stay_up(service, make_run, make_move, clouds_down) -> None:
    local = Placement("local", "here", "this-machine")
    service.views, service.moves = [make_run(placement=local)], [make_move(phase="copying")]
    status, _, err = call("clouds", "down")
    assert (status, clouds_down) == (1, [])
    assert "first on gcp-sim" in err


def test_clouds_without_an_active_run_go_down(service, make_run, make_move, clouds_down) -> None:
    service.views, service.moves = [make_run(state="stopped")], [make_move()]
    assert call("clouds", "down")[0] == 0
    assert clouds_down == ["down"]


def test_a_conductor_that_was_started_to_ask_about_runs_ends_again(clouds_down, home) -> None:
    assert call("clouds", "down")[0] == 0
    assert clouds_down == ["down"]
    until = time.monotonic() + 60
    while find_daemon(home) is not None:
        assert time.monotonic() < until, "a conductor was left running"
        time.sleep(0.1)
    assert (home / "conductor.log").exists()  # there had been one


def test_downing_clouds_before_the_first_run_starts_no_conductor(home) -> None:
    assert call("clouds", "down")[0] == 0
    assert not (home / "daemon.json").exists()


def test_help_on_train_says_where_files_are_opened_and_what_becomes_of_secrets(home) -> None:
    out = call("help", "train")[1]
    assert "relative to the attempt's own folder" in out
    assert "pass a secret by" in out


def test_the_module_can_be_run(home) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "cloudshift_lab", "help", "migrate"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "cloudshift migrate [RUN] --to TARGET" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(home) -> None:
    import subprocess
    import sys

    program = f"{sys.executable} -m cloudshift_lab help | true"
    done = subprocess.run(program, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_terminal_without_our_signs_still_gets_the_words(service, make_run) -> None:
    import os
    import subprocess
    import sys

    service.views = [make_run()]
    done = subprocess.run([sys.executable, "-m", "cloudshift_lab", "status"], capture_output=True,
                          check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert b"? running" in done.stdout
