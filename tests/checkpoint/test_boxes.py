import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudshift_lab.checkpoint.boxes import (
    Region,
    TensorBox,
    check_box,
    covers,
    cut,
    grid_cell,
    intersect,
    whole,
)
from cloudshift_lab.core.errors import Corrupt, Unsupported, UsageError

shapes = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)


@st.composite
def boxes_in(draw, shape):
    offset = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return Region(
        offset, tuple(draw(st.integers(1, n - o)) for n, o in zip(shape, offset, strict=True))
    )


def test_the_grid_of_a_matrix_is_whole_rows_between_the_limits():
    assert grid_cell((8192, 512), 2) == (256, 512)  # 8 MiB: 256 KiB
    assert grid_cell((32_768, 1024), 4) == (128, 1024)  # 128 MiB: 512 KiB
    assert grid_cell((100_000, 1024), 4) == (256, 1024)  # 400 MB: 1 MiB
    assert grid_cell((1000,), 4) == (1000,)
    assert grid_cell((), 4) == ()
    assert grid_cell((0, 7), 4) == (1, 7)


def test_a_row_longer_than_a_chunk_is_cut_along_the_next_axis():
    assert grid_cell((3, 50_000_000), 4) == (1, 262144)
    assert grid_cell((2, 3, 1_000_000), 4) == (1, 1, 65536)


@given(st.lists(st.integers(0, 10**6), max_size=5).map(tuple), st.sampled_from([1, 2, 4, 8, 16]))
def test_a_cell_never_exceeds_the_limit(shape, itemsize):
    cell = grid_cell(shape, itemsize)
    assert len(cell) == len(shape)
    assert math.prod(cell) * itemsize <= 1024 * 1024
    assert all(1 <= c <= max(1, n) for c, n in zip(cell, shape, strict=True))


@given(st.data(), shapes)
def test_the_pieces_of_a_box_tile_it_without_overlap_and_inside_cells(data, shape):
    box = data.draw(boxes_in(shape))
    cell = tuple(data.draw(st.integers(1, 5)) for _ in shape)
    counts = np.zeros(shape, int)
    for region in cut(box, cell).regions():
        counts[region.slices_in(whole(shape))] += 1
        first = [o // c for o, c in zip(region.offset, cell, strict=True)]
        last = [(z - 1) // c for z, c in zip(region.stop, cell, strict=True)]
        assert first == last
    expected = np.zeros(shape, int)
    expected[box.slices_in(whole(shape))] = 1
    assert (counts == expected).all()


@given(st.data(), shapes)
def test_overlapping_finds_exactly_the_pieces_that_share_an_element(data, shape):
    box, wanted = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    cuts = cut(box, tuple(data.draw(st.integers(1, 4)) for _ in shape))
    slow = [(i, r) for i, r in enumerate(cuts.regions()) if intersect(r, wanted)]
    part = intersect(box, wanted)
    assert (list(cuts.overlapping(part)) if part else []) == slow


@given(st.data(), shapes)
def test_covers_agrees_with_painting_every_element(data, shape):
    regions = data.draw(st.lists(boxes_in(shape), max_size=6))
    target = data.draw(boxes_in(shape))
    painted = np.zeros(shape, bool)
    for region in regions:
        painted[region.slices_in(whole(shape))] = True
    assert covers(regions, target) == painted[target.slices_in(whole(shape))].all()


def test_an_empty_tensor_is_covered_by_nothing_and_has_no_chunks():
    assert covers([], whole((0, 2**60)))
    assert cut(whole((0, 2**60)), (1, 1)).num_chunks == 0


def test_absurdly_crossed_boxes_are_refused_before_they_take_the_memory():
    regions = [Region((i, i), (1, 1)) for i in range(20_000)]
    with pytest.raises(Corrupt):
        covers(regions, whole((20_000, 20_000)))


@pytest.mark.parametrize(
    "offset, shape", [((0,), (5, 5)), ((-1, 0), (1, 1)), ((0, 0), (6, 5)), ((5, 5), (1, 0))]
)
def test_a_box_outside_its_tensor_is_refused(offset, shape):
    with pytest.raises(UsageError, match="does not lie inside"):
        check_box(TensorBox("t", "float32", (5, 5), offset, shape))


def test_an_unknown_dtype_is_refused_by_name():
    with pytest.raises(Unsupported, match="float4"):
        check_box(TensorBox("t", "float4", (5,), (0,), (5,)))
