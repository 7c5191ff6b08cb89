"""A rank is killed for good, and its run goes on as if nothing had been."""

from __future__ import annotations

import itertools
from pathlib import Path

from cloudshift_lab.sim.chaos.diary import PHASES, Order, Phase, judge, parse
from cloudshift_lab.sim.chaos.ranks import attack, orders_of, text_of

CONTROL = "\n".join(f'{{"kind":"step","at":1.0,"step":{s},"loss":"0x{s}"}}' for s in range(1, 12))
KILLED = """\
{"kind":"step","at":1.0,"step":7,"loss":"0x7"}
{"kind":"kill","at":10.0,"step":8,"phase":"backward"}
{"kind":"start","at":13.0,"step":%d,"imports":[10.5,12.5]}
{"kind":"step","at":14.0,"step":8,"loss":"%s"}"""
SURVIVOR = KILLED.replace('{"kind":"kill","at":10.0,"step":8,"phase":"backward"}\n', "")
ORDER = Order(8, "backward", 1)


def test_every_phase_is_hit_once_per_seed_and_steps_lie_apart() -> None:
    for seed in range(1, 26):
        orders = orders_of(seed)
        assert sorted(order.phase for order in orders) == sorted(PHASES)
        steps = [order.step for order in orders]
        assert all(later - earlier > 5 for earlier, later in itertools.pairwise(steps))
    assert {order.rank for seed in range(1, 26) for order in orders_of(seed)} == {0, 1, 2, 3}


def test_diaries_tell_what_a_kill_cost() -> None:
    control = [parse(CONTROL), parse(CONTROL)]
    wound = judge(1, ORDER, [parse(SURVIVOR % (7, "0x8")), parse(KILLED % (7, "0x8"))], control)
    assert (wound.resumed_at, wound.lost_steps, wound.is_equal) == (7, 0, True)
    assert (wound.to_step_s, wound.imports_s) == (4.0, 2.0)
    wound = judge(1, ORDER, [parse(SURVIVOR % (5, "0x8")), parse(KILLED % (5, "0x9"))], control)
    assert (wound.lost_steps, wound.is_equal) == (2, False)
    never = judge(1, Order(9, "step", 0), [parse(SURVIVOR % (7, "0x8"))] * 2, control)
    assert never.resumed_at is None


def test_a_killed_rank_costs_no_step_and_changes_no_bit(tmp_path: Path) -> None:
    phases: tuple[Phase, ...] = ("backward", "optimizer")
    report = attack(1, tmp_path, print, spare="off", num_ranks=2, phases=phases)
    assert report.passed and report.most_lost_steps == 0, text_of(report)
    assert (report.kills, report.resumed, report.runs, report.equal_hashes) == (2, 2, 1, 1)
