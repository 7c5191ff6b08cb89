import threading

import pyarrow as pa
import pytest

from cloudshift_lab.core.errors import Corrupt, Unavailable
from cloudshift_lab.telemetry.intake import Intake, Offered

ROWS = pa.table({"x": [1]})


class Shelf:
    """Stores groups; fails where a batch's id says so."""

    def __init__(self):
        self.groups = []
        self.open = threading.Event()
        self.open.set()

    def store(self, group):
        assert self.open.wait(30)
        if any(batch.batch_id.startswith("bad") for batch in group):
            raise Corrupt("bad batch; mend it")
        if any(batch.batch_id.startswith("bug") for batch in group):
            raise RuntimeError("bug")
        self.groups.append([batch.batch_id for batch in group])
        return [True] * len(group)


@pytest.fixture
def shelf():
    return Shelf()


def offer(intake, *names, at_once=False):
    return [intake.offer(Offered(name, "step", ROWS), at_once=at_once) for name in names]


def test_batches_that_come_together_are_stored_together(shelf):
    intake = Intake(shelf.store, gather_s=0.2)
    for stored in offer(intake, "a", "b", "c"):
        assert stored.result(30) is True
    intake.close()
    assert shelf.groups == [["a", "b", "c"]]


def test_one_that_cannot_wait_takes_the_others_along(shelf):
    intake = Intake(shelf.store, gather_s=3600)
    waiting = offer(intake, "a")
    offer(intake, "b", at_once=True)[0].result(30)
    assert waiting[0].result(30) is True
    intake.close()


def test_a_bad_batch_fails_alone(shelf):
    intake = Intake(shelf.store, gather_s=0.2)
    good, bad, after = offer(intake, "a", "bad", "c")
    assert good.result(30) and after.result(30)
    with pytest.raises(Corrupt):
        bad.result(30)
    intake.close()


def test_what_waits_is_stored_when_it_closes_and_nothing_is_taken_after(shelf):
    shelf.open.clear()
    intake = Intake(shelf.store, gather_s=3600)
    waiting = offer(intake, "a", "b")
    shelf.open.set()
    intake.close()
    assert [stored.result(0) for stored in waiting] == [True, True]
    with pytest.raises(Unavailable):
        offer(intake, "c")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_ever_when_the_thread_dies_of_a_bug(shelf):
    shelf.open.clear()
    intake = Intake(shelf.store, gather_s=0)
    (stored,) = offer(intake, "bug", at_once=True)
    shelf.open.set()
    with pytest.raises(RuntimeError):
        stored.result(30)
    intake.close()
    with pytest.raises(Unavailable):
        offer(intake, "later")
