"""The command replays a folder, says what it found, and names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.sim.bench.rows import Row
from cloudshift_lab.sim.market.main import Replay, main, rows_of
from cloudshift_lab.sim.market.score import Case, headline, misses, with_interval, worst_harm


def case(cell: str = "one", block: str = "a", usd: float = 12.0, **more: object) -> Case:
    plain = Case(cell, block, 0, usd, 10.0, {"stay": 11.0, "uniform progress": 15.0}, True, 3)
    return replace(plain, **more)  # type: ignore[arg-type]


def test_the_command_writes_every_job_behind_its_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "replay.json"
    main(["--benchmark", str(folder), "--json", str(out)])
    said = capsys.readouterr()
    assert "geometric mean of the cells" in said.out
    assert "jobs replayed" in said.err
    replayed = msgspec.json.decode(out.read_bytes(), type=Replay)
    assert len(replayed.cases["cells"]) == 5
    assert {case.on_time for case in replayed.cases["cells"]} == {True}
    assert all(case.usd >= case.omniscient_usd - 1e-6 for case in replayed.cases["cells"])


def test_a_folder_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--benchmark", str(tmp_path)]) == 1
    assert "no benchmark.json" in capsys.readouterr().err


def test_the_headline_is_the_geometric_mean_of_ratios_of_means() -> None:
    cases = [case(usd=10.0), case(usd=14.0), case("two", usd=40.0, omniscient_usd=20.0)]
    assert headline(cases) == pytest.approx((1.2 * 2.0) ** 0.5)


def test_an_interval_is_drawn_over_blocks() -> None:
    cases = [case(block=str(at), usd=10.0 + at) for at in range(8)]
    found = with_interval(cases)
    assert found.low < found.value < found.high
    same = with_interval([case(block="a", usd=10.0 + at) for at in range(8)])
    assert same.low == same.high == same.value


def test_harm_is_against_the_better_rival_of_each_window() -> None:
    assert worst_harm([case(usd=12.1), case(usd=11.0)]) == pytest.approx(1.1)


def test_one_missed_deadline_fails_the_table() -> None:
    late = case(on_time=False)
    assert misses([case(), late]) == 1
    rows = rows_of({"cells": [case()], "half": [case()], "lost work": [late]})
    assert _row(rows, "deadlines missed").passed is False


def test_a_benchmark_without_a_kind_of_job_has_no_row_for_it() -> None:
    names = [row.name for row in rows_of({"cells": [case()]})]
    assert not [name for name in names if name.startswith("16-GPU gang")]
    assert [name for name in names if name.startswith("cost / omniscient")]


def _row(rows: tuple[Row, ...], beginning: str) -> Row:
    return next(row for row in rows if row.name.startswith(beginning))
