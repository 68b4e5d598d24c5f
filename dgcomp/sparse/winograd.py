"""Winograd convolutions whose ReLU and weights live in the Winograd domain.

Liu, Pool, Han, Dally, "Efficient Sparse-Winograd Convolutional Neural Networks", ICLR 2018. A tile d of the input is
transformed to V = ReLU(B^T d B), multiplied elementwise with the weights U summed over the input channels, and the
result is transformed back: Y = A^T M A. Because the ReLU acts on V and U is what is trained and pruned, both stay
sparse where the products are. The layer equals no spatial convolution and has no ReLU before it.

Shapes: N images, C input and K output channels, T = (tile + 2)**2 positions of a transformed tile, L tiles an image.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgcomp.sparse.winograd_autograd import FusedWinograd, is_fusable

__all__ = ["WinogradReLUConv2d", "transform_input", "transform_weight", "winograd_conv2d"]

# Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: rows of B^T, G and A^T by output tile.
_INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_WEIGHT = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


@lru_cache
def _two_dimensional(which: str, tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One transform of rows and columns at once, as a matrix on flattened tiles: kron(X, X)."""
    tables: dict[str, Any] = {"input": _INPUT, "weight": _WEIGHT, "output": _OUTPUT}
    matrix = torch.tensor(tables[which][tile], dtype=torch.float64)
    return torch.kron(matrix, matrix).to(device, dtype)


def transform_weight(weight: Tensor, tile: int = 2) -> Tensor:
    """Winograd weights U = G g G^T [T, C, K] of spatial weights g [K, C, 3, 3]."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must have shape [K, C, 3, 3], got {tuple(weight.shape)}")
    matrix = _two_dimensional("weight", tile, weight.dtype, weight.device)
    u: Tensor = torch.einsum("ts,kcs->tck", matrix, weight.flatten(2))
    return u


def transform_input(x: Tensor, *, padding: int = 1, tile: int = 2) -> Tensor:
    """Transformed tiles B^T d B [T, C, N, L] of images x [N, C, H, W], before any ReLU.

    Images whose output is no multiple of the tile are filled up with zeros below and at the right.
    """
    height, width = _output_size(x, padding)
    x = F.pad(x, (padding, padding + -width % tile, padding, padding + -height % tile))
    tiles = F.unfold(x, tile + 2, stride=tile).unflatten(1, (x.shape[1], -1))  # [N, C, T, L]
    matrix = _two_dimensional("input", tile, x.dtype, x.device)
    v: Tensor = matrix @ tiles.permute(2, 1, 0, 3).flatten(1)
    return v.view(v.shape[0], x.shape[1], x.shape[0], -1)


def transform_output(m: Tensor, height: int, width: int, *, tile: int = 2) -> Tensor:
    """Images A^T M A [N, K, height, width] of products m [T, K, N, L]; what exceeds the size is cut off."""
    tiles_high, tiles_wide = -(-height // tile), -(-width // tile)
    matrix = _two_dimensional("output", tile, m.dtype, m.device)
    y = (matrix @ m.flatten(1)).view(tile, tile, m.shape[1], m.shape[2], tiles_high, tiles_wide)
    y = y.permute(3, 2, 4, 0, 5, 1).reshape(m.shape[2], m.shape[1], tiles_high * tile, tiles_wide * tile)
    return y[:, :, :height, :width]


def winograd_conv2d(x: Tensor, weight: Tensor, *, padding: int = 1, tile: int = 2, relu: bool = True) -> Tensor:
    """Convolve images x [N, C, H, W] with Winograd weights [T, C, K] -> [N, K, H', W'], stride 1, 3x3 filters.

    `relu=True` applies ReLU after the input transform (Winograd-ReLU); without it the result equals
    `F.conv2d` with the spatial weights that `transform_weight` made the weights of. T is 16 for tile 2, F(2x2, 3x3),
    and 36 for tile 4, F(4x4, 3x3), which saves 4x instead of 2.25x multiplies but loses digits. On the CPU F(2x2, 3x3)
    has a gradient written by hand, several times faster, that can't be differentiated again.
    """
    _check(x, weight, tile)
    if is_fusable(x, weight, tile):
        y: Tensor = FusedWinograd.apply(x, weight, padding, relu)
        return y
    height, width = _output_size(x, padding)
    v = transform_input(x, padding=padding, tile=tile)
    if relu:
        v = v.relu()
    m = torch.bmm(weight.transpose(1, 2), v.flatten(2)).unflatten(2, v.shape[2:])
    return transform_output(m, height, width, tile=tile)


def _output_size(x: Tensor, padding: int) -> tuple[int, int]:
    return x.shape[2] + 2 * padding - 2, x.shape[3] + 2 * padding - 2


def _check(x: Tensor, weight: Tensor, tile: int) -> None:
    if tile not in _INPUT:
        raise ValueError(f"tile must be 2, F(2x2, 3x3), or 4, F(4x4, 3x3), got {tile}")
    if weight.ndim != 3 or weight.shape[0] != (tile + 2) ** 2:
        raise ValueError(f"weight must have shape [{(tile + 2) ** 2}, C, K] for tile {tile}, got {tuple(weight.shape)}")
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must have shape [N, {weight.shape[1]}, H, W], got {tuple(x.shape)}")


class WinogradReLUConv2d(nn.Module):
    """A 3x3 convolution of stride 1 with Winograd-domain weights [T, C, K] and its ReLU after the input transform.

    Batch norm belongs before the layer, a spatial ReLU does not. There is no bias, as in the paper. `relu=False`
    gives the plain Winograd layer, whose pruning the paper compares with. Raises ValueError for groups other than 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding: int = 1,
        tile: int = 2,
        relu: bool = True,
        groups: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError(
                f"groups must be 1, got {groups}: Winograd weights mix all channels; use nn.Conv2d instead"
            )
        if tile not in _INPUT:
            raise ValueError(f"tile must be 2, F(2x2, 3x3), or 4, F(4x4, 3x3), got {tile}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.padding, self.tile, self.relu = padding, tile, relu
        shape = ((tile + 2) ** 2, in_channels, out_channels)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights: normal with variance 0.5625 / (16 C) as released for tile 2, else from He weights."""
        if self.tile != 2:
            self.reset_from_spatial()
            return
        with torch.no_grad():
            self.weight.normal_(0, math.sqrt(0.5625 / (16 * self.in_channels)))

    def reset_from_spatial(self) -> None:
        """Draw the weights as transforms U = G g G^T of He-initialised spatial weights g.

        Their norm is twice that of the released initialisation. Behind batch norm the norm does not change what a
        network computes, but a gradient step turns the weights a quarter as far, about as far as spatial ones.
        """
        with torch.no_grad():
            spatial = torch.empty(self.out_channels, self.in_channels, 3, 3).to(self.weight)
            self.weight.copy_(transform_weight(nn.init.kaiming_normal_(spatial), self.tile))

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, *, tile: int = 2, relu: bool = True) -> "WinogradReLUConv2d":
        """A layer that starts from a spatial convolution's weights; equal to it with `relu=False`."""
        padding = conv.padding[0] if isinstance(conv.padding, tuple) else -1
        expected = ((3, 3), (1, 1), (1, 1), 1, (padding, padding), None)
        got = (conv.kernel_size, conv.stride, conv.dilation, conv.groups, conv.padding, conv.bias)
        if got != expected:
            raise ValueError(f"conv must be 3x3, stride 1, dilation 1, one group, equal padding, no bias, got {conv}")
        layer = cls(conv.in_channels, conv.out_channels, padding=padding, tile=tile, relu=relu).to(conv.weight)
        with torch.no_grad():
            layer.weight.copy_(transform_weight(conv.weight, tile))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return winograd_conv2d(x, self.weight, padding=self.padding, tile=self.tile, relu=self.relu)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, padding={self.padding}, tile={self.tile}, relu={self.relu}"
