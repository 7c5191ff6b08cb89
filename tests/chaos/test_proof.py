"""The judge of the chaos finds what it is there to find."""

import pytest

from cloudshift_lab.sim.bench.trace import Traced
from cloudshift_lab.sim.chaos import proof
from cloudshift_lab.sim.chaos.proof import Published
from cloudshift_lab.storage.logstate import LogRecord, fold


def log(*entries):
    """A log of (kind, generation, step) with the owner ``o<generation>``."""
    records = tuple(
        LogRecord(
            seq=seq, kind=kind, generation=generation, owner=f"o{generation}", nonce=f"n{seq}",
            at=0.0, step=step, to_url="there" if kind == "handover" else None,
            manifest_key=f"k{step}", manifest_digest=f"d{step}",
        )
        for seq, (kind, generation, step) in enumerate(entries)
    )  # fmt: skip
    return fold(records)


HERE = log(("acquire", 1, None), ("commit", 1, 10), ("commit", 1, 20), ("handover", 2, None))
THERE = log(("acquire", 2, None), ("commit", 2, 20), ("commit", 2, 30))
ROWS = [Published(1, 0, s, 1.0 / s) for s in range(1, 21)] + [
    Published(2, 0, s, 1.0 / s) for s in range(21, 31)
]


def test_a_clean_move_has_nothing_to_be_said_against():
    states = [HERE, THERE]
    assert proof.one_owner(states, 2) == proof.fenced_commits(states) == []
    assert proof.commits_go_on(states) == []
    assert proof.published_twice(ROWS, states, frozenset()) == []
    assert proof.lost_between(ROWS, range(1, 2), 20) == 0


def test_two_owners_none_and_another_one_than_the_conductors_are_found():
    zombie = log(("acquire", 1, None), ("commit", 1, 10))
    assert "2 owners" in proof.one_owner([zombie, THERE], 2)[0]
    assert "0 owners" in proof.one_owner([HERE], 2)[0]
    assert "believes in 3" in proof.one_owner([HERE, THERE], 3)[0]


@pytest.mark.parametrize(
    "late",
    [
        [("acquire", 1, None), ("handover", 2, None), ("commit", 1, 25)],
        [("acquire", 1, None), ("acquire", 2, None), ("commit", 1, 25)],
        [("acquire", 1, None), ("release", 1, None), ("commit", 1, 25)],
        [("acquire", 1, None), ("handover", 2, None), ("cancel", 1, None)],
    ],
)
def test_what_lands_after_the_fence_is_found(late):
    assert len(proof.fenced_commits([log(*late)])) == 1


def test_a_step_that_is_committed_twice_or_goes_back_is_found():
    again = log(("acquire", 2, None), ("commit", 2, 20), ("commit", 2, 20))
    back = log(("acquire", 2, None), ("commit", 2, 15))
    assert "committed step 20 after 20" in proof.commits_go_on([HERE, again])[0]
    assert "committed step 15 after 20" in proof.commits_go_on([HERE, back])[0]


def test_a_step_that_is_published_twice_is_found_and_one_of_a_revived_agent_is_allowed():
    early = [*ROWS, Published(2, 0, 20, 0.05)]
    assert "published step 20 again" in proof.published_twice(early, [HERE, THERE], frozenset())[0]
    twice = [*ROWS, Published(2, 0, 25, 1 / 25)]
    assert "step 25 twice" in proof.published_twice(twice, [HERE, THERE], frozenset())[0]
    assert proof.published_twice(twice, [HERE, THERE], frozenset({2})) == []


def test_steps_beyond_what_the_next_owner_began_from_are_lost():
    rows = [*ROWS, Published(1, 0, 21, 1.0), Published(1, 1, 21, 1.0)]
    assert proof.lost_between(rows, range(1, 2), 20) == 1
    assert proof.lost_between(rows, range(1, 1), 20) == 0


def test_a_loss_that_is_not_the_controls_and_a_step_that_nobody_did_are_found():
    control = {(0, s): 1.0 / s for s in range(1, 31)}
    trace = [Traced(0, s, s, s + 1, 1.0 / s, 9) for s in range(1, 31)]
    assert proof.other_losses(ROWS, control) == proof.other_traces(trace, control) == []
    assert proof.missing_steps(trace, 30) == []
    assert len(proof.other_losses([Published(1, 0, 3, 0.3)], control)) == 1
    assert len(proof.other_traces([Traced(0, 3, 0, 1, 0.3, 9)], control)) == 1
    assert "[5]" in proof.missing_steps([t for t in trace if t.step != 5], 30)[0]


def test_a_step_whose_first_rank_died_with_the_gradients_in_hand_counts_by_the_other_ranks_line():
    trace = [Traced(rank, s, s, s + 1, 1.0, 9 + rank) for s in range(1, 4) for rank in (0, 1)]
    torn = [each for each in trace if (each.rank, each.step) != (0, 2)]
    assert proof.missing_steps(torn, 3) == []
    assert "[2]" in proof.missing_steps([each for each in torn if each.step != 2], 3)[0]


def test_a_cancel_after_a_failed_owner_released_its_log_is_no_split_brain():
    released = log(
        ("acquire", 1, None), ("commit", 1, 10), ("release", 1, None), ("cancel", 1, None)
    )
    assert proof.fenced_commits([released]) == []
    handed = log(("acquire", 1, None), ("handover", 2, None), ("cancel", 1, None))
    assert len(proof.fenced_commits([handed])) == 1
