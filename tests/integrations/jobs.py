"""What every trainer is asked to do by the conformance suite: small jobs on fixed batches, and their outcome."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import dgcomp
from tests.training import batch

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-3


class LossNet(nn.Module):
    """Matrices, biases and a norm; returns its loss, so that every trainer can call it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 24)
        self.norm = nn.LayerNorm(24)
        self.last = nn.Linear(24, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.last(torch.tanh(self.norm(self.first(x)))), y)


class FixedGradient(nn.Module):
    """The gradient is the input, whatever the parameters are: nothing feeds back, and what is lost shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(24, 5))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.weight * x[:24]).sum() + (self.bias * x[24, :].repeat(2)[:6]).sum()


@dataclass(frozen=True)
class Job:
    """One training run of two or more ranks, which all trainers do alike."""

    config: dgcomp.DGCConfig | None
    """None: the trainer's own dense exchange."""
    steps: Sequence[int]
    """Numbers of the batches, in order."""
    model: type[nn.Module] = LossNet
    momentum: float = MOMENTUM
    bad_step: int | None = None
    """Here rank 1's input is infinite."""
    flush: bool = False
    """Deliver what is held back, at the end."""
    save: Path | None = None
    load: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Of the trainer at hand."""


@dataclass
class Outcome:
    """Whole vectors, on every rank."""

    parameters: Tensor
    residual: Tensor | None = None
    momentum: Tensor | None = None
    steps: int = 0
    nonfinite_steps: int = 0


Train = Callable[[Job], Outcome]


def make_model(job: Job) -> nn.Module:
    """The job's model, initialised alike on every rank."""
    model, generator = job.model(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_sgd(job: Job, parameters: Any) -> torch.optim.SGD:
    """The job's optimizer."""
    decay = WEIGHT_DECAY if job.model is LossNet else 0.0
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=job.momentum, weight_decay=decay)


def batches(job: Job, rank: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """This rank's inputs and labels, one pair for each step."""
    rank = dist.get_rank() if rank is None else rank
    made = []
    for step in job.steps:
        x, y = batch(step, rank)
        if job.model is FixedGradient:
            x = torch.randn(25, 5, generator=torch.Generator().manual_seed(100 * step + rank))
        if step == job.bad_step and rank == 1:
            x = torch.full_like(x, float("inf"))
        made.append((x, y))
    return made


def outcome(model: nn.Module, state: Any) -> Outcome:
    """What is compared, of a model whose parameters are whole on every rank."""
    parameters = torch.cat([p.detach().float().reshape(-1).clone() for p in model.parameters()])
    if state is None:
        return Outcome(parameters)
    memory, stats = state.memory, state.stats()
    momentum = None if memory.momentum is None else memory.momentum.clone()
    return Outcome(parameters, memory.residual.clone(), momentum, stats["steps"], stats["nonfinite_steps"])


def set_launcher_environment(rank: int, world_size: int, port: int) -> None:
    """The variables that torchrun would have set, for trainers that insist on them."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
