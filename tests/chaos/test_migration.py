"""A few kills of the chaos campaign: real conductor, agents, ranks, servers and link."""

from pathlib import Path

import msgspec

from cloudshift_lab.sim.chaos.main import attack
from cloudshift_lab.sim.chaos.report import Report, text_of


def test_a_run_that_is_attacked_while_it_moves_keeps_one_owner_and_every_loss(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    report = attack(5, 11, tmp_path, lines.append)
    assert report.violations == (), text_of(report)
    assert report.passed and report.kills >= 5
    hits = report.kills + report.others
    assert sum(report.by_phase.values()) == sum(report.by_victim.values()) == hits
    assert report.killed + report.cut == report.kills
    assert (report.split_brains, report.lost_steps_planned) == (0, 0)
    assert report.compared > report.steps > 0
    assert {move.phase for move in report.moves} <= {"source_retired", "rolled_back"}
    assert len(lines) == len(report.moves) + 1
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert "no violation" in text_of(report)
