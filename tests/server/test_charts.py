"""Figures from series: where a run was, what a move looks like, what happens with holes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.core.views import Move, Series
from cloudshift_lab.lab.dashboard import charts

HERE, THERE = "aws-sim:us-east-1", "gcp-sim:us-central1"


def series(num: int, *moves: Move) -> Series:
    at = tuple(float(i) for i in range(num))
    return Series(
        run_id="run-1", at=at, step=tuple(range(num)), loss=tuple(1 / (i + 1) for i in range(num)),
        tokens_per_s=(10.0,) * num, generation=(1,) * num, cost_at=at, cost_usd=at,
        usd_per_h=(1.0,) * num, moves=moves,
    )  # fmt: skip


def move(at: float, source: str, target: str) -> Move:
    return Move("mig", at, int(at), source, target)


def test_a_run_that_never_moved_is_one_curve_named_after_its_place() -> None:
    figure = charts.loss_figure(series(5), HERE, charts.LIGHT)
    assert [trace["name"] for trace in figure["data"]] == [HERE]
    assert figure["layout"]["shapes"] == []


def test_a_move_is_a_vertical_line_and_another_colour() -> None:
    figure = charts.loss_figure(series(6, move(3, HERE, THERE)), THERE, charts.LIGHT)
    first, second = figure["data"]
    assert (first["name"], second["name"]) == (HERE, THERE)
    assert first["line"]["color"] != second["line"]["color"]
    (line,) = figure["layout"]["shapes"]
    assert (line["x0"], line["x1"]) == (3, 3)
    assert THERE in figure["layout"]["annotations"][0]["text"]


def test_coming_back_takes_the_old_colour_and_no_second_legend_entry() -> None:
    moves = (move(2, HERE, THERE), move(4, THERE, HERE))
    figure = charts.loss_figure(series(6, *moves), HERE, charts.LIGHT)
    first, _, third = figure["data"]
    assert first["line"]["color"] == third["line"]["color"]
    assert (first["showlegend"], third["showlegend"]) == (True, False)


def test_a_series_without_points_draws_an_empty_chart_in_every_theme() -> None:
    for look in (charts.LIGHT, charts.DARK):
        assert charts.loss_figure(Series(run_id="r"), HERE, look)["data"] == []
        assert charts.throughput_figure(Series(run_id="r"), HERE, look)["data"] == []
        assert charts.spent_figure(Series(run_id="r"), look)["data"][0]["x"] == []
        assert charts.rate_figure(Series(run_id="r"), look)["data"][0]["x"] == []


@given(num=st.integers(0, 60), cuts=st.lists(st.floats(0, 60), max_size=5))
def test_no_point_is_lost_or_drawn_twice(num: int, cuts: list[float]) -> None:
    places = [HERE, THERE] * 3
    moves = [move(at, places[i], places[i + 1]) for i, at in enumerate(sorted(cuts))]
    figure = charts.loss_figure(series(num, *moves), HERE, charts.LIGHT)
    drawn = [x for trace in figure["data"] for x in trace["x"]]
    assert drawn == list(range(num))
