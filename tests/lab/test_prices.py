"""``cloudshift market prices`` shows what is known, with its age, and says what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudshift_lab.lab.advice.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(tmp_path / "home"))
    return tmp_path


def test_without_a_network_the_table_of_the_package_is_shown_as_old(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["prices", "--accelerator", "h100", "--cloud", "gcp"]) == 0
    said = capsys.readouterr().out
    assert "snapshot of 2026-07-30, stale" in said
    assert "No run is moved by itself on these prices" in said


def test_the_file_has_every_price_and_what_was_left_out(home: Path) -> None:
    out = home / "prices.json"
    assert main(["prices", "--json", str(out), "--limit", "1"]) == 0
    told = json.loads(out.read_bytes())
    assert len(told["quotes"]) > 80
    assert told["rejected"] == []
    assert {"priced_at", "source", "confidence"} <= set(told["quotes"][0])


def test_nothing_known_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--accelerator", "Z9000"]) == 1
    assert "market prices --refresh" in capsys.readouterr().out


def test_a_list_that_is_imported_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "vms.csv"
    file.write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region\n"
        "p9,Z9000,8,80,-3,us-east-1\n"
    )
    assert main(["prices", "--import", f"aws={file}", "--accelerator", "Z9000"]) == 0
    said = capsys.readouterr().out
    assert "8 x Z9000" in said
    assert "left out: aws:us-east-1 p9 spot: its price is -3 USD an hour" in said
    assert main(["prices", "--accelerator", "Z9000"]) == 0


def test_a_list_without_a_cloud_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "--import", "x.csv"]) == 1
    assert "write --import gcp=x.csv" in capsys.readouterr().err
