"""What launch/train.py asks of a task, and the seeds that make a run repeatable.

Everything random is a function of (seed, epoch, step, sample), never of what ran before: the samples that a step
sees are the same for any number of ranks, and a resumed run needs no saved random state.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

__all__ = ["Part", "Task", "generator", "seed_of"]


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a global batch or a test set: a rank's, or one of its micro-batches."""

    index: int
    count: int

    def of(self, length: int) -> slice:
        """This part of `length` samples in a row; `length` must be a multiple of `count`."""
        size = length // self.count
        return slice(self.index * size, (self.index + 1) * size)


class Task(Protocol):
    """A model, its data and its optimizer; `launch.tasks.build_task` makes one from the options."""

    label: str
    """data set and split, as the closing table names them"""
    metric: str
    """what `score` returns, with its unit"""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_size: int
    """samples per optimizer step over all ranks"""
    steps_per_epoch: int
    clip_norm: float | None

    def batch(self, epoch: int, step: int, part: Part) -> Any:
        """Part of the global batch of one step, the same for every run with the same seed."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of a batch; `model` is `self.model` or its DDP wrapper."""
        ...

    def evaluate(self, part: Part) -> torch.Tensor:
        """Sum and count over this part of the test set, float64 of shape (2,), to be summed over the ranks."""
        ...

    def score(self, mean: float) -> float:
        """The metric from the mean over the whole test set."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What one rank carries from step to step beside model and optimizer (hidden states)."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        ...


def seed_of(*numbers: int) -> int:
    """A 63-bit seed from a few non-negative numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*numbers: int) -> torch.Generator:
    """A torch generator (CPU) seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*numbers))
