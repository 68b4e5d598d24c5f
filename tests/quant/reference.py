"""The network of the context's tests, and the same network written out with `octav_scale` and `fake_quantize`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgcomp import quant

checkpoint_imported_before = checkpoint


class Net(nn.Module):
    """conv - relu - conv - relu - linear, optionally with a checkpointed middle."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.middle = nn.Conv2d(8, 8, 3, bias=False)
        self.linear = nn.Linear(8, 5)
        self.use_reentrant = use_reentrant

    def block(self, x: Tensor) -> Tensor:
        return F.relu(self.middle(x))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.use_reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint_imported_before(self.block, x, use_reentrant=self.use_reentrant)
        return self.linear(x.mean((2, 3)))


def quantized(x: Tensor, bits: int = 4) -> Tensor:
    signed = bool((x < 0).any())
    return quant.fake_quantize(x, quant.octav_scale(x, bits, signed), bits, signed, "pwl")


def quantized_weight(w: Tensor, bits: int = 4, channel: int = 0) -> Tensor:
    dims = [d for d in range(w.ndim) if d != channel]
    return quant.fake_quantize(w, quant.octav_scale(w, bits, dim=dims), bits, estimator="mad")


def reference(net: Net, x: Tensor, bits: tuple[int, int, int] = (4, 4, 4)) -> Tensor:
    with quant.disabled():
        x = F.relu(F.conv2d(quantized(x, bits[0]), quantized_weight(net.conv.weight, bits[0]), net.conv.bias))
        x = F.relu(F.conv2d(quantized(x, bits[1]), quantized_weight(net.middle.weight, bits[1])))
        x = x.mean((2, 3))
        return F.linear(quantized(x, bits[2]), quantized_weight(net.linear.weight, bits[2]), net.linear.bias)


def step(net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output and gradients of one backward pass."""
    net.zero_grad()
    y = forward(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def make_net(use_reentrant: bool | None = None) -> tuple[Net, Tensor]:
    torch.manual_seed(1)
    return Net(use_reentrant), torch.randn(4, 3, 10, 10)


def assert_equal(left: list[Tensor], right: list[Tensor], tolerance: float = 0.0) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def in_context(context: Any, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with context:
            return function(x)

    return run
