from cloudshift_lab.health.corruption import find_corruption
from cloudshift_lab.health.windows import ReplicaWindow


def look(*hashes: str, also: tuple[str, ...] = ()) -> list[tuple[str, tuple[int, ...]]]:
    ranks = tuple(range(len(hashes)))
    named = {"w": hashes, "b": also or ("same",) * len(hashes)}
    return [(each.rule_id, each.ranks) for each in find_corruption(ReplicaWindow(7, ranks, named))]


def test_equal_replicas_are_fine() -> None:
    assert look("a", "a", "a") == []
    assert look("a") == []


def test_of_three_the_odd_one_is_named() -> None:
    assert look("a", "x", "a") == [("corruption.rank", (1,))]


def test_of_two_nobody_is_named() -> None:
    assert look("a", "x") == [("corruption.run", (0, 1))]


def test_without_a_majority_nobody_is_named() -> None:
    assert look("a", "a", "x", "x") == [("corruption.run", (0, 1, 2, 3))]
    assert look("a", "b", "c") == [("corruption.run", (0, 1, 2))]


def test_two_odd_ones_of_five_are_both_named() -> None:
    assert look("a", "x", "a", "y", "a") == [
        ("corruption.rank", (1,)),
        ("corruption.rank", (3,)),
    ]


def test_a_tensor_without_a_majority_is_said_beside_one_with() -> None:
    found = look("a", "a", "a", "x", also=("p", "p", "q", "q"))
    assert found == [("corruption.rank", (3,)), ("corruption.run", (0, 1, 2, 3))]


def test_it_is_proof_and_says_what_to_do() -> None:
    (found,) = find_corruption(ReplicaWindow(7, (4, 5, 6), {"w": ("a", "a", "x")}))
    assert found.deterministic
    assert found.ranks == (6,)
    assert found.action == "replace the node"
    assert "step 7" in found.words
