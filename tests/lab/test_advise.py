"""``cloudshift market advise`` answers a job's file in words and JSON, and names what is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.lab.advice.job import EXAMPLE
from cloudshift_lab.lab.advice.main import main
from cloudshift_lab.lab.render.advice import advice_sheet
from cloudshift_lab.lab.render.sheet import sheet_html
from cloudshift_lab.market.advice import Advice

JOB = """
cloud = "aws"
region = "us-east-1"
instance_type = "p5.48xlarge"
price_usd_h = 55.04
left_h = 48
carry_gb = 2000
link_gbit_s = 5
[[offers]]
cloud = "gcp"
region = "us-central1"
instance_type = "a3-highgpu-8g"
price_usd_h = 38.53
accelerator = "H100"
num_accelerators = 8
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSHIFT_HOME", str(tmp_path / "home"))


def job(folder: Path, text: str, name: str = "job.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_job_gets_a_verdict_with_its_bill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--job", job(tmp_path, JOB)]) == 0
    said = capsys.readouterr().out
    assert "Move to gcp:us-central1" in said
    assert "egress from aws" in said
    assert "total" in said
    assert "Stay instead if" in said
    assert "cloudshift migrate RUN --to gcp:us-central1" in said


def test_the_file_has_the_whole_answer(tmp_path: Path) -> None:
    out = tmp_path / "advice.json"
    assert main(["advise", "--job", job(tmp_path, JOB), "--json", str(out)]) == 0
    advice = msgspec.json.decode(out.read_bytes(), type=Advice)
    assert advice.verdict == "move"
    assert advice.bill is not None
    html = sheet_html(advice_sheet(advice))
    assert "egress from aws" in html
    assert advice.because.split(":")[0] in html


def test_the_example_in_the_help_is_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--job", job(tmp_path, EXAMPLE)]) == 0
    assert "commitment" in capsys.readouterr().out


def test_without_offers_the_known_prices_are_weighed_and_called_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = JOB.split("[[offers]]", maxsplit=1)[0] + 'accelerator = "H100"\nnum_accelerators = 8\n'
    assert main(["advise", "--job", job(tmp_path, known)]) == 0
    said = capsys.readouterr().out
    assert "snapshot of 2026-07-30, stale" in said
    assert "Nobody is moved by this alone" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [("cloud = 3", "Expected"), (JOB.replace("left_h", "hours_left"), "hours_left"),
     ("cloud = ", "is no job"), (JOB.replace("left_h = 48", ""), "left_h"),
     (JOB.replace("left_h = 48", "left_h = 48\nbudget_usd = 5\nspent_usd = 6"), "raise it"),
     (JOB.replace("left_h = 48", "left_h = 48\ndeadline_h = -1"), "passed"),
     (JOB.replace("left_h = 48", "left_h = 48\negress_usd_gb = -1"), "egress_usd_gb"),
     (JOB.replace("price_usd_h = 55.04", "").replace("us-east-1", "moon"), "no price is known")],
)  # fmt: skip
def test_a_bad_job_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert main(["advise", "--job", job(tmp_path, text)]) == 1
    assert says in capsys.readouterr().err


def test_neither_a_run_nor_a_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise"]) == 1
    assert "name a run, or a job's file" in capsys.readouterr().err
