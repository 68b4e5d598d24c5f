"""A module that replays gradients of a network's shapes through DDP.

The backward pass costs nothing: it hands out slices of a pool that was filled beforehand. What is timed is therefore
what a gradient exchange adds to training, with DDP's buckets, copies and hooks at work as always.
"""

import math

import torch
from torch import Tensor, nn

from benchmarks.shapes import Shape

# A prime: the same slice does not come back within a run, and positions of large entries differ between steps.
_SHIFT = 9973


class Replay(nn.Module):
    """Holds parameters of the given shapes; `loss()` has a backward that returns stored gradients.

    Magnitudes follow what recorded gradients look like: each tensor has its own scale (spread over three decades)
    and, inside a tensor, a normal value times a log-normal one (kurtosis about 160). `seed` differs between ranks.
    """

    def __init__(self, sizes: list[Shape], seed: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes])
        self.offset = 0
        generator = torch.Generator().manual_seed(seed)
        numel = sum(math.prod(size) for size in sizes)
        block = torch.randn(min(numel, 1 << 22), generator=generator)
        block *= torch.randn(block.numel(), generator=generator).exp_()
        self.slack = 1 << 16
        self.pool = torch.empty(numel + self.slack)
        for start in range(0, self.pool.numel(), block.numel()):
            part = self.pool[start : start + block.numel()]
            part.copy_(block[: part.numel()])
        start = 0
        for size in sizes:
            scale = 1e-3 * math.exp(float(torch.randn((), generator=generator)) * 1.5)
            self.pool[start : start + math.prod(size)] *= scale
            start += math.prod(size)

    def next_gradients(self) -> list[Tensor]:
        """Views into the pool, shifted against those of the step before."""
        self.offset = (self.offset + _SHIFT) % self.slack
        gradients, start = [], self.offset
        for weight in self.weights:
            gradients.append(self.pool[start : start + weight.numel()].view(weight.shape))
            start += weight.numel()
        return gradients

    def forward(self) -> Tensor:
        loss: Tensor = _HandOut.apply(self, *self.weights)
        return loss


class _HandOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, replay: Replay, *weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.replay = replay
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return (None, *ctx.replay.next_gradients())
