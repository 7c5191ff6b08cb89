"""A place in the data that belongs to no world size: every sample once per epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cloudshift_lab.core.errors import UsageError
from cloudshift_lab.training.cursor import Cursor

legs = st.lists(
    st.tuples(st.integers(1, 5), st.integers(5, 9), st.integers(0, 4)), min_size=1, max_size=6
)


def world(num_samples: int, size: int, **options: int | bool) -> list[Cursor]:
    return [Cursor(num_samples, rank=rank, world_size=size, **options) for rank in range(size)]


@given(st.integers(1, 40), legs, st.integers(0, 2**40), st.booleans())
def test_each_sample_is_dealt_once_per_epoch_through_any_changes_of_world_size(
    num_samples: int, legs: list[tuple[int, int, int]], seed: int, shuffle: bool
) -> None:
    dealt: list[int] = []
    state = None
    for size, global_batch, steps in legs:
        ranks = world(num_samples, size, seed=seed if state is None else 0, shuffle=shuffle)
        for cursor in ranks:
            if state is not None:
                cursor.load_state_dict(state)
        for _ in range(steps):
            shares = [cursor.take(global_batch) for cursor in ranks]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            dealt += [i for share in shares for i in share]
        states = [cursor.state_dict() for cursor in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    epochs = [dealt[i : i + num_samples] for i in range(0, len(dealt), num_samples)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(num_samples))
    assert state["consumed"] == len(dealt)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_a_global_batch_holds_the_same_samples_at_every_world_size(
    first: int, second: int, step: int
) -> None:
    batches = []
    for size in (first, second):
        ranks = world(50, size, seed=3)
        for _ in range(step):
            shares = [cursor.take(8) for cursor in ranks]
        batches.append([i for share in shares for i in share])
    assert batches[0] == batches[1]


def test_epochs_have_orders_of_their_own_and_seeds_too() -> None:
    cursor, other = Cursor(20, seed=1), Cursor(20, seed=2)
    first, second = cursor.take(20), cursor.take(20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(other.take(20))}) == 3
    assert (cursor.epoch, cursor.consumed) == (2, 40)


def test_the_order_does_not_touch_the_scripts_own_randomness() -> None:
    before = torch.get_rng_state()
    Cursor(100, seed=1).take(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_loader_fetches_ahead_is_not_consumed() -> None:
    cursor = Cursor(10, seed=4, rank=1, world_size=2)
    loader = iter(DataLoader(list(range(10)), batch_sampler=cursor.batches(4)))
    ahead = [next(loader).tolist() for _ in range(6)]
    assert cursor.consumed == 0
    assert [cursor.take(4) for _ in range(6)] == ahead


def test_a_batch_that_reaches_the_end_of_an_epoch_goes_on_in_the_next() -> None:
    cursor = Cursor(5, shuffle=False)
    assert [cursor.take(3) for _ in range(4)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert cursor.epoch == 2


def test_another_data_set_or_version_is_refused() -> None:
    state = Cursor(10).state_dict()
    with pytest.raises(UsageError, match="10 samples and this data set has 11"):
        Cursor(11).load_state_dict(state)
    with pytest.raises(UsageError, match="version 9"):
        Cursor(10).load_state_dict({**state, "version": 9})


def test_a_cursor_that_can_deal_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        Cursor(0)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        Cursor(5, rank=2, world_size=2)
    with pytest.raises(UsageError, match="at least one per rank"):
        Cursor(5, world_size=3).take(2)
