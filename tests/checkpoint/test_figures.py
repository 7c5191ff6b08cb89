"""How good a step was is known to whoever owns the run next."""

import math

import pytest

from cloudshift_lab.checkpoint.figures import Figures
from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.storage.log import RunLog
from cloudshift_lab.storage.store import open_store


def commits(*steps):
    log = RunLog(open_store("memory://figures-log"), f"run-{'-'.join(map(str, steps))}")
    log.acquire(generation=1, owner="me", nonce="a")
    for step in steps:
        log.commit(
            generation=1, step=step, nonce=f"c{step}", manifest_digest=f"{step:064x}",
            manifest_key=f"runs/r/steps/{step:08d}/g1/manifest.{step:064x}.json",
        )  # fmt: skip
    return log.sync().commits


@pytest.fixture
def store(tmp_path):
    return open_store(f"file://{tmp_path}/store")


def test_a_figure_is_found_by_the_next_owner_of_steps_that_exist(store):
    found, first = commits(1, 2, 3), Figures(store, "run")
    first.learn(f"{1:064x}", 2.5)
    first.learn(f"{2:064x}", math.nan)
    first.learn(f"{9:064x}", 1.0)
    first.note(found)
    again = Figures(store, "run").per_step(found)
    assert again[1] == 2.5 and math.isnan(again[2]) and set(again) == {1, 2}


def test_what_was_noted_before_stays_when_more_is_noted(store):
    found = commits(1, 2)
    for step, figure in ((1, 5.0), (2, 4.0)):
        owner = Figures(store, "run")
        owner.learn(f"{step:064x}", figure)
        owner.note(found)
    assert Figures(store, "run").per_step(found) == {1: 5.0, 2: 4.0}


def test_a_store_from_before_has_no_figures_and_a_damaged_note_is_said_once(store):
    found = commits(1, 2)
    assert Figures(store, "run").per_step(found) == {}
    store.put("runs/run/figures.json", b'{"figures": 7')
    figures = Figures(store, "run")
    with pytest.raises(Corrupt, match=r"figures\.json is not readable"):
        figures.per_step(found)
    assert figures.per_step(found) == {}
    figures.learn(f"{2:064x}", 1.0)
    figures.note(found)
    assert Figures(store, "run").per_step(found) == {2: 1.0}
