"""What a rank leaves for the case of its death is what a capture would have taken."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from cloudshift_lab.checkpoint.leaves import encode_leaves
from cloudshift_lab.training import randomness
from cloudshift_lab.training.own import OwnState, read_own
from cloudshift_lab.training.rescue import covered
from cloudshift_lab.training.state import TrainingState


def test_generators_come_back_from_a_page_as_from_a_capture() -> None:
    torch.manual_seed(5), random.seed(6), np.random.seed(7)
    random.gauss(0.0, 1.0), np.random.standard_normal(), torch.rand(3), random.random()
    tensors: dict[str, torch.Tensor] = {}
    expected = randomness.gather("rng/3", tensors)
    owned = read_own(OwnState(lambda: b"{}").take(), 3)
    assert encode_leaves(owned.rng) == encode_leaves(expected)
    assert owned.tensors.keys() == tensors.keys()
    assert all(torch.equal(owned.tensors[name], tensors[name]) for name in tensors)
    assert owned.extras == b"{}"
    drawn = (random.gauss(0.0, 1.0), np.random.standard_normal(), torch.rand(3))
    randomness.put_back(owned.rng, owned.tensors, "rng/3")
    again = (random.gauss(0.0, 1.0), np.random.standard_normal(), torch.rand(3))
    assert drawn[:2] == again[:2] and torch.equal(drawn[2], again[2])


def test_numbers_that_numpy_drew_in_advance_are_not_missed() -> None:
    np.random.seed(3)
    own = OwnState(lambda: b"")
    for draw in (np.random.standard_normal, np.random.standard_normal, np.random.random_sample):
        for _ in range(3):
            draw()
            for _ in range(2):
                expected = randomness.gather("rng/0", {})
                assert encode_leaves(read_own(own.take(), 0).rng) == encode_leaves(expected)


def test_shares_that_one_rank_stages_for_all_are_the_whole_state() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    states = [TrainingState(model, optimizer, {}, rank=r, world_size=3) for r in range(3)]
    own = read_own(OwnState(states[0].extras).take(), 0)
    for rank, state in enumerate(states):
        expected = state.share(9)
        found = states[0].share_of(
            9, rank, read_own(OwnState(state.extras).take(), rank), states[0].buffers()
        )
        for theirs, ours in ((expected.steady, found.steady), (expected.volatile, found.volatile)):
            assert [(p.name, p.offset) for p in theirs] == [(p.name, p.offset) for p in ours]
            assert all(torch.equal(p.tensor, q.tensor) for p, q in zip(theirs, ours, strict=True))
        assert encode_leaves(found.leaves) == encode_leaves(expected.leaves)
        assert found.catalog == expected.catalog
    assert covered(states[0].steady_tensors(), rank=0, world_size=3) == {1, 2}
    assert own.tensors.keys() == {"rng/0"}
