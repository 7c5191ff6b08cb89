"""Boxes of meshes: the same as torch's own shards, each dealt once, to ranks that hold it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from cloudshift_lab.checkpoint.boxes import grid_cell
from cloudshift_lab.core.errors import Unsupported
from cloudshift_lab.training.sharding import (
    Cut,
    Layout,
    LocalBox,
    boxes_of_rank,
    layout_of,
    local_boxes,
    local_of,
    replicated,
)
from cloudshift_lab.training.shares import Holder
from cloudshift_lab.training.shares import deal as deal_to

from .simulated import as_rank, spread

Dealt = list[dict[str, list[LocalBox]]]
MESHES = [(1,), (2,), (3,), (4,), (2, 2), (1, 3), (2, 3), (2, 2, 2)]


def deal(holders: list[Holder], world_size: int) -> Dealt:
    """What every rank works out for itself."""
    return [deal_to(holders, world_size, rank) for rank in range(world_size)]


@st.composite
def layouts(draw: st.DrawFn, mesh: tuple[int, ...] | None = None) -> Layout:
    mesh = mesh or draw(st.sampled_from(MESHES))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=0, max_size=3)))
    cuts = [
        draw(
            st.none()
            if not shape
            else st.one_of(
                st.none(),
                st.builds(Cut, st.integers(0, len(shape) - 1), st.sampled_from([1, 1, 1, 2, 3])),
            )
        )
        for _ in mesh
    ]
    return Layout(shape, mesh, tuple(range(math.prod(mesh))), tuple(cuts))


def placements(layout: Layout) -> list[Replicate | Shard | _StridedShard]:
    return [
        Replicate() if cut is None
        else Shard(cut.axis) if cut.stripes == 1
        else _StridedShard(cut.axis, split_factor=cut.stripes)
        for cut in layout.cuts
    ]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(layouts())
def test_each_rank_holds_the_elements_that_torch_gives_it(layout: Layout) -> None:
    value = torch.arange(math.prod(layout.global_shape)).reshape(layout.global_shape)
    for rank in layout.ranks:
        with as_rank(rank, len(layout.ranks)):
            tensor = spread(value, layout.mesh, placements(layout))
            assert layout_of(tensor, len(layout.ranks)) == layout
            here = local_of(tensor)
            boxes = boxes_of_rank(layout, rank)
            assert sum(box.region.num_elements for box in boxes) == here.numel()
            for box in boxes:
                region = tuple(
                    slice(o, o + n)
                    for o, n in zip(box.region.offset, box.region.shape, strict=True)
                )
                assert torch.equal(here[box.slices], value[region])


def count_dealt(layout: Layout, dealt: Dealt, name: str) -> np.ndarray:
    times = np.zeros(layout.global_shape, dtype=np.int64)
    for boxes in dealt:
        for box in boxes.get(name, []):
            region = tuple(
                slice(o, o + n) for o, n in zip(box.region.offset, box.region.shape, strict=True)
            )
            times[region] += 1
    return times


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(MESHES), st.data())
def test_every_element_is_staged_by_exactly_one_rank_that_holds_it(
    mesh: tuple[int, ...], data: st.DataObject
) -> None:
    found = [layout for layout in data.draw(st.lists(layouts(), max_size=6)) if layout.mesh == mesh]
    world = math.prod(mesh)
    holders = [Holder(f"t{i}", 4, layout) for i, layout in enumerate(found)]
    dealt = deal(holders, world)
    for holder in holders:
        assert (count_dealt(holder.layout, dealt, holder.name) == 1).all()
        for rank in range(world):
            held = {box.region for box in boxes_of_rank(holder.layout, rank)}
            staged = {box.region for box in dealt[rank].get(holder.name, [])}
            assert staged <= held or holder.num_bytes == 0


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 3000)), min_size=1, max_size=12),
)
def test_replicated_tensors_are_dealt_evenly_and_cut_at_grid_lines_only(
    world: int, shapes: list[tuple[int, int]]
) -> None:
    holders = [Holder(f"t{i}", 4, replicated(shape, world)) for i, shape in enumerate(shapes)]
    dealt = deal(holders, world)
    load = [
        sum(4 * box.region.num_elements for boxes in share.values() for box in boxes)
        for share in dealt
    ]
    total = sum(holder.num_bytes for holder in holders)
    assert sum(load) == total
    assert max(load) - min(load) <= max(total / world / 16, 2**20) + 2**20
    for holder in holders:
        rows = grid_cell(holder.layout.global_shape, 4)[0]
        starts = [box.region.offset[0] for share in dealt for box in share.get(holder.name, [])]
        assert all(start % rows == 0 for start in starts)


def test_a_huge_tensor_among_small_ones_does_not_burden_one_rank() -> None:
    shapes = [(50_000, 1024), *[(1024, 1024)] * 4]
    dealt = deal([Holder(f"t{i}", 4, replicated(s, 8)) for i, s in enumerate(shapes)], 8)
    load = [sum(b.region.num_elements for boxes in d.values() for b in boxes) for d in dealt]
    assert max(load) < 1.07 * sum(load) / 8


def test_replicas_of_shards_share_the_staging_and_buffers_are_rank_zeros() -> None:
    hsdp = Layout((8, 4), (2, 2), (0, 1, 2, 3), (None, Cut(0)))
    holders = [Holder(f"t{i}", 4, hsdp) for i in range(8)]
    dealt = deal([*holders, Holder("b", 4, replicated((5,), 4), only=0)], 4)
    assert [len(share) - ("b" in share) for share in dealt] == [4, 4, 4, 4]
    assert ["b" in share for share in dealt] == [True, False, False, False]


def test_ranks_that_know_other_meshes_agree_on_what_all_of_them_hold() -> None:
    common = [Holder(f"c{i}", 4, replicated((9, 2), 4)) for i in range(6)]
    seen = []
    for ranks in ((0, 1), (2, 3)):
        part = Holder("w", 4, Layout((1000, 2), (2,), ranks, (Cut(0),)))
        dealt = deal([part, *common], 4)
        assert [rank for rank, share in enumerate(dealt) if "w" in share] == list(ranks)
        seen.append([{name for name in share if name != "w"} for share in dealt])
    assert seen[0] == seen[1]
    assert set.union(*seen[0]) == {holder.name for holder in common}


def test_a_rank_outside_the_mesh_holds_nothing() -> None:
    layout = Layout((4,), (2,), (0, 1), (Cut(0),))
    assert boxes_of_rank(layout, 3) == ()


def test_what_fully_sharded_tensor_parallelism_cuts_is_one_run_per_rank() -> None:
    layout = Layout((8, 2), (2, 2), (0, 1, 2, 3), (Cut(0, stripes=2), Cut(0)))
    rows = [[b.region.offset[0] for b in local_boxes(layout, c)] for c in [(0, 0), (0, 1), (1, 0)]]
    assert rows == [[0], [4], [2]]


def test_a_tensor_that_is_not_reduced_yet_cannot_be_saved() -> None:
    with as_rank(0, 2), pytest.raises(Unsupported, match="Shard or Replicate"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh("cpu", (2,))
        layout_of(DTensor.from_local(torch.ones(2), mesh, [Partial()]), 2)


def test_an_empty_tensor_is_named_by_one_rank() -> None:
    dealt = deal([Holder("e", 4, replicated((0, 3), 3))], 3)
    assert Counter(len(share) for share in dealt) == {1: 1, 0: 2}


def test_a_weight_is_staged_by_the_rank_that_stages_its_moments() -> None:
    shapes = {"a": (3000, 512), "b": (700, 40), "c": (64,)}
    names = ["model/{}", "optimizer/{}/exp_avg", "optimizer/{}/exp_avg_sq"]
    holders = [
        Holder(name.format(key), 4, replicated(shape, 3))
        for name in names
        for key, shape in shapes.items()
    ]
    for dealt in deal(holders, 3):
        for key in shapes:
            places = [{b.region for b in dealt.get(name.format(key), [])} for name in names]
            assert places[0] == places[1] == places[2]
