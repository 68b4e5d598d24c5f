"""Small models, data and training loops that the multi-process tests share."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SMALL_BUCKETS_MB = 0.002  # several buckets even for the small models here


class SmallNet(nn.Module):
    """Layers of every kind that matters: matrices, biases, a norm, a scalar, a one-element and an empty tensor."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.first = nn.Linear(10, width)
        self.norm = nn.LayerNorm(width)
        self.middle = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.single = nn.Parameter(torch.zeros(1, 1))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.last = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(x)))
        hidden = torch.tanh(self.middle(hidden)) * self.scale + self.single
        return self.last(hidden) + self.empty.sum()


class BranchedNet(nn.Module):
    """Uses one of two branches, as told; the other one gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(10, 16)
        self.branches = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 4)])

    def forward(self, x: Tensor, branch: int) -> Tensor:
        return self.branches[branch](torch.tanh(self.stem(x)))


class TiedNet(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.hidden = nn.Linear(8, 8)
        self.output = nn.Linear(8, 12, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))


def batch(step: int, rank: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs and class labels that depend on step and rank alone."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(size, 10, generator=generator)
    return x, (x[:, :4] + 0.1 * torch.randn(size, 4, generator=generator)).argmax(1)


def ddp(model: nn.Module, seed: int = 0, **options: Any) -> DistributedDataParallel:
    """A DDP model with several buckets, initialised from `seed` on every rank."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return DistributedDataParallel(model, bucket_cap_mb=SMALL_BUCKETS_MB, **options)


def train(
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    first: int = 0,
    after_backward: Callable[[int], None] | None = None,
) -> None:
    """Plain training of a SmallNet-like model on `batch`."""
    rank = dist.get_rank()
    for step in range(first, first + steps):
        x, y = batch(step, rank)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if after_backward:
            after_backward(step)
        optimizer.step()


def values(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same_on_all_ranks(vector: Tensor) -> bool:
    """Whether a tensor has the same bits on all ranks."""
    gathered = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, vector)
    return all(torch.equal(other, gathered[0]) for other in gathered)
