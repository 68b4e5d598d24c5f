"""Winograd convolution with pruned weights on the CPU: only the weights that are left are multiplied."""

from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dgcomp.sparse.threads import run_in_threads, split_evenly
from dgcomp.sparse.winograd import WinogradReLUConv2d, transform_input, transform_output

__all__ = ["SparseWinogradConv2d"]

Array = npt.NDArray[Any]
BLOCK = 256  # tiles at a time: a row of the product stays in the first-level cache


@numba.njit(cache=True, nogil=True)
def _multiply(
    pointers: Array, channels: Array, weights: Array, v: Array, out: Array, start: int, stop: int
) -> None:  # fmt: skip
    """out[t, k] = sum of weights[p] * v[t, channels[p]] over the entries of row (t, k), for tiles [start, stop)."""
    positions, num_out = out.shape[0], out.shape[1]
    for left in range(start, stop, BLOCK):
        right = min(left + BLOCK, stop)
        for t in range(positions):
            for k in range(num_out):
                row = t * num_out + k
                for column in range(left, right):
                    out[t, k, column] = 0
                for p in range(pointers[row], pointers[row + 1]):
                    channel, weight = channels[p], weights[p]
                    for column in range(left, right):
                        out[t, k, column] += weight * v[t, channel, column]


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
        v = transform_input(x, padding=self.padding, tile=self.tile)
        if self.relu:
            v = v.relu_()
        num_tiles = v.shape[2] * v.shape[3]
        m = torch.empty(v.shape[0], self.out_channels, num_tiles, dtype=v.dtype)
        weights = self.weights.astype(m.numpy().dtype, copy=False)
        kernel = partial(_multiply, self.pointers, self.channels, weights, v.flatten(2).numpy(), m.numpy())
        run_in_threads(kernel, split_evenly(num_tiles, torch.get_num_threads()))
        height, width = x.shape[2] + 2 * self.padding - 2, x.shape[3] + 2 * self.padding - 2
        return transform_output(m.unflatten(2, v.shape[2:]), height, width, tile=self.tile)
