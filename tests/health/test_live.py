"""Rows of a run as it goes on: what the watch says of them, and what it keeps to itself."""

from __future__ import annotations

import numpy as np
import pytest

from cloudshift_lab.core.step_rows import StepRows
from cloudshift_lab.health.finding import Finding
from cloudshift_lab.health.live import AgentWord, LiveWatch

RANKS = 4
T0 = 1_764_000_000.0


def rows(
    steps: range, *, ranks: int = RANKS, step_s: float = 0.5, losses: object = None,
    generation: int = 1, begin: float = T0, sections: object = None,
) -> StepRows:  # fmt: skip
    """Every rank reports every step at the same moment."""
    num = len(steps) * ranks
    step = np.repeat(np.array(steps, np.int64), ranks)
    rank = np.tile(np.arange(ranks), len(steps))
    loss = np.full(num, 2.0) if losses is None else np.repeat(np.array(losses, float), ranks)
    return StepRows(
        generation=generation, at=begin + step_s * step.astype(float), rank=rank, step=step,
        loss=loss, has_loss=np.isfinite(loss), step_s=np.full(num, step_s),
        sections_s={} if sections is None else sections(step, rank),
    )  # fmt: skip


def word(now: float, **changes: object) -> AgentWord:
    given = {"is_training": True, "step": None, "said_at": now - 1, "silent_s": 1.0, **changes}
    return AgentWord(now=now, **given)


def rules(found: tuple[Finding, ...]) -> set[str]:
    return {each.rule_id for each in found}


def watched(*batches: StepRows) -> LiveWatch:
    watch = LiveWatch(ranks_per_node=RANKS)
    for batch in batches:
        watch.take(batch)
    return watch


def test_a_run_that_goes_on_has_no_findings() -> None:
    watch = watched(rows(range(1, 200)))
    assert watch.look(word(T0 + 100)) == ()


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.5, 10.0), (4.0, 20.0)])
def test_a_hang_is_found_after_ten_seconds_or_five_steps_and_not_before(
    step_s: float, limit_s: float
) -> None:
    watch = watched(rows(range(1, 31), step_s=step_s))
    last = T0 + 30 * step_s
    assert watch.look(word(last + limit_s - 0.5)) == ()
    (found,) = watch.look(word(last + limit_s + 0.5))
    assert (found.rule_id, found.severity, found.action) == (
        "hang.run", "critical", "restart the run",
    )  # fmt: skip
    assert f"for {limit_s + 0.5:.0f} s" in found.words


def test_the_rank_that_did_not_end_the_step_of_the_others_is_named() -> None:
    whole, last = rows(range(1, 31)), rows(range(31, 32))
    others = last.rank != 2
    part = StepRows(
        generation=1, at=last.at[others], rank=last.rank[others], step=last.step[others],
        loss=last.loss[others], has_loss=last.has_loss[others], step_s=last.step_s[others],
    )  # fmt: skip
    (found,) = watched(whole, part).look(word(T0 + 15.5 + 11))
    assert (found.rule_id, found.ranks) == ("hang.rank", (2,))


@pytest.mark.parametrize(
    "changes",
    [{"is_training": False}, {"silent_s": 30.0}, {"step": 33}, {"healed_after": 30}],
)  # fmt: skip
def test_no_hang_is_found_where_rows_are_late_or_the_run_need_not_train(
    changes: dict[str, object],
) -> None:
    watch = watched(rows(range(1, 31)))
    assert watch.look(word(T0 + 60, **changes)) == ()


def test_pauses_that_came_twice_are_how_the_run_is_and_one_is_not() -> None:
    def with_pauses(num: int) -> LiveWatch:
        step_s, at = np.full(60, 0.5), T0
        step_s[20 : 20 + num * 20 : 20] = 15.0
        times = at + np.cumsum(step_s)
        one = rows(range(1, 61), ranks=1)
        return watched(
            StepRows(
                generation=1, at=times, rank=one.rank, step=one.step, loss=one.loss,
                has_loss=one.has_loss, step_s=step_s,
            )
        )  # fmt: skip

    assert with_pauses(1).hang_limit_s() == pytest.approx(10.0)
    assert with_pauses(2).hang_limit_s() == pytest.approx(30.0)


def test_a_clock_that_is_far_off_is_no_hang_and_hides_none() -> None:
    watch = watched(rows(range(1, 31)))
    last = T0 + 15.0
    assert watch.look(word(last + 302, said_at=last + 1)) == ()  # ours is five minutes ahead
    assert rules(watch.look(word(last + 315, said_at=last + 14))) == {"hang.run"}


def test_a_loss_that_is_no_number_is_found_although_json_cannot_carry_it() -> None:
    losses = [2.0] * 40 + [np.nan] * 3
    (found,) = watched(rows(range(1, 44), losses=losses)).look(word(T0 + 22))
    assert (found.rule_id, found.severity) == ("loss.nan", "critical")
    assert "at step 41" in found.words


def test_a_script_that_reports_a_loss_now_and_then_only_has_no_broken_loss() -> None:
    losses = [2.0 if step % 10 == 0 else np.nan for step in range(1, 300)]
    assert watched(rows(range(1, 300), losses=losses)).look(word(T0 + 150)) == ()


def test_a_leap_of_the_loss_is_found_and_goes_when_the_steps_are_done_again() -> None:
    rng = np.random.default_rng(5)
    losses = 2.0 + 0.01 * rng.standard_normal(104)
    losses[100:] = 9.0
    watch = watched(rows(range(1, 105), losses=losses))
    assert rules(watch.look(word(T0 + 52))) == {"loss.spike"}
    watch.take(rows(range(96, 106), begin=T0 + 20, losses=[2.0] * 10))
    assert watch.look(word(T0 + 73)) == ()


def sections_with(slow: int | None, since: int = 200) -> object:
    def sections(step: np.ndarray, rank: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(11)
        own_s = 0.2 * np.exp(0.02 * rng.standard_normal(len(step)))
        own_s = np.where((rank == slow) & (step >= since), own_s * 1.4, own_s)
        return {"forward": own_s, "backward": 0.5 - own_s}

    return sections


def test_a_slow_rank_is_named_by_its_own_sections_and_stands_while_it_is_slow() -> None:
    watch = watched(rows(range(1, 320), sections=sections_with(slow=2)))
    found = watch.look(word(T0 + 160))
    assert {(each.rule_id, each.ranks) for each in found} == {("straggler.rank", (2,))}
    assert "growth of forward" in {each.what for each in found[0].evidence}
    watch.take(rows(range(320, 560), sections=sections_with(slow=None)))
    assert watch.look(word(T0 + 280)) == ()


def test_without_sections_no_rank_is_called_slow_and_the_watch_says_why() -> None:
    watch = watched(rows(range(1, 320)))
    slow = rows(range(320, 420), step_s=0.8, begin=T0 - 96)
    watch.take(slow)
    assert rules(watch.look(word(float(slow.at[-1]) + 1))) == {"slowdown.run"}
    seen = {each.what: each.seen for each in watch.looked(word(T0 + 240))}
    assert "session.section" in seen["slow ranks"]


def test_rows_that_come_twice_or_from_an_older_attempt_change_nothing() -> None:
    watch = watched(rows(range(1, 50)))
    seen = watch.looked(word(T0 + 25))
    watch.take(rows(range(30, 50)))
    watch.take(rows(range(1, 90), generation=0))
    assert watch.looked(word(T0 + 25)) == seen


def test_a_newer_attempt_begins_anew() -> None:
    watch = watched(rows(range(1, 50), losses=[np.nan] * 49))
    watch.take(rows(range(45, 60), generation=2, begin=T0 + 100))
    assert watch.generation == 2
    assert watch.newest_at == T0 + 100 + 59 * 0.5
    assert watch.look(word(T0 + 130)) == ()
