import time

from cloudshift_lab.core.world import REAL_WORLD


def test_ids_carry_their_prefix_and_are_never_the_same():
    ids = {REAL_WORLD.new_id("run") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(name) == len("run-") + 12 and name.startswith("run-") for name in ids)


def test_the_real_clocks_are_the_operating_systems():
    before = time.monotonic(), time.time()
    found = REAL_WORLD.monotonic(), REAL_WORLD.now()
    assert before[0] <= found[0] <= time.monotonic()
    assert before[1] <= found[1] <= time.time()


def test_sleeping_takes_at_least_as_long_as_asked():
    start = REAL_WORLD.monotonic()
    REAL_WORLD.sleep(0.01)
    assert REAL_WORLD.monotonic() - start >= 0.01


def test_jitter_lies_between_nought_and_one():
    assert all(0 <= REAL_WORLD.random() < 1 for _ in range(100))
