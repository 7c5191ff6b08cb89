"""Which step survivors stage together after a death, and who stands for whom."""

from __future__ import annotations

from pathlib import Path

from cloudshift_lab.agent.failures import first_failure
from cloudshift_lab.agent.rescue import RescuePlan, plan_rescue
from cloudshift_lab.core.rescue import OwnPage, Standing

ALL = frozenset(range(4))


def at(step: int, **changes: object) -> Standing:
    """A rank behind the boundary of a step, all of whose model every other has too."""
    fields: dict[str, object] = {
        "pid": 1, "is_able": True, "completed": step, "is_stepping": False,
        "own": (step - 1, step), "covers": ALL,
    }  # fmt: skip
    return Standing(**{**fields, **changes})  # type: ignore[arg-type]


def test_survivors_of_one_step_stage_their_own_shares_and_one_that_of_the_dead() -> None:
    standings = {rank: at(7) for rank in range(4)}
    assert plan_rescue(standings, {2}) == RescuePlan(7, {0: (0, 2), 1: (1,), 3: (3,)})


def test_a_rank_that_died_within_the_optimizer_is_known_from_when_it_began() -> None:
    standings: dict[int, Standing | None] = {rank: at(8) for rank in range(4)}
    standings[1] = at(7, is_stepping=True, guessed=8)
    assert plan_rescue(standings, {1}) == RescuePlan(8, {0: (0, 1), 2: (2,), 3: (3,)})


def test_what_nobody_knows_of_the_dead_is_not_made_up() -> None:
    standings: dict[int, Standing | None] = {rank: at(8) for rank in range(4)}
    standings[1] = at(7, is_stepping=True, guessed=None)
    assert plan_rescue(standings, {1}) is None


def test_survivors_that_are_a_step_apart_stage_the_older_step_if_only_that_is_known() -> None:
    standings: dict[int, Standing | None] = {0: at(8), 1: at(7), 2: at(7), 3: at(8)}
    assert plan_rescue(standings, {2}) == RescuePlan(7, {1: (1, 0, 2, 3)})


def test_a_rank_within_its_optimizer_stages_nothing() -> None:
    standings: dict[int, Standing | None] = {0: at(7, is_stepping=True), 1: at(7)}
    assert plan_rescue(standings, {0}) == RescuePlan(7, {1: (1, 0)})
    assert plan_rescue(standings, {1}) is None


def test_parts_of_a_model_that_died_with_their_only_holder_cannot_be_staged() -> None:
    standings: dict[int, Standing | None] = {
        0: at(7, covers=frozenset({2})), 1: at(7, covers=frozenset({3})),
        2: at(7, covers=frozenset({0})), 3: at(7, covers=frozenset({1})),
    }  # fmt: skip
    assert plan_rescue(standings, {2}) == RescuePlan(7, {0: (0, 2), 1: (1,), 3: (3,)})
    assert plan_rescue(standings, {0, 2}) is None


def test_nothing_is_staged_before_all_ranks_have_done_a_step_or_when_one_cannot_be_known() -> None:
    assert plan_rescue({0: at(7), 1: None}, {0}) is None
    assert plan_rescue({0: at(7), 1: at(7, is_able=False)}, {1}) is None
    assert plan_rescue({0: at(7, completed=None, own=()), 1: at(7, completed=None)}, {1}) is None


def test_a_page_tells_what_a_rank_had_at_its_last_two_boundaries(tmp_path: Path) -> None:
    page = OwnPage.create(tmp_path, 3)
    seen = OwnPage.open(tmp_path, 3)
    assert seen is not None
    assert (seen.standing().completed, seen.standing().own) == (None, ())
    page.cover({0, 2})
    for step in (5, 6):
        page.step_begins(step, b"own %d" % step)
        assert seen.standing().is_stepping
        page.step_ends(step, b"own %d" % step)
    standing = seen.standing()
    assert (standing.completed, set(standing.own), standing.covers) == (6, {5, 6}, {0, 2})
    assert [seen.own(step) for step in (4, 5, 6)] == [None, b"own 5", b"own 6"]
    assert not standing.is_stepping and standing.guessed == 6


def test_a_guess_is_trusted_only_if_the_last_one_was_right(tmp_path: Path) -> None:
    page = OwnPage.create(tmp_path, 0)
    page.step_begins(1, b"before")
    page.step_ends(1, b"drawn since")
    page.step_begins(2, b"now")
    assert page.standing().guessed is None and not page.standing().has_own(2)
    page.step_ends(2, b"now")
    page.step_begins(3, b"then")
    assert page.standing().has_own(3) and page.own(3) == b"then"


def test_a_rank_that_ended_without_a_word_is_named(tmp_path: Path) -> None:
    error = first_failure(tmp_path, "", {2})
    assert (error.rank, error.message) == (2, "rank 2 ended without a word; see its log")
