"""The models that benchmarks train: GPTs of any size on the standard library's own text."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_WORD = re.compile(r"\w+|\s+|[^\w\s]")


class Shape(NamedTuple):
    """Layers, width, heads, words of the vocabulary, tokens of context, sequences per step.

    ``classes``: what is predicted is the next word's number modulo that; 0: the number itself.
    """

    layers: int
    dim: int
    heads: int
    vocab: int
    block: int
    batch: int
    classes: int = 0


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm. B batch, T time, D width."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim = shape.dim
        self.heads = shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:  # noqa: N803
        parts = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).flatten(2))  # noqa: N806
        update: torch.Tensor = self.mlp(self.norm2(x_BTD))
        return x_BTD + update


class GPT(nn.Module):
    """Tokens in, the loss of the next token out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.dim)
        self.places = nn.Embedding(shape.block, shape.dim)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.classes = shape.classes or shape.vocab
        self.norm, self.head = nn.LayerNorm(shape.dim), nn.Linear(shape.dim, self.classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:  # noqa: N803
        x_BTD = self.tokens(x_BT) + self.places.weight[: x_BT.shape[1]]  # noqa: N806
        logits_BTV = self.head(self.norm(self.blocks(x_BTD)))  # noqa: N806
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten() % self.classes)


def build(shape: Shape, seed: int = 0) -> GPT:
    """A model whose weights are a function of shape and seed."""
    torch.manual_seed(seed)
    return GPT(shape)


def corpus(vocab: int, num_bytes: int) -> torch.Tensor:
    """Standard-library sources as word numbers, most frequent words first; 0 stands for the rest.

    Args:
        vocab: Numbers go from 0 to ``vocab - 1``.
        num_bytes: How much text to read.

    Returns:
        int64 tokens.
    """
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= num_bytes:
            break
    words = _WORD.findall(text[:num_bytes])
    common = Counter(words).most_common(vocab - 1)
    numbers = {word: number for number, (word, _) in enumerate(common, 1)}
    return torch.tensor([numbers.get(word, 0) for word in words])


def batch(data: torch.Tensor, shape: Shape, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on at ``step``: a pure function of it, so that a restored run sees it too."""
    draw = torch.Generator().manual_seed(1_000_003 + step)
    starts = torch.randint(len(data) - shape.block - 1, (shape.batch,), generator=draw)
    chunk = data[starts[:, None] + torch.arange(shape.block + 1)]
    return chunk[:, :-1], chunk[:, 1:]


class Training:
    """A model, its optimizer and its data; one call is one step."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor, shape: Shape
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._data = data
        self._shape = shape
        self.num_steps = 0

    def step(self) -> float:
        """Train on the next batch; its loss."""
        loss = cast(torch.Tensor, self.model(*batch(self._data, self._shape, self.num_steps)))
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return loss.item()


def state_of(training: Training) -> dict[str, object]:
    """The state as people hand it to ``torch.save`` and ``dcp.save``."""
    return {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}


def state_tensors(training: Training) -> dict[str, torch.Tensor]:
    """Every tensor of the state by reference: ``model/...`` and ``optimizer/.../exp_avg`` ..."""
    found = {f"model/{name}": value for name, value in training.model.state_dict().items()}
    for name, param in training.model.named_parameters():
        for key, value in training.optimizer.state.get(param, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"optimizer/{name}/{key}"] = value
    return found


def num_state_bytes(training: Training) -> int:
    """Bytes of all tensors of the state, tied ones once."""
    return sum({t.data_ptr(): t.nbytes for t in state_tensors(training).values()}.values())
