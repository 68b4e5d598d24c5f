"""Fused fake quantization on GPUs: one read and one write forward; backward two reads and one write.

Tested in Triton's interpreter and compiled to cubin for sm_80 and sm_90; not run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["clip_gradient", "quantize"]

BLOCK = 1024

Layout = tuple[int, int, int]
"""(outer, channels, inner): the shape in memory of a tensor with one step per channel."""


def quantize(x: Tensor, step: Tensor, low: int, high: int, layout: Layout) -> Tensor:
    """step * clip(round(x / step), low, high) of a dense tensor, in its dtype; `step` float32 with `channels` values.

    A step too small to divide by gives zeros; NaN stays NaN.
    """
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    # a fused multiply-add has nothing to fuse here but would be allowed to undo the rounding trick
    quantize_kernel[grid](
        x, step, out, x.numel(), layout[1], layout[2], float(low), float(high), BLOCK=BLOCK, enable_fp_fusion=False
    )
    return out


def clip_gradient(gradient: Tensor, x: Tensor, scale: Tensor, low: int, keep_direction: bool, layout: Layout) -> Tensor:
    """Gradient where x lies within [-scale, scale] (unsigned: [0, scale]); outside 0, or times edge / x for MAD."""
    out = torch.empty_like(gradient)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    clip_gradient_kernel[grid](
        gradient, x, scale, out, x.numel(), layout[1], layout[2],
        SIGNED=low < 0, KEEP_DIRECTION=keep_direction, BLOCK=BLOCK,
    )  # fmt: skip
    return out


@triton.jit
def quantize_kernel(x, step, out, numel, channels, inner, low, high, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.load(step + at // inner % channels, mask=inside, other=0.0)
    usable = size >= 1e-37
    inverse = tl.where(usable, 1.0 / tl.where(usable, size, 1.0), 0.0)
    scaled = value * inverse
    scaled = tl.where(scaled > high, high, scaled)  # comparisons keep NaN
    scaled = tl.where(scaled < low, low, scaled)
    code = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2**23: rounds half to even
    tl.store(out + at, (code * tl.where(usable, size, 0.0)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def clip_gradient_kernel(
    gradient,
    x,
    scale,
    out,
    numel,
    channels,
    inner,
    SIGNED: tl.constexpr,
    KEEP_DIRECTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    upper = tl.load(scale + at // inner % channels, mask=inside, other=0.0)
    lower = -upper if SIGNED else upper * 0
    is_inside = (value <= upper) & (value >= lower)
    if KEEP_DIRECTION:
        edge = tl.where(value > upper, upper, lower)
        kept = tl.where(is_inside, g, g * (edge / tl.where(is_inside, 1.0, value)))
    else:
        kept = tl.where(is_inside, g, 0.0)
    tl.store(out + at, kept.to(out.dtype.element_ty), mask=inside)
