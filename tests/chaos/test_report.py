"""What a chaos report says, and what it leaves to be said by others."""

from cloudshift_lab.sim.bench import surroundings
from cloudshift_lab.sim.chaos.report import NEVER_KILLED, Report, text_of


def report(**changes):
    given = {
        "seed": 1, "command": "chaos", "date": "", "commit": "abc", "seconds": 9.0,
        "machine": surroundings.machine(), "kills": 5, "killed": 4, "cut": 1, "others": 3,
        "wanted": 5, "never_killed": NEVER_KILLED, "by_phase": {}, "by_victim": {},
        "outcomes": {}, "steps": 10, "compared": 10, "lost_steps_planned": 0,
        "lost_steps_killed": 0, "split_brains": 0, "moves": (), "violations": (),
    }  # fmt: skip
    return Report(**{**given, **changes})


def test_kills_are_told_apart_from_cuts_and_from_other_faults():
    first = text_of(report()).splitlines()[0]
    assert "4 processes killed (kill -9) and 1 link cuts" in first
    assert "3 other faults (stores frozen, connections reset)" in first


def test_what_is_never_killed_is_named():
    said = text_of(report())
    assert all(each in said for each in NEVER_KILLED)


def test_other_faults_do_not_make_up_for_kills_that_were_not_delivered():
    assert report().passed
    assert not report(kills=4, others=30).passed
