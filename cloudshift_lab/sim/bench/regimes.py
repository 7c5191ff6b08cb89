"""The trainings whose states are weighed: real dynamics of small models, one regime each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from cloudshift_lab.sim.bench import gpt

LEARNING_RATE = 6e-4
GENTLE_RATE = 2e-5
Tensors = dict[str, torch.Tensor]


class Snapshot(NamedTuple):
    """A state with what a session would store beside it."""

    tensors: Tensors
    leaves: object


def snapshot(training: gpt.Training) -> Snapshot:
    """A copy of the whole state: weights and optimizer, under the names that a session gives."""
    tensors = {name: value.clone() for name, value in gpt.state_tensors(training).items()}
    names = [name for name, _ in training.model.named_parameters()]
    groups = [
        {
            "names": [name for name, p in zip(names, training.model.parameters(), strict=True)
                      if any(p is other for other in group["params"])],
            "values": {key: value for key, value in group.items() if key != "params"},
        }
        for group in training.optimizer.param_groups
    ]  # fmt: skip
    return Snapshot(tensors, {"optimizer": {"groups": groups}})


def pretraining(shape: gpt.Shape, data: torch.Tensor) -> gpt.Training:
    """fp32 weights and AdamW from scratch."""
    model = gpt.build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    return gpt.Training(model, optimizer, data, shape)


def fine_tuning(trained: nn.Module, shape: gpt.Shape, data: torch.Tensor) -> gpt.Training:
    """All weights of a trained model, a fresh AdamW, a small rate, no weight decay."""
    optimizer = torch.optim.AdamW(trained.parameters(), lr=GENTLE_RATE, weight_decay=0.0)
    return gpt.Training(trained, optimizer, data, shape)


def pure_bf16(
    trained: nn.Module, shape: gpt.Shape, data: torch.Tensor, rate: float
) -> gpt.Training:
    """Weights and moments in bfloat16; the arithmetic between them in float32, for speed here."""
    model = _Widened(trained.bfloat16())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    return gpt.Training(model, optimizer, data, shape)


class _Widened(nn.Module):
    """Computes in float32, whatever the weights are kept in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        wide = {name: value.float() for name, value in self.inner.named_parameters()}
        loss: torch.Tensor = functional_call(self.inner, wide, inputs)
        return loss


class _Adapted(nn.Module):
    """A layer with a product of two thin matrices beside it."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.frozen(x) + self.up(self.down(x))
        return update


def adapters(trained: gpt.GPT, shape: gpt.Shape, data: torch.Tensor) -> gpt.Training:
    """LoRA: rank 8 beside each attention's output, all else frozen in bfloat16."""
    for block in trained.blocks:
        assert isinstance(block, gpt.Block)
        block.out = _Adapted(block.out, rank=8)  # type: ignore[assignment]
    thin = [p for name, p in trained.named_parameters() if ".down." in name or ".up." in name]
    for param in trained.parameters():
        param.requires_grad_(any(param is other for other in thin))
        if not param.requires_grad:
            param.data = param.data.bfloat16()
    optimizer = torch.optim.AdamW(thin, lr=1e-3)
    return gpt.Training(_Widened(trained), optimizer, data, shape)


def with_master(state: Tensors) -> Tensors:
    """bf16 weights beside fp32 master and moments, as DeepSpeed and Megatron keep them."""
    copies = {
        f"half/{name.removeprefix('model/')}": value.bfloat16()
        for name, value in state.items()
        if name.startswith("model/")
    }
    return {**copies, **state}


def with_half_moments(state: Tensors) -> Tensors:
    """fp32 weights, moments in bfloat16."""
    return {
        name: value.bfloat16() if name.endswith(("/exp_avg", "/exp_avg_sq")) else value
        for name, value in state.items()
    }


def half_weights(state: Tensors) -> Tensors:
    """Nothing but the weights, in bfloat16: what is published, or sent to an inference engine."""
    return {name: v.bfloat16() for name, v in state.items() if name.startswith("model/")}
