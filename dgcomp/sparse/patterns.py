"""Which weights a pruned layer keeps: masks by magnitude, in the patterns that hardware can use.

A pattern is called with a weight and a density and returns a bool mask of the weight's shape, True where kept. Ties
are broken by position, so equal weights give equal masks on every rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Balanced", "Blocks", "NM", "Pattern", "Unstructured"]

Pattern = Callable[[Tensor, float], Tensor]


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest scores of each row of a matrix; of equal scores the first ones are kept."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, order[..., :count], True)


@dataclass(frozen=True)
class Unstructured:
    """The largest magnitudes of the whole tensor."""

    def __call__(self, weight: Tensor, density: float) -> Tensor:
        flat = weight.detach().abs().reshape(1, -1)
        return keep_largest(flat, round(density * flat.numel())).view(weight.shape)


@dataclass(frozen=True)
class NM:
    """At most `n` of every `m` consecutive weights of an output row (2:4 by default), whatever the density."""

    n: int = 2
    m: int = 4

    def __call__(self, weight: Tensor, density: float) -> Tensor:
        if density >= 1:
            return torch.ones_like(weight, dtype=torch.bool)
        rows = weight.detach().abs().flatten(1)
        if rows.shape[1] % self.m:
            raise ValueError(f"weight must have rows of a multiple of {self.m} values, got {tuple(weight.shape)}")
        return keep_largest(rows.view(-1, self.m), self.n).view(weight.shape)


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of a weight [rows, columns] (further dimensions count as columns), by their sum of squares."""

    height: int = 4
    width: int = 4

    def __call__(self, weight: Tensor, density: float) -> Tensor:
        rows = weight.detach().flatten(1)
        if rows.shape[0] % self.height or rows.shape[1] % self.width:
            raise ValueError(f"weight must divide into blocks of {self.height} x {self.width}, got {tuple(rows.shape)}")
        blocks = rows.unflatten(1, (-1, self.width)).unflatten(0, (-1, self.height))
        energy = blocks.square().sum(dim=(1, 3))
        kept = keep_largest(energy.view(1, -1), round(density * energy.numel())).view(energy.shape)
        return kept[:, None, :, None].expand(blocks.shape).reshape(weight.shape)


@dataclass(frozen=True)
class Balanced:
    """The same number of weights for every EIE processing element in every `window` columns.

    EIE's elements work on a few columns at a time (its queue holds 8), and a layer takes as long as the element with
    the most entries. Magnitude over the whole weight decides how many weights a window keeps; every element then
    keeps an equal share of them, its own largest. Row i belongs to element i mod num_pes.
    """

    num_pes: int = 64
    window: int = 8

    def __call__(self, weight: Tensor, density: float) -> Tensor:
        free = Unstructured()(weight, density).flatten(1)
        rows = weight.detach().abs().flatten(1)
        mask = torch.zeros_like(free)
        spent, wanted = 0, 0
        for start in range(0, rows.shape[1], self.window):
            wanted += int(free[:, start : start + self.window].sum())
            share = max(0, round((wanted - spent) / self.num_pes))  # what rounding leaves over goes to the next window
            for pe in range(min(self.num_pes, rows.shape[0])):
                part = rows[pe :: self.num_pes, start : start + self.window]
                kept = keep_largest(part.reshape(1, -1), share).view(part.shape)
                mask[pe :: self.num_pes, start : start + self.window] = kept
                spent += int(min(share, part.numel()))
        return mask.view(weight.shape)
