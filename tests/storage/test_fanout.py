"""Many calls at a time, as they end."""

import threading

import pytest

from cloudshift_lab.core.errors import NotFound
from cloudshift_lab.storage.fanout import fan_out_each


def test_every_item_comes_back_once_with_its_number():
    found = list(fan_out_each(lambda n: n * n, range(50), 7))
    assert sorted(found) == [(n, n * n) for n in range(50)]


def test_a_call_that_hangs_does_not_hold_back_the_others():
    gate = threading.Event()
    answers = fan_out_each(lambda n: gate.wait(60) and n if n == 0 else n, range(6), 2)
    others = [next(answers)[0] for _ in range(5)]
    gate.set()
    assert sorted(others) == [1, 2, 3, 4, 5]
    assert list(answers) == [(0, 0)]


def test_a_slow_taker_stops_the_calls():
    begun = []
    answers = fan_out_each(lambda n: begun.append(n), range(100), 3)
    for _ in range(4):
        next(answers)
    answers.close()
    assert len(begun) <= 4 + 3


def test_a_failure_ends_it_and_calls_not_begun_are_dropped():
    begun = []

    def call(number):
        begun.append(number)
        if number == 1:
            raise NotFound("gone; look elsewhere")
        return number

    with pytest.raises(NotFound):
        list(fan_out_each(call, range(1000), 2))
    assert len(begun) < 1000


def test_with_one_at_a_time_the_callers_own_thread_makes_every_call():
    threads = {t for _, t in fan_out_each(lambda _: threading.get_ident(), range(3), 1)}
    assert threads == {threading.get_ident()}
