"""Count the multiplies that a network takes on live tensors, zeros of weights and activations left out.

Counted as in Sparse-Winograd (ICLR 2018): a multiply is one whose weight and activation are both not zero; transforms
are additions and cost nothing. The reference is the direct dense form, 9 C K multiplies an output pixel of a 3x3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgcomp.sparse.winograd import WinogradReLUConv2d, transform_input

__all__ = ["LayerMultiplies", "MultiplyCount", "count_multiplies"]


@dataclass(frozen=True)
class LayerMultiplies:
    """Multiplies of one layer, summed over the batch and over all calls."""

    name: str
    direct: int
    """In the direct dense form: a spatial convolution or a matrix product."""
    dense: int
    """In the layer's own form, every zero multiplied: 1 / 2.25 of `direct` for F(2x2, 3x3) and even sizes."""
    sparse: int
    """With both factors not zero."""


@dataclass(frozen=True)
class MultiplyCount:
    """Multiplies of a forward pass by layer, in the order of the first call."""

    layers: tuple[LayerMultiplies, ...]

    @property
    def direct(self) -> int:
        """Multiplies of the whole network in the direct dense form."""
        return sum(layer.direct for layer in self.layers)

    @property
    def sparse(self) -> int:
        """Multiplies of the whole network with both factors not zero."""
        return sum(layer.sparse for layer in self.layers)

    @property
    def reduction(self) -> float:
        """direct / sparse."""
        return self.direct / max(self.sparse, 1)


@torch.no_grad()
def count_multiplies(model: nn.Module, x: Tensor) -> MultiplyCount:
    """Run `model(x)` in eval mode and count the multiplies of its convolutions and linear layers.

    Counts Conv2d, Linear and WinogradReLUConv2d modules; the model's train or eval mode is restored.
    """
    counts: dict[str, tuple[int, int, int]] = {}
    handles = []
    for name, module in model.named_modules():
        counter = _counter(module)
        if counter is not None:
            handles.append(module.register_forward_hook(_hook(name, counter, counts)))
    training = model.training
    try:
        model.eval()
        model(x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return MultiplyCount(tuple(LayerMultiplies(name, *numbers) for name, numbers in counts.items()))


def _counter(module: nn.Module) -> Callable[..., tuple[int, int, int]] | None:
    if isinstance(module, WinogradReLUConv2d):
        return _count_winograd
    if isinstance(module, nn.Conv2d):
        return _count_conv
    if isinstance(module, nn.Linear):
        return _count_linear
    return None


def _hook(name: str, counter: Callable[..., tuple[int, int, int]], counts: dict[str, tuple[int, int, int]]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        new, old = counter(module, inputs[0], output), counts.get(name, (0, 0, 0))
        counts[name] = (old[0] + new[0], old[1] + new[1], old[2] + new[2])

    return hook


def _count_winograd(layer: WinogradReLUConv2d, x: Tensor, output: Tensor) -> tuple[int, int, int]:
    v = transform_input(x, padding=layer.padding, tile=layer.tile)
    active = (v > 0 if layer.relu else v != 0).sum(dim=(2, 3))  # [T, C]
    sparse = int((active * (layer.weight != 0).sum(dim=2)).sum())
    tiles = v.shape[2] * v.shape[3]
    return 9 * layer.in_channels * output.numel(), layer.weight.numel() * tiles, sparse


def _count_conv(layer: nn.Conv2d, x: Tensor, output: Tensor) -> tuple[int, int, int]:
    direct = output.numel() * layer.weight[0].numel()
    filters = (layer.weight != 0).to(torch.float64)
    # the sum over a group's filters first: one output channel a group then counts them all
    filters = filters.unflatten(0, (layer.groups, -1)).sum(dim=1)
    active = (x != 0).to(torch.float64)
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode must be 'zeros' to count multiplies, got {layer.padding_mode!r}")
    pairs = F.conv2d(active, filters, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return direct, direct, int(pairs.sum().round())


def _count_linear(layer: nn.Linear, x: Tensor, output: Tensor) -> tuple[int, int, int]:
    direct = output.numel() * layer.in_features
    active = (x != 0).flatten(0, -2).sum(dim=0)
    return direct, direct, int((active * (layer.weight != 0).sum(dim=0)).sum())
