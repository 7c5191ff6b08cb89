"""The drawing of faults: all pairs, by seed, and nothing after what ends a move."""

from cloudshift_lab.sim.chaos.report import COUNTED, KILLED, PHASES, VICTIMS, Kill, num_counted
from cloudshift_lab.sim.chaos.schedule import FATAL, Schedule


def attacks(seed, num=200):
    schedule = Schedule(seed, longest_s=30.0)
    return [schedule.draw(4) for _ in range(num)]


def test_a_seed_draws_the_same_attacks():
    assert attacks(7) == attacks(7) != attacks(8)


def test_every_victim_is_hit_in_every_phase_and_each_move_begins_with_a_pair_not_yet_hit():
    schedule, seen, moves = Schedule(3, longest_s=30.0), set(), 0
    every = {(phase, victim) for phase in PHASES for victim in VICTIMS}
    while seen != every:
        drawn = {(s.phase, s.victim) for s in schedule.draw(4).strikes} & every
        assert drawn - seen
        seen |= drawn
        moves += 1
    assert moves <= len(every)


def test_a_move_is_filled_up_when_few_pairs_are_left_to_hit():
    schedule = Schedule(3, longest_s=30.0)
    drawn = [len(schedule.draw(100).strikes) for _ in range(100)]
    assert sum(drawn) > 4 * len(drawn)


def test_strikes_come_in_the_order_of_their_phases_and_none_after_one_that_ends_the_move():
    before_commit = [phase for phase in PHASES if phase not in ("committed", "resumed")]
    for attack in attacks(5):
        strikes = [strike for strike in attack.strikes if strike.phase != "rolling_back"]
        places = [PHASES.index(strike.phase) for strike in strikes]
        assert places == sorted(set(places))
        ends = [s.victim in FATAL and s.phase in before_commit for s in strikes]
        assert not any(ends[:-1])
        assert len(attack.strikes) == len(strikes) or ends[-1]


def test_the_way_back_is_attacked_too_but_never_by_what_ends_the_move():
    back = [s for attack in attacks(5) for s in attack.strikes if s.phase == "rolling_back"]
    assert len(back) > 5
    assert not FATAL & {strike.victim for strike in back}


def test_a_closing_is_drawn_that_has_the_phases_to_be_hit():
    for attack in attacks(6):
        phases = {strike.phase for strike in attack.strikes}
        assert attack.closing == "copy" or "copying" not in phases
        assert attack.closing == "replay" or "rehearsing" not in phases


def test_what_found_no_victim_comes_again_but_not_for_ever():
    schedule = Schedule(1, longest_s=30.0)
    missed = schedule.draw(1).strikes[0]
    times = 0
    while len(schedule._pool) and times < 10:
        schedule._pool = []
        schedule.put_back(missed)
        times += 1
    assert times == 3


def test_no_more_strikes_than_asked_for():
    schedule = Schedule(2, longest_s=30.0)
    assert {len(schedule.draw(1).strikes) for _ in range(50)} == {1}


def test_frozen_stores_and_reset_connections_do_not_count_as_kills():
    beside = {"source store frozen", "target store frozen", "link reset"}
    assert set(VICTIMS) - COUNTED == beside
    assert {"link cut"} == COUNTED - KILLED
    hits = [Kill("mig-1", "copying", victim, 0.1) for victim in VICTIMS]
    assert num_counted(hits) == len(VICTIMS) - len(beside)


def test_the_first_rank_is_killed_too_and_not_only_the_last():
    drawn = {strike.victim for attack in attacks(4) for strike in attack.strikes}
    assert {"source rank", "source rank 0", "target rank", "target rank 0"} <= drawn
