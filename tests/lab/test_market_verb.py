"""``cloudshift market`` hands over, and says what there is when it cannot."""

from __future__ import annotations

import pytest

from cloudshift_lab.lab.advice.main import main


def test_help_lists_the_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "replay" in capsys.readouterr().out


def test_an_unknown_way_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rply"]) == 2
    assert "choose one of: prices, advise, replay" in capsys.readouterr().err


def test_what_went_wrong_there_is_its_exit_status(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", "--benchmark", str(tmp_path)]) == 1
    assert "no benchmark.json" in capsys.readouterr().err
