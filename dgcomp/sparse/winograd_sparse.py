"""Winograd convolution with pruned weights on the CPU: only the weights that are left are multiplied."""

from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dgcomp.sparse import winograd_kernels as kernels
from dgcomp.sparse.threads import run_in_threads, split_evenly
from dgcomp.sparse.winograd import WinogradReLUConv2d, transform_input, transform_output

__all__ = ["SparseWinogradConv2d"]

Array = npt.NDArray[Any]
BLOCK = 256  # tiles at a time: a row of the product stays in the first-level cache


@numba.njit(cache=True, nogil=True)
def _multiply(
    pointers: Array, channels: Array, weights: Array, v: Array, out: Array, start: int, stop: int
) -> None:  # fmt: skip
    """out[t, n, k] = sum of weights[p] * v[t, n, channels[p]] over the entries of row (t, k).

    For the pairs of image and position [start, stop), numbered n * T + t.
    """
    positions, num_out, num_tiles = out.shape[0], out.shape[2], out.shape[3]
    for pair in range(start, stop):
        n, t = pair // positions, pair % positions
        for left in range(0, num_tiles, BLOCK):
            size = min(BLOCK, num_tiles - left)
            for k in range(num_out):
                target = out[t, n, k, left : left + size]
                target[:] = 0
                row = t * num_out + k
                for p in range(pointers[row], pointers[row + 1]):
                    source, weight = v[t, n, channels[p], left : left + size], weights[p]
                    for column in range(size):
                        target[column] += weight * source[column]


class SparseWinogradConv2d(nn.Module):
    """Inference form of a pruned `WinogradReLUConv2d`: compressed rows of every transformed position.

    float32 or float64 on the CPU; no gradients. Runs in `torch.get_num_threads()` threads.
    """

    def __init__(self, layer: WinogradReLUConv2d) -> None:
        super().__init__()
        rows = layer.weight.detach().cpu().transpose(1, 2).flatten(0, 1).numpy()  # [T * K, C]
        row, channel = np.nonzero(rows)
        self.pointers = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
        self.channels = channel.astype(np.int32)
        self.weights = rows[row, channel]
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.padding, self.tile, self.relu = layer.padding, layer.tile, layer.relu

    @property
    def density(self) -> float:
        """Share of the weights that are left."""
        return len(self.weights) / (len(self.pointers) - 1) / self.in_channels

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.device.type != "cpu":
            raise ValueError(f"x must be [N, {self.in_channels}, H, W] on the CPU, got {tuple(x.shape)} on {x.device}")
        x = x.detach().contiguous()
        weights = self.weights.astype(x.numpy().dtype, copy=False)
        height, width = x.shape[2] + 2 * self.padding - 2, x.shape[3] + 2 * self.padding - 2
        v = self._transform_input(x, -(-height // self.tile), -(-width // self.tile))
        m = v.new_empty(v.shape[0], len(x), self.out_channels, *v.shape[3:])
        arrays = self.pointers, self.channels, weights, v.flatten(3).numpy(), m.flatten(3).numpy()
        _run(partial(_multiply, *arrays), len(x) * len(v))
        y = x.new_empty(len(x), self.out_channels, height, width)
        if self.tile == 2:
            planes = y.flatten(0, 1)[..., None].numpy()
            _run(partial(kernels.output_images, m.flatten(1, 2).numpy(), planes), len(planes))
        else:
            y = transform_output(m.transpose(1, 2).flatten(3), height, width, tile=self.tile)
        return y

    def _transform_input(self, x: Tensor, high: int, wide: int) -> Tensor:
        """Transformed tiles [T, N, C, tiles high, tiles wide] after the ReLU."""
        if self.tile == 2:
            v = x.new_empty(16, *x.shape[:2], high, wide)
            planes = x.flatten(0, 1)[..., None].numpy()  # to the kernel every plane is an image of one channel
            _run(partial(kernels.input_tiles, planes, self.padding, self.relu, v.flatten(1, 2).numpy()), len(planes))
            return v
        v = transform_input(x, padding=self.padding, tile=self.tile).transpose(1, 2)
        tiles: Tensor = (v.relu() if self.relu else v).contiguous().unflatten(3, (high, wide))
        return tiles


def _run(kernel: Any, count: int) -> None:
    run_in_threads(kernel, split_evenly(count, torch.get_num_threads()))
