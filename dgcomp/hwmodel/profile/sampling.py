"""Random samples of tensors: shares of nonzeros with their standard error, and whole columns of operands."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXACT_BELOW", "ConvGeometry", "Sampler", "patches"]

EXACT_BELOW = 1 << 20  # counting a million elements takes well under a millisecond


class Sampler:
    """Draws with a generator of its own, so that profiling does not change the user's random numbers.

    elements: how many are looked at to measure the density of an activation. vectors: how many columns of an
    operand keep their whole pattern. inner: how much of the inner dimension of a weight's gradient is kept.
    """

    def __init__(self, *, elements: int, vectors: int, inner: int = 256, seed: int = 0) -> None:
        for name, value in (("elements", elements), ("vectors", vectors), ("inner", inner)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.elements, self.vectors, self.inner = elements, vectors, inner
        self._generator = torch.Generator().manual_seed(seed)

    def indices(self, size: int, count: int) -> Tensor:
        """Different indices below `size`, int64: all of them, or about `count` (never more) of a larger size."""
        if count >= size:
            return torch.arange(size)
        if size < 4 * count:
            return torch.randperm(size, generator=self._generator)[:count]
        drawn: Tensor = torch.randint(size, (count,), generator=self._generator).unique()
        return drawn

    def density(self, tensor: Tensor, *, exact_below: int = 0) -> tuple[float, float]:
        """Share of nonzeros and its standard error; exact (error 0) up to `elements` or `exact_below` elements."""
        tensor = tensor.detach()
        if tensor.numel() <= max(self.elements, exact_below):
            return float(torch.count_nonzero(tensor)) / max(tensor.numel(), 1), 0.0
        # One random index per dimension: needs no copy, whatever the strides are.
        picks = [torch.randint(size, (self.elements,), generator=self._generator) for size in tensor.shape]
        share = float(torch.count_nonzero(tensor[tuple(pick.to(tensor.device) for pick in picks)])) / self.elements
        return share, math.sqrt(share * (1 - share) / self.elements)

    def rows(self, matrix: Tensor) -> Tensor:
        """Some rows of a matrix: [up to `vectors`, columns]."""
        return matrix[self.indices(matrix.shape[0], self.vectors).to(matrix.device)]

    def positions(self, sizes: list[int], count: int) -> list[Tensor]:
        """`count` random positions of an array of these sizes: one index tensor for each dimension."""
        return [torch.randint(size, (count,), generator=self._generator) for size in sizes]


def patches(images: Tensor, positions: list[Tensor], kernel: list[int], conv: "ConvGeometry") -> Tensor:
    """Input patches of a convolution's first group at some output positions: [positions, channels * kernel].

    images: [N, C, *spatial]; positions: image, then spatial position of the output. Zeros outside of the image.
    """
    channels = images.shape[1] // conv.groups
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    index: list[Any] = [positions[0].to(images.device).reshape([-1] + [1] * len(kernel)), slice(0, channels)]
    for dim, length in enumerate(kernel):
        start = positions[dim + 1].to(images.device) * conv.stride[dim] - conv.padding[dim]
        at = start[:, None] + conv.dilation[dim] * torch.arange(length, device=images.device)
        size = images.shape[dim + 2]
        shape = [-1, *(length if d == dim else 1 for d in range(len(kernel)))]
        inside = inside & ((at >= 0) & (at < size)).reshape(shape)
        index.append(at.clamp(0, size - 1).reshape(shape))
    # A slice between index tensors moves the channels to the end: [positions, *kernel, channels].
    found = images.detach()[tuple(index)] * inside[..., None]
    return found.movedim(-1, 1).reshape(len(positions[0]), -1)


class ConvGeometry:
    """Stride, padding, dilation and groups of a convolution, one number for each spatial dimension."""

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int, spatial: int) -> None:
        self.stride, self.padding, self.dilation = (
            list(values) * spatial if len(values) == 1 else list(values) for values in (stride, padding, dilation)
        )
        self.groups = groups

    def output_size(self, size: list[int], kernel: list[int]) -> list[int]:
        """Spatial size of the output."""
        return [
            (length + 2 * padding - dilation * (k - 1) - 1) // stride + 1
            for length, k, stride, padding, dilation in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]

    def is_plain_3x3(self, kernel: list[int]) -> bool:
        """Whether F(2x2, 3x3) applies: 3x3, stride 1, dilation 1, one group."""
        return kernel == [3, 3] and self.stride == [1, 1] and self.dilation == [1, 1] and self.groups == 1
