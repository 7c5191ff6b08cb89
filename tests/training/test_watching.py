"""What a watch notices: changes that leave no trace in torch's counters, and some put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cloudshift_lab.training import flight as flight_module
from cloudshift_lab.training.arena import Arena
from cloudshift_lab.training.capture import Capture
from cloudshift_lab.training.flight import Lost
from cloudshift_lab.training.parts import Share
from cloudshift_lab.training.watching import Watch

from .test_capture import Job, Slow, is_staged, part


def clamp(weight: torch.Tensor) -> None:
    bound = weight.flatten().kthvalue(math.ceil(0.95 * weight.numel())).values
    weight.data.clamp_(max=float(bound))


def double(weight: torch.Tensor) -> None:
    weight.data.mul_(2.0)


def channels_last() -> torch.Tensor:
    return torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("edit", [clamp, double])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(300, 400),
        lambda: torch.randn(300, 400, dtype=torch.bfloat16),
        lambda: torch.randn(120),
        lambda: torch.randn(300, 400).t(),
        channels_last,
    ],
    ids=["matrix", "bfloat16", "small", "transposed", "channels_last"],
)
def test_an_edit_without_a_trace_is_noticed_in_the_tensor_and_in_a_copy(
    make: Callable[[], torch.Tensor], edit: Callable[[torch.Tensor], None]
) -> None:
    torch.manual_seed(0)
    weight = make()
    copies = (torch.empty(weight.shape, dtype=weight.dtype).copy_(weight),)
    watch = Watch(["w"], [weight])
    watch.begin()
    assert (watch.changed(), watch.torn_by(copies)) == (None, None)
    version = weight._version
    edit(weight)
    assert weight._version == version
    assert (watch.changed(), watch.torn_by(copies)) == ("w", None)
    watch.begin()
    assert (watch.changed(), watch.torn_by(copies)) == (None, "w")


def test_the_tensor_that_changed_is_named_among_many() -> None:
    tensors = [torch.zeros(3), torch.zeros(50, 60), torch.zeros(50, 60).t(), torch.zeros(0)]
    tensors += [torch.zeros(9, dtype=torch.complex64).conj(), torch.zeros(500), torch.ones(())]
    watch = Watch([str(n) for n in range(len(tensors))], tensors)
    for number in (0, 1, 2, 5, 6):
        watch.begin()
        tensors[number].data.add_(1.0)
        assert watch.changed() == str(number)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(flight_module, "SETTLE_S", 600.0)
    made = Job(tmp_path)
    yield made
    made.capture.close()


def test_weights_that_were_swapped_and_swapped_back_under_the_copy_are_not_announced(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As code that validates with averaged weights does."""
    slow = Slow(monkeypatch)
    weight = job.model[0].weight
    own, averaged = weight.detach().clone(), torch.randn_like(weight)
    job.capture.begin(1, job.share())
    weight.data.copy_(averaged)
    slow.go.set()
    flight = job.capture._flight
    assert flight is not None
    flight.opened.steady.complete()
    weight.data.copy_(own)
    job.backward()
    job.optimizer.step()
    job.capture.finish()
    assert not is_staged(job, 1)
    assert (job.capture.lost, job.capture.mode) == (Lost.TORN, "blocking")
    assert "'0.weight' changed before the optimizer's step" in job.said[0]


def test_a_weight_in_another_memory_format_is_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    weight = channels_last().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    said: list[str] = []
    capture = Capture(Arena(tmp_path, 0, 1), [optimizer], say=said.append)
    capture.begin(1, Share((part("w", weight),), (), None))
    double(weight)
    slow.go.set()
    capture.finish()
    assert capture.lost == Lost.TORN and "'w' changed" in said[0]
    capture.close()
