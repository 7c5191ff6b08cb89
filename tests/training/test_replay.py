"""What a session says of AdamW is enough to store its next step as a replay of it."""

import pytest
import torch

from cloudshift_lab.checkpoint import (
    Checkpoint,
    KnownChunks,
    Staged,
    TensorBox,
    TensorSpec,
    open_checkpoint,
    seal,
    verify,
    write_rank,
)
from cloudshift_lab.checkpoint.leaves import decode_leaves, encode_leaves
from cloudshift_lab.checkpoint.predict import predict_step
from cloudshift_lab.storage.memory import MemoryStore
from cloudshift_lab.training.state import TrainingState
from cloudshift_lab.training.tree import dtype_name


class Job:
    """A small model with a scheduler, and its states as a world of ranks would stage them."""

    def __init__(self, world_size: int, **options: bool) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(128, 300), torch.nn.GELU(), torch.nn.Linear(300, 128)
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, **options
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 1000)
        self.states = [
            TrainingState(
                self.model, self.optimizer, {"schedule": self.scheduler}, rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        self.store = MemoryStore()

    def train(self) -> None:
        x = torch.randn(32, 128)
        self.optimizer.zero_grad()
        (self.model(x) - x.sin()).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def save(self, step: int, base: Checkpoint | None = None) -> tuple[Checkpoint, float]:
        """The step, and which share of its bytes was new."""
        known = None if base is None else KnownChunks.from_checkpoint(base)
        written = [
            write_rank(
                self.store, "run", self.staged(step, rank), generation=1, base=base, known=known
            )
            for rank in range(len(self.states))
        ]
        sealed = seal(
            self.store, "run", step, generation=1, world_size=len(self.states), written=written
        )
        assert verify(self.store, "run", sealed.manifest_key, sealed.manifest_digest).ok
        found = open_checkpoint(
            self.store, "run", sealed.manifest_key, digest=sealed.manifest_digest
        )
        return found, sum(w.new_bytes for w in written) / sum(w.raw_bytes for w in written)

    def staged(self, step: int, rank: int) -> Staged:
        share = self.states[rank].share(step)
        parts = (*share.steady, *share.volatile)
        boxes = tuple(
            TensorBox(p.name, dtype_name(p.tensor), p.global_shape, p.offset, tuple(p.tensor.shape))
            for p in parts
        )
        buffers = tuple(
            p.tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().copy()
            for p in parts
        )
        specs = tuple(TensorSpec(c.name, c.dtype, c.global_shape) for c in share.catalog)
        leaves = decode_leaves(encode_leaves(share.leaves))
        return Staged(step, rank, len(self.states), boxes, buffers, leaves, specs)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_the_step_after_a_commit_takes_less_than_a_third_of_the_state(
    world_size: int, options: dict[str, bool]
) -> None:
    job = Job(world_size, **options)
    for _ in range(10):
        job.train()
    base, _ = job.save(10)
    predicted = predict_step(base)
    job.train()
    delta, share = job.save(11, base)
    assert delta.manifest.version == 2
    assert share < 0.31
    assert predicted.low <= share * predicted.full_bytes <= predicted.high
    for name, parameter in job.model.named_parameters():
        assert delta.tensor(f"model/{name}").tobytes() == parameter.detach().numpy().tobytes()
