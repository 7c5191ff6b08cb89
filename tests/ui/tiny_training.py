"""An ordinary DDP script, as small as a transformer gets; trained by the browser test."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cloudshift_lab.training import Session

DIM, BLOCK, BATCH = 32, 16, 4


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.qkv = nn.Embedding(64, DIM), nn.Linear(DIM, 3 * DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.head = nn.Linear(DIM, 64)

    def forward(self, rows):
        x = self.tokens(rows[:, :-1])
        heads = self.qkv(x).unflatten(-1, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(*heads, is_causal=True).squeeze(1)
        logits = self.head(x + self.mlp(x))
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def batch(step):
    starts = torch.arange(BATCH)[:, None] * 7 + step * 3 + rank
    return (starts + torch.arange(BLOCK + 1)) ** 2 % 61


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(7)
model = DistributedDataParallel(TinyGPT())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
session = Session(model=model, optimizer=optimizer, warm_up=lambda: model(batch(0)))
for step in session.steps(10_000_000):
    loss = model(batch(step))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    session.step(loss=loss, tokens=BATCH * BLOCK)
dist.destroy_process_group()
