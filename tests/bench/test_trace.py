"""Pauses, lost steps and differing losses, from what the script itself saw."""

import pytest

from cloudshift_lab.core.errors import CloudshiftError
from cloudshift_lab.sim.bench.trace import (
    Pause,
    Traced,
    append,
    differing_losses,
    pause_after,
    read,
    repeated_or_missing,
    step_s,
)


def done(step, began, ended, *, pid=1, rank=0, loss=None):
    return Traced(rank, step, began, ended, 1.0 / step if loss is None else loss, pid)


SOURCE = [done(1, 0, 1), done(2, 1, 2), done(3, 2, 3)]


def test_lines_of_many_processes_are_read_in_the_order_of_their_ends(tmp_path):
    path = tmp_path / "trace"
    assert read(path) == ()
    for each in (SOURCE[2], SOURCE[0]):
        append(path, each)
    with path.open("ab") as file:
        file.write(b"[0,4,3.0")
    assert read(path) == (SOURCE[0], SOURCE[2])


def test_a_pause_lasts_from_the_last_step_to_the_first_new_one():
    trace = [*SOURCE, done(4, 10, 12, pid=2), done(5, 12, 13, pid=2)]
    assert pause_after(trace, 3) == Pause(still_s=7, new_s=9)


def test_a_step_that_is_repeated_elsewhere_ends_stillness_but_not_the_wait_for_a_new_one():
    trace = [*SOURCE, done(2, 4, 5, pid=2), done(3, 5, 9, pid=2), done(4, 11, 12, pid=2)]
    assert pause_after(trace, 3) == Pause(still_s=2, new_s=9)


def test_what_was_rehearsed_while_the_source_trained_counts_only_where_it_goes_on():
    trace = [*SOURCE, done(1, 0.5, 1.5, pid=2), done(2, 2.5, 3.5, pid=2), done(4, 6, 7, pid=2)]
    assert pause_after(trace, 3) == Pause(still_s=2.5, new_s=4)


def test_a_trace_without_a_step_after_the_last_one_has_no_pause():
    with pytest.raises(CloudshiftError, match="no step 3 and one after it"):
        pause_after(SOURCE, 3)


def test_every_executed_step_is_compared_bit_by_bit_also_one_that_is_repeated():
    again = done(3, 5, 6, pid=2, loss=1.0 / 3 + 1e-16)
    assert differing_losses([*SOURCE, done(3, 5, 6, pid=2)], SOURCE) == 0
    assert again.loss != SOURCE[2].loss
    assert differing_losses([*SOURCE, again, done(4, 6, 7)], SOURCE) == 2


def test_lost_are_steps_that_are_missing_and_those_after_the_sealed_one_that_are_done_twice():
    assert repeated_or_missing(SOURCE, first=1, last=3, sealed=3) == 0
    assert repeated_or_missing(SOURCE[:1], first=1, last=3, sealed=3) == 2
    twice = [*SOURCE, done(3, 5, 6, pid=2)]
    assert repeated_or_missing(twice, first=1, last=3, sealed=3) == 0
    assert repeated_or_missing(twice, first=1, last=3, sealed=2) == 1


def test_times_of_consecutive_steps_within_a_span():
    assert step_s([*SOURCE, done(5, 8, 9)], since=1.5, until=20) == (1,)
