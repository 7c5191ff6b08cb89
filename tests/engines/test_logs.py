"""What is shown of an attempt's output: everybody's, named, and never more than asked for."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from cloudshift_lab.engines.logs import AGENT_LOG, last_lines


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name.replace('_', '-')}.log").write_text(text)


def test_without_a_rank_every_rank_is_shown_in_order_and_named(tmp_path: Path) -> None:
    write(tmp_path, rank_10="k\n", rank_2="c\nd\n", rank_0="a\n", torchrun="noise\n", agent="")
    assert last_lines([tmp_path], None, 40).splitlines() == [
        "[rank 0] a", "[rank 2] c", "[rank 2] d", "[rank 10] k",
    ]  # fmt: skip


def test_the_agents_own_words_follow_where_there_are_any(tmp_path: Path) -> None:
    write(tmp_path, rank_0="a\n", agent="there is no script\n")
    assert last_lines([tmp_path], None, 40) == "[rank 0] a\n[agent] there is no script"


def test_a_talkative_rank_does_not_push_out_the_others(tmp_path: Path) -> None:
    write(tmp_path, rank_0="only\n", rank_1="x\n" * 500, agent="word\n")
    lines = last_lines([tmp_path], None, 12).splitlines()
    assert lines == ["[rank 0] only", *["[rank 1] x"] * 10, "[agent] word"]


@pytest.mark.parametrize("tail", [0, 1, 2, 7, 40])
def test_the_lines_of_all_together_are_never_more_than_asked_for(tmp_path: Path, tail: int) -> None:
    write(tmp_path, rank_0="a\n" * 9, rank_1="b\n" * 9, rank_2="c\n" * 9)
    assert len(last_lines([tmp_path], None, tail).splitlines()) == min(tail, 27)


def test_a_rank_is_shown_alone_and_unnamed(tmp_path: Path) -> None:
    write(tmp_path, rank_0="a\n", rank_1="b\nc\nd\n")
    assert last_lines([tmp_path], 1, 2) == "c\nd"


def test_of_a_huge_log_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    with path.open("wb") as file:
        file.truncate(3 << 30)
        file.seek(0, 2)
        file.write(b"\nlast but one\nlast\n")
    tracemalloc.start()
    try:
        assert last_lines([tmp_path], 0, 2) == "last but one\nlast"
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_the_first_line_that_is_shown_is_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "rank-0.log").write_text("0123456789abcde\n" * 100_000)
    lines = last_lines([tmp_path], 0, 10**6).splitlines()
    assert set(lines) == {"0123456789abcde"}
    assert 60_000 < len(lines) <= 65_536


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / AGENT_LOG).write_bytes(b"caf\xe9\n")
    assert last_lines([tmp_path], None, 5) == "[agent] caf\ufffd"
