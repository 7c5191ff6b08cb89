"""Trees of a state: nothing in them is lost silently, and hostile ones are refused in words."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.training.flat import check_lists, checked_paths
from cloudshift_lab.training.planners import put_at
from cloudshift_lab.training.tree import pull_tensors, push_tensors

Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("tree", "both"),
    [
        ({"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}, ("root['a/b']", "root['a']['b']")),
        ({3: torch.zeros(1), "3": torch.ones(1)}, ("root[3]", "root['3']")),
        ({"a": [torch.zeros(1)], "a/0": torch.ones(1)}, ("root['a'][0]", "root['a/0']")),
    ],
)
def test_two_tensors_of_one_name_are_refused_with_both_places(tree: Any, both: Any) -> None:
    with pytest.raises(UsageError) as caught:
        pull_tensors(tree, "root", {})
    assert all(place in caught.value.message for place in both)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.zeros(2, dtype=torch.float8_e4m3fnuz), "float8_e4m3fnuz"),
    ],
)
def test_a_tensor_that_no_checkpoint_holds_is_refused_by_its_name(
    tensor: torch.Tensor, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        pull_tensors({"deep": [tensor]}, "root", {})
    assert "root/deep/0" in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
        np.zeros(2, dtype=[("a", "f4")])[0],
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
        np.ma.masked_array([1, 2], mask=[True, False]),
        Pair(1, 2),
    ],
)
def test_a_value_that_would_come_back_as_something_else_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(UsageError, match="root/v"):
        pull_tensors({"v": value}, "root", {})


@pytest.mark.parametrize("dtype", ["<M8[ns]", "<U3", "<c8", ">f4", "?", "<f2"])
def test_plain_arrays_come_back_with_their_types(dtype: str) -> None:
    for shape in ((), (0,), (2, 3)):
        array = np.zeros(shape, dtype=dtype)
        back = push_tensors(pull_tensors(array, "a", {}), {})
        assert isinstance(back, np.ndarray)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes() and back.flags.writeable


@pytest.mark.parametrize(
    "tree",
    [
        ("cloudshift:tensor", "nowhere"),
        ("cloudshift:tensor", ["x"]),
        ("cloudshift:tensor", 7),
        ("cloudshift:array", "nonsense", (1,), b"abcd"),
        ("cloudshift:array", "|O", (1,), b"abcdefgh"),
        ("cloudshift:array", 3, (1,), b"abcd"),
        ("cloudshift:array", "<f4", (2,), b"abcd"),
        ("cloudshift:array", "<f4", (-1,), b"abcd"),
        ("cloudshift:array", "<f4", 1, b"abcd"),
        ("cloudshift:array", "<f4", ("1",), b"abcd"),
        ("cloudshift:array", "<f4", (1,), "abcd"),
        ("cloudshift:array", "<f4", (10**30, 0), b""),
        ("cloudshift:array", "<U0", (10**12,), b""),
        ("cloudshift:array", "<f4,<f4", (1,), b"abcdefgh"),
    ],
)
def test_a_hostile_tag_is_corrupt(tree: Any) -> None:
    with pytest.raises(Corrupt):
        push_tensors({"a": [tree]}, {"x": torch.zeros(1)})


@pytest.mark.parametrize(
    "paths",
    [
        {f"a{i}": (f"a{i}", 999_999) for i in range(100)},
        {"a": ("a", 10**12)},
        {"a": ("a", *([0] * 100))},
        {"a": ("a", -1)},
    ],
)
def test_places_that_would_fill_the_memory_are_refused(paths: Any) -> None:
    with pytest.raises(TypeError):
        check_lists(checked_paths(paths))


def test_the_places_of_a_long_list_and_of_one_with_gaps_are_taken() -> None:
    paths = {f"a.{i}": ("a", i) for i in range(50_000) if i % 100 or i < 1000}
    check_lists(checked_paths(paths))


def test_paths_that_contradict_each_other_are_corrupt() -> None:
    root: dict[str, Any] = {}
    put_at(root, ("a", "b"), 1)
    for path in (("a", "b", "c"), ("a", "b", 0)):
        with pytest.raises(Corrupt, match="cannot be a path"):
            put_at(root, path, 2)
    put_at(root, ("l", 0), 1)
    with pytest.raises(Corrupt, match="cannot be a path"):
        put_at(root, ("l", "x"), 2)
