"""Parameter shapes of well-known networks, and a module that replays gradients of those shapes through DDP.

The backward pass costs nothing: it hands out slices of a pool that was filled beforehand. What is timed is therefore
what a gradient exchange adds to training, with DDP's buckets, copies and hooks at work as always.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

# A prime: the same slice does not come back within a run, and positions of large entries differ between steps.
_SHIFT = 9973


def _resnet50() -> Iterator[Shape]:
    def conv_norm(c_out: int, c_in: int, kernel: int) -> list[Shape]:
        return [(c_out, c_in, kernel, kernel), (c_out,), (c_out,)]

    yield from conv_norm(64, 3, 7)
    c_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from conv_norm(width, c_in, 1)
            yield from conv_norm(width, width, 3)
            yield from conv_norm(4 * width, width, 1)
            if block == 0:
                yield from conv_norm(4 * width, c_in, 1)
            c_in = 4 * width
    yield from [(1000, 2048), (1000,)]


def _vgg16() -> Iterator[Shape]:
    c_in = 3
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            yield from [(width, c_in, 3, 3), (width,)]
            c_in = width
    yield from [(4096, 512 * 49), (4096,), (4096, 4096), (4096,), (1000, 4096), (1000,)]


def _bert_base() -> Iterator[Shape]:
    hidden, inner = 768, 3072
    yield from [(30522, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,)]
    for _ in range(12):
        for _ in range(4):
            yield from [(hidden, hidden), (hidden,)]
        yield from [(hidden,), (hidden,), (inner, hidden), (inner,), (hidden, inner), (hidden,), (hidden,), (hidden,)]
    yield from [(hidden, hidden), (hidden,)]


def _lstm1500() -> Iterator[Shape]:
    yield (10000, 1500)  # embedding, tied to the decoder
    for _ in range(2):
        yield from [(6000, 1500), (6000, 1500), (6000,), (6000,)]
    yield (10000,)


MODELS: dict[str, Callable[[], Iterator[Shape]]] = {
    "resnet50": _resnet50,
    "vgg16": _vgg16,
    "bert-base": _bert_base,
    "lstm-1500": _lstm1500,
}


def shapes(model: str) -> list[Shape]:
    """Shapes of all parameters, in the order in which the network registers them."""
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    return list(MODELS[model]())


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
