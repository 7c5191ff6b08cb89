import math

import numpy as np
import pytest

from cloudshift_lab.checkpoint.change import Change


def changed(dtype, before, after) -> Change:
    change = Change(dtype)
    change.add(np.asarray(before), np.asarray(after))
    return change


def test_counts_measures_and_finds_the_largest() -> None:
    change = changed("float32", np.float32([3, 4, 0, 1]), np.float32([3, 1, 4, 1]))
    assert (change.num_compared, change.changed, change.max_abs) == (4, 2, 4.0)
    assert change.norm == pytest.approx(5.0)
    assert change.norm_before == pytest.approx(math.sqrt(26))


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(1)
    before = rng.standard_normal(1000)
    after = before + rng.standard_normal(1000) * (rng.random(1000) < 0.3)
    change = Change("float64")
    for start in range(0, 1000, 130):
        change.add(before[start : start + 130], after[start : start + 130])
    assert change.changed == np.count_nonzero(before != after)
    assert change.norm == pytest.approx(np.linalg.norm(after - before))
    assert change.norm_before == pytest.approx(np.linalg.norm(before))


def test_a_nan_that_stays_has_not_changed_and_one_that_comes_spoils_no_norm() -> None:
    nan, inf = math.nan, math.inf
    change = changed("float32", np.float32([nan, 1, 2, 3]), np.float32([nan, nan, inf, 5]))
    assert (change.changed, change.non_finite, change.norm, change.max_abs) == (3, 2, 2.0, 2.0)


def test_a_sign_of_zero_is_a_change_of_bits_but_not_of_size() -> None:
    change = changed("float64", np.array([0.0]), np.array([-0.0]))
    assert (change.changed, change.norm) == (1, 0.0)


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_norms_neither_overflow_nor_vanish(size: float) -> None:
    change = changed("float64", np.zeros(4), np.full(4, size))
    assert change.norm == pytest.approx(2 * size)


def test_two_huge_opposite_numbers_differ_by_no_finite_number() -> None:
    change = changed("float64", np.array([1.7e308]), np.array([-1.7e308]))
    assert (change.changed, change.non_finite, change.norm) == (1, 1, 0.0)


@pytest.mark.parametrize(
    ("dtype", "before", "after", "distance"),
    [
        ("int64", np.int64([2**60, -(2**63)]), np.int64([2**60 + 1, 2**63 - 1]), 2.0**64),
        ("int64", np.int64([2**60]), np.int64([2**60 + 1]), 1.0),
        ("uint8", np.uint8([250]), np.uint8([5]), 245.0),
        ("int8", np.int8([-128]), np.int8([127]), 255.0),
        ("uint64", np.uint64([2**64 - 1]), np.uint64([0]), 2.0**64),
        ("bool", np.array([True]), np.array([False]), 1.0),
        ("bfloat16", np.uint16([0x3F80]), np.uint16([0x4000]), 1.0),
        ("float16", np.float16([1.0]), np.float16([-0.5]), 1.5),
        ("float8_e5m2", np.uint8([0x3C]), np.uint8([0x40]), 1.0),
        ("float8_e4m3fn", np.uint8([0x38]), np.uint8([0xB8]), 2.0),
        ("float8_e4m3fn", np.uint8([0x00]), np.uint8([0x7E]), 448.0),
        ("float8_e4m3fn", np.uint8([0x00]), np.uint8([0x01]), 2.0**-9),
        ("complex64", np.complex64([1 + 1j]), np.complex64([4 + 5j]), 5.0),
        ("complex128", np.complex128([0]), np.complex128([3 - 4j]), 5.0),
    ],
)
def test_every_kind_of_number_has_its_distance(dtype, before, after, distance) -> None:
    change = changed(dtype, before, after)
    assert change.max_abs == distance
    assert change.changed == len(before)


def test_a_float8_nan_is_not_a_number() -> None:
    assert changed("float8_e4m3fn", np.uint8([0x38]), np.uint8([0x7F])).non_finite == 1


def test_an_empty_part_changes_nothing() -> None:
    change = changed("float32", np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert (change.changed, change.norm, change.num_compared) == (0, 0.0, 0)


def test_a_single_number_without_axes_is_compared() -> None:
    assert changed("float32", np.float32(1.0), np.float32(2.0)).max_abs == 1.0
