"""A small GPT on the Python standard library's own text, replicated or sharded over the ranks.

Runs by itself (``python gpt.py``), under torchrun, and as a run that can be moved. The knobs are
environment variables: GPT_STEPS, GPT_LAYERS, GPT_DIM, GPT_HEADS, GPT_BATCH, GPT_BLOCK, GPT_LR, and
GPT_SHARD=1 for ``fully_shard`` (FSDP2) instead of DistributedDataParallel.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cloudshift_lab.training import Session


def knob(name: str, default: float) -> int:
    """A whole number from the environment."""
    return int(os.environ.get(f"GPT_{name}", default))


STEPS, LAYERS, DIM, HEADS = (
    knob("STEPS", 300),
    knob("LAYERS", 3),
    knob("DIM", 192),
    knob("HEADS", 6),
)
BATCH, BLOCK, SHARD = knob("BATCH", 4), knob("BLOCK", 128), knob("SHARD", 0)
LR = float(os.environ.get("GPT_LR", "1e-3"))
SEED = int(os.environ.get("CLOUDSHIFT_SEED", "0"))
CORPUS_BYTES = 2_000_000


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm. B batch, T time, D width."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:  # noqa: N803
        heads = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).flatten(2))  # noqa: N806
        update: torch.Tensor = self.mlp(self.norm2(x_BTD))
        return x_BTD + update


class GPT(nn.Module):
    """Bytes in, the loss of the next byte out. V is the 256 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, DIM), nn.Embedding(BLOCK, DIM)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 256, bias=False)

    def forward(self, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:  # noqa: N803
        x_BTD = self.tokens(x_BT) + self.places.weight[: x_BT.shape[1]]  # noqa: N806
        logits_BTV = self.head(self.norm(self.blocks(x_BTD)))  # noqa: N806
        return F.cross_entropy(logits_BTV.flatten(0, 1), y_BT.flatten())


def corpus() -> torch.Tensor:
    """The first two megabytes of this interpreter's standard library, always in the same order."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
    return torch.frombuffer(text[:CORPUS_BYTES], dtype=torch.uint8)


def batch(data: torch.Tensor, step: int, rank: int, world: int) -> tuple[torch.Tensor, ...]:
    """What ``rank`` trains on at ``step``: a pure function, so that any process can take over."""
    draw = torch.Generator().manual_seed(SEED * 1_000_003 + step * world + rank)
    starts = torch.randint(len(data) - BLOCK - 1, (BATCH,), generator=draw)
    chunk = data[starts[:, None] + torch.arange(BLOCK + 1)].long()
    return chunk[:, :-1], chunk[:, 1:]


def spread(model: GPT) -> nn.Module:
    """The model on all ranks: each holds it whole, or a part of every layer."""
    if not SHARD:
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def whole(param: torch.Tensor) -> torch.Tensor:
    """All elements of a parameter; every rank must ask."""
    full: torch.Tensor = param.full_tensor() if hasattr(param, "full_tensor") else param
    return full.detach()


def main() -> None:
    """Train; print a hash of the final weights."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(SEED)
    model = spread(GPT()) if world > 1 else GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    data = corpus()

    session = Session(
        model=model, optimizer=optimizer, warm_up=lambda: model(*batch(data, 0, rank, world))
    )
    for step in session.steps(STEPS):
        loss = model(*batch(data, step, rank, world))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step(loss=loss, tokens=BATCH * BLOCK)

    weights = b"".join(whole(p).numpy().tobytes() for p in model.parameters())
    if rank == 0:
        print(f"weights {hashlib.sha256(weights).hexdigest()}", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
