from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudshift_lab.conductor.journal import Journal
from cloudshift_lab.core.errors import Corrupt, Exhausted

EVENTS = (b'{"a":1}', b'{"b":"two"}', b'{"c":[3,3,3]}')


def filled(path: Path) -> Journal:
    journal = Journal(path)
    for event in EVENTS:
        journal.append(event)
    return journal


def test_what_was_appended_is_replayed_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    assert filled(path).replay() == EVENTS
    assert Journal(path).replay() == EVENTS


def test_a_journal_that_does_not_exist_is_empty_and_makes_no_file(tmp_path: Path) -> None:
    assert Journal(tmp_path / "none.jsonl").replay() == ()
    assert list(tmp_path.iterdir()) == []


def test_every_line_is_json(tmp_path: Path) -> None:
    import json

    filled(tmp_path / "j.jsonl")
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [json.loads(e) for e in EVENTS]


def test_a_tail_torn_at_any_byte_is_dropped_and_written_over(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    filled(whole)
    data = whole.read_bytes()
    second_end = [i for i, byte in enumerate(data) if byte == 10][1] + 1
    for cut in range(second_end, len(data)):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(data[:cut])
        journal = Journal(torn)
        assert journal.replay() == EVENTS[:2], f"cut at {cut}"
        journal.append(EVENTS[2])
        assert torn.read_bytes() == data, f"cut at {cut}"


def test_a_whole_last_line_that_is_damaged_is_an_error_and_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    filled(path)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match="line 3 is damaged; restore the file from a copy"):
        Journal(path)
    assert path.read_bytes() == data


def test_damage_before_the_tail_is_corrupt_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    filled(path)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match="line 1 is damaged"):
        Journal(path)


def test_a_full_disk_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j.jsonl"
    journal = filled(path)
    before = path.read_bytes()
    real = os.pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(Exhausted, match="free disk space"):
            journal.append(b'{"d":4}')
    assert journal.replay() == EVENTS
    assert Journal(path).replay() == EVENTS
    journal.append(b'{"e":5}')
    assert Journal(path).replay() == (*EVENTS, b'{"e":5}')
    assert path.read_bytes().startswith(before)


def test_a_journal_is_private(tmp_path: Path) -> None:
    filled(tmp_path / "j.jsonl")
    assert (tmp_path / "j.jsonl").stat().st_mode & 0o077 == 0
