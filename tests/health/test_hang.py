import numpy as np
import pytest

from cloudshift_lab.health.hang import (
    confirm_hang,
    find_dead,
    find_hang,
    hang_limit_s,
    name_hang,
)
from cloudshift_lab.health.windows import ProgressWindow


def window(**values: object) -> ProgressWindow:
    usual: dict[str, object] = {
        "now": 100.0, "steps": np.array([50, 50, 49, 50]), "collectives": np.array([3, 3, 0, 3]),
        "still_s": np.full(4, 11.0), "sections": ("", "", "data", ""), "step_s": np.full(9, 0.5),
    }  # fmt: skip
    return ProgressWindow(**{**usual, **values})  # type: ignore[arg-type]


def test_the_rank_that_is_furthest_behind_is_named() -> None:
    (found,) = find_hang(window())
    assert found.rule_id == "hang.rank"
    assert found.ranks == (2,)
    assert "step 49" in found.words


def test_within_a_step_the_rank_with_the_fewest_collectives_is_named() -> None:
    (found,) = find_hang(window(steps=np.full(4, 50), collectives=np.array([7, 6, 7, 7])))
    assert found.ranks == (1,)


@pytest.mark.parametrize(("step_s", "limit_s"), [(0.5, 10.0), (4.0, 20.0)])
def test_the_limit_is_ten_seconds_or_five_median_steps(step_s: float, limit_s: float) -> None:
    now = window(step_s=np.full(9, step_s))
    assert hang_limit_s(now) == limit_s
    assert find_hang(window(step_s=np.full(9, step_s), still_s=np.full(4, limit_s - 0.1))) == ()
    assert find_hang(window(step_s=np.full(9, step_s), still_s=np.full(4, limit_s + 0.1)))


def test_one_rank_that_still_moves_is_no_hang() -> None:
    assert find_hang(window(still_s=np.array([60.0, 60.0, 2.0, 60.0]))) == ()


def test_a_declared_section_has_its_own_limit() -> None:
    saving = {"limits_s": {"data": 60.0}}
    assert find_hang(window(still_s=np.full(4, 59.0), **saving)) == ()
    assert find_hang(window(still_s=np.full(4, 61.0), **saving))


def test_all_at_the_same_place_is_the_runs_hang_and_nobodys() -> None:
    same = {"steps": np.full(4, 50), "collectives": np.full(4, 3)}
    (found,) = find_hang(window(**same, waits_in=dict.fromkeys(range(4), "gloo:all_reduce")))
    assert (found.rule_id, found.ranks) == ("hang.run", ())
    assert "gloo:all_reduce" in found.words


def test_of_ranks_at_the_same_place_the_one_in_no_collective_is_named() -> None:
    same = {"steps": np.full(4, 50), "collectives": np.full(4, 3)}
    waits = {0: "gloo:all_reduce", 1: "gloo:all_reduce", 3: "gloo:all_reduce"}
    (found,) = find_hang(window(**same, waits_in=waits))
    assert found.ranks == (2,)
    assert "gloo:all_reduce" in found.words


def test_stacks_prove_a_hang_when_only_the_culprit_waits_for_nobody() -> None:
    (found,) = find_hang(window())
    waiting = "Thread 1 (idle)\n    all_reduce (torch/distributed.py:3)\n    step (train.py:9)"
    culprit = "Thread 1 (active)\n    read (loader.py:7)\n    main (train.py:5)"
    proven = confirm_hang(found, {0: waiting, 2: culprit})
    assert proven.deterministic
    assert any(row.value == "read (loader.py:7)" for row in proven.evidence)
    assert not confirm_hang(found, {0: waiting, 2: waiting}).deterministic
    assert not confirm_hang(found, {0: culprit, 2: culprit}).deterministic
    assert not confirm_hang(found, {2: culprit}).deterministic


def test_of_ranks_at_the_same_place_the_stacks_tell_who_is_waited_for() -> None:
    same = {"steps": np.full(4, 50), "collectives": np.full(4, 3)}
    (found,) = find_hang(window(**same))
    assert (found.rule_id, found.ranks) == ("hang.run", ())
    backward = "    _engine_run_backward (torch/autograd/graph.py:829)\n    main (train.py:9)"
    loading = "    wait (threading.py:331)\n    get (queue.py:171)\n    main (train.py:5)"
    named = name_hang(found, {0: backward, 1: backward, 2: loading, 3: backward})
    assert (named.rule_id, named.ranks, named.subject.name) == ("hang.rank", (2,), "2")
    assert named.deterministic
    assert "wait (threading.py:331)" in named.words


def test_stacks_that_tell_nobody_apart_name_nobody_and_are_shown() -> None:
    same = {"steps": np.full(2, 50), "collectives": np.full(2, 3)}
    (found,) = find_hang(window(**same, still_s=np.full(2, 20.0), sections=("",) * 2))
    waiting = "    all_reduce (torch/distributed.py:3)"
    named = name_hang(found, {0: waiting, 1: waiting})
    assert (named.rule_id, named.deterministic) == ("hang.run", False)
    assert named.evidence[-1].value == "all_reduce (torch/distributed.py:3)"
    assert name_hang(found, {}).ranks == ()


def test_where_most_ranks_are_at_one_place_those_elsewhere_are_named_without_proof() -> None:
    same = {"steps": np.full(4, 50), "collectives": np.full(4, 3)}
    (found,) = find_hang(window(**same))
    there, here = "    item (train.py:9)", "    read (loader.py:3)"
    named = name_hang(found, {0: there, 1: there, 2: there, 3: here})
    assert (named.ranks, named.deterministic) == ((3,), False)


def test_a_dead_rank_is_proof() -> None:
    killed, ended = find_dead({3: -9, 5: 1}, 7.0, {3: "n1"})
    assert killed.deterministic
    assert killed.ranks == (3,)
    assert "signal 9" in killed.words
    assert "n1" in killed.words
    assert "status 1" in ended.words


def test_no_ranks_no_hang() -> None:
    none = np.zeros(0, np.int64)
    assert find_hang(window(steps=none, collectives=none, still_s=np.zeros(0), sections=())) == ()


def test_the_rank_that_stopped_is_named_wherever_it_stopped() -> None:
    rng = np.random.default_rng(20261123)
    for _ in range(300):
        ranks = int(rng.integers(2, 65))
        culprit = int(rng.integers(ranks))
        steps, collectives = np.full(ranks, 70), np.full(ranks, int(rng.integers(1, 9)))
        if rng.random() < 0.5:  # before its step's first collective, while others are in it
            steps[culprit], collectives[culprit] = 69, 0
        else:
            collectives[culprit] -= 1
        waits = {
            rank: "gloo:all_reduce"
            for rank in range(ranks)
            if rank != culprit and rng.random() < 0.5
        }
        (found,) = find_hang(
            window(
                steps=steps,
                collectives=collectives,
                still_s=rng.uniform(11, 90, ranks),
                sections=("",) * ranks,
                waits_in=waits,
            )
        )
        assert found.ranks == (culprit,)
