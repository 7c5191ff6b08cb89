"""One rank of a small job under torchrun: trains, saves, restores; says what it saw as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cloudshift_lab.checkpoint import Checkpoint, open_checkpoint, seal, write_rank
from cloudshift_lab.storage.store import open_store
from cloudshift_lab.training.cursor import Cursor
from cloudshift_lab.training.state import TrainingState
from cloudshift_lab.training.warmup import warm_up

from .simulated import staged

VOCAB, WIDTH = 31, 10
STEPS = 3


class Net(nn.Module):
    """Lengths that no world size divides, tied weights, a buffer, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 13), nn.GELU(), nn.Linear(13, WIDTH)
            )
            for _ in range(2)
        )
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(3))

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        h = self.embed(x_BT)
        for block in self.blocks:
            h = h + block(h)
        logits = self.head(self.frozen(h)) * self.scale.mean()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), x_BT[:, 1:].flatten())


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def grouped(net: nn.Module) -> list[dict[str, object]]:
    """Matrices and the rest, as everybody does."""
    return [
        {"params": [p for p in trained(net) if p.dim() > 1]},
        {"params": [p for p in trained(net) if p.dim() < 2], "weight_decay": 0.0},
    ]


OPTIMIZERS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "adamw": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr),
    "fused": lambda net, lr: torch.optim.AdamW(grouped(net), lr=lr, fused=True),
    "sgd": lambda net, lr: torch.optim.SGD(grouped(net), lr=lr, momentum=0.9),
    "adafactor": lambda net, lr: torch.optim.Adafactor(grouped(net), lr=lr, foreach=False),
    "muon": lambda net, lr: torch.optim.Muon([p for p in trained(net) if p.dim() == 2], lr=lr),
}


class Job:
    """A model of one kind, its optimizer and its data, with values of their own."""

    def __init__(self, kind: str, seed: int) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(seed)
        net = Net()
        self.model: nn.Module = net
        kind, _, optimizer = kind.partition("+")
        if kind in ("fsdp2", "hsdp"):
            shape = (self.world,) if kind == "fsdp2" else (2, self.world // 2)
            mesh = init_device_mesh(
                "cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :]
            )
            for block in net.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(net, mesh=mesh)
        elif kind == "ddp":
            self.model = nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.002)
        self.optimizer = OPTIMIZERS[optimizer or "adamw"](net, 0.001 * seed)
        self.cursor = Cursor(240, seed=5, rank=self.rank, world_size=self.world)
        self.state = TrainingState(
            self.model, self.optimizer, {"cursor": self.cursor},
            rank=self.rank, world_size=self.world,
        )  # fmt: skip

    def loss(self, samples: list[int]) -> torch.Tensor:
        draw = [torch.Generator().manual_seed(sample) for sample in samples]
        return self.model(torch.stack([torch.randint(VOCAB, (7,), generator=g) for g in draw]))

    def train(self, steps: int) -> list[str]:
        """The losses, exactly."""
        seen = []
        for _ in range(steps):
            loss = self.loss(self.cursor.take(4 * self.world))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            seen.append(loss.item().hex())
        return seen

    def digests(self) -> dict[str, str]:
        """A hash of every whole tensor by name, and the groups as text."""
        net = self.model.module if hasattr(self.model, "module") else self.model
        found = {f"model/{name}": value for name, value in net.state_dict().items()}
        names = {id(p): name for name, p in net.named_parameters()}
        for param, state in self.optimizer.state.items():
            found |= {f"optimizer/{names[id(param)]}/{k}": v for k, v in state.items()}
        whole = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in found.items()}
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        hashes = {
            n: hashlib.sha256(v.detach().numpy().tobytes()).hexdigest() for n, v in whole.items()
        }
        return {**hashes, "groups": str(groups), "cursor": str(self.cursor.state_dict())}

    def save(self, url: str, run: str) -> None:
        """Every rank its share, rank 0 the manifest."""
        store = open_store(url)
        share = self.state.share(STEPS)
        mine = staged(share, STEPS, self.rank, self.world)
        written = [None] * self.world
        dist.all_gather_object(written, write_rank(store, run, mine, generation=1))
        if self.rank == 0:
            sealed = seal(store, run, STEPS, generation=1, world_size=self.world, written=written)
            note = Path(url.removeprefix("file://")) / f"{run}.json"
            note.write_text(json.dumps([sealed.manifest_key, sealed.manifest_digest]))
        dist.barrier()


def opened(url: str, run: str) -> Checkpoint:
    note = Path(url.removeprefix("file://")) / f"{run}.json"
    key, digest = json.loads(note.read_text())
    return open_checkpoint(open_store(url), run, key, digest=digest)


def saved_and_resumed(kind: str, url: str, run: str) -> dict[str, object]:
    """Train, save, go on; then a new job restores and goes on: both must see the same."""
    first = Job(kind, seed=1)
    first.train(STEPS)
    first.save(url, run)
    answer: dict[str, object] = {"digests": first.digests()}
    steady = first.state.share(STEPS).steady
    answer["losses"] = first.train(STEPS)
    answer["is_same_plan"] = first.state.share(2 * STEPS).steady is steady
    second = Job(kind, seed=2)
    warm_up(second.model, lambda: second.loss([1, 2, 3, 4]))
    second.state.restore(opened(url, run))
    answer["restored"] = second.digests()
    answer["resumed"] = second.train(STEPS)
    answer["ends"] = [first.digests(), second.digests()]
    return answer


def restored(kind: str, url: str, run: str) -> dict[str, object]:
    """Restore what another world saved, save it again from here, and train a little on it."""
    job = Job(kind, seed=3)
    job.state.restore(opened(url, run))
    job.save(url, f"{run}-{kind}{job.world}")
    return {"digests": job.digests(), "losses": job.train(1)}


def main() -> None:
    """Do the tasks of the command line; each is ``what:kind:run``."""
    url, out, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    answers = {}
    for task in tasks:
        what, kind, run = task.split(":")
        do = {"save": saved_and_resumed, "restore": restored}[what]
        answers[task] = do(kind, url, run)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
