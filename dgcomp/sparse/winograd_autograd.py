"""F(2x2, 3x3) on the CPU with its gradient written by hand: a block of images at a time stays in the cache.

The transformed tiles are four times the size of the images. Autograd writes them to memory, and their ReLU, and their
reordering, and keeps all of it for the backward pass. Here they live in one buffer of a few images, and the backward
pass makes them again from the images, which costs additions alone.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dgcomp.sparse import winograd_kernels as kernels
from dgcomp.sparse.threads import run_in_threads, split_evenly

__all__ = ["FusedWinograd", "is_fusable"]

# Tiles a block holds at least: large enough for the matrix product, small enough for the second-level cache.
TILES_PER_BLOCK = 256


def is_fusable(x: Tensor, weight: Tensor, tile: int) -> bool:
    """Whether `FusedWinograd` can run: float32 or float64 on the CPU, F(2x2, 3x3), outside of torch.compile."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return tile == 2 and plain and not torch.compiler.is_compiling()


class FusedWinograd(torch.autograd.Function):
    """winograd_conv2d(x, weight, padding=padding, relu=relu) for tile 2; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.relu = padding, relu
        height, width = x.shape[2] + 2 * padding - 2, x.shape[3] + 2 * padding - 2
        y = x.new_empty(x.shape[0], height, width, weight.shape[2]).permute(0, 3, 1, 2)
        for block, tiles in _blocks(y):
            v = _transform_input(x[block], tiles, padding, relu)
            m = torch.bmm(v.view(16, -1, x.shape[1]), weight)
            _run(kernels.output_images, tiles[0], _by_rows(m, tiles), _images(y[block]))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight)
        for block, tiles in _blocks(grad):
            grad_m = grad.new_empty(16, *tiles, weight.shape[2])
            _run(kernels.output_gradient, tiles[0], _images(grad[block]), _by_rows(grad_m, tiles))
            grad_m = grad_m.view(16, -1, weight.shape[2])
            v = _transform_input(x[block], tiles, ctx.padding, ctx.relu)
            grad_v = torch.bmm(grad_m, weight.transpose(1, 2)) if grad_x is not None else None
            # bmm and a sum, not baddbmm: the profiler of dgcomp.hwmodel prices the products that it sees
            grad_weight += torch.bmm(v.view(16, -1, x.shape[1]).transpose(1, 2), grad_m)
            if grad_x is not None and grad_v is not None:
                arrays = _by_rows(grad_v, tiles), _by_rows(v, tiles), ctx.relu, ctx.padding, _images(grad_x[block])
                _run(kernels.input_gradient, tiles[0], *arrays)
        return grad_x, grad_weight, None, None


def _blocks(y: Tensor) -> Iterator[tuple[slice, tuple[int, int, int]]]:
    """Ranges of images of y [N, K, H, W] and the shape of their tiles: images, tiles high, tiles wide."""
    high, wide = (y.shape[2] + 1) // 2, (y.shape[3] + 1) // 2
    size = max(1, -(-TILES_PER_BLOCK // max(1, high * wide)))
    for start in range(0, y.shape[0], size):
        yield slice(start, start + size), (min(size, y.shape[0] - start), high, wide)


def _transform_input(x: Tensor, tiles: tuple[int, int, int], padding: int, relu: bool) -> Tensor:
    v = x.new_empty(16, *tiles, x.shape[1])
    _run(kernels.input_tiles, tiles[0], _images(x), padding, relu, _by_rows(v, tiles))
    return v


def _images(x: Tensor) -> Any:
    """Channels-last images as an array [N, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def _by_rows(tiles: Tensor, shape: tuple[int, int, int]) -> Any:
    """Transformed tiles as an array [16, N, tiles high, tiles wide * C]."""
    return tiles.view(16, shape[0], shape[1], -1).numpy()


def _run(kernel: Any, num_images: int, *arguments: Any) -> None:
    run_in_threads(partial(kernel, *arguments), split_evenly(num_images, torch.get_num_threads()))
