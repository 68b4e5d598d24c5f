"""OCTAV: the clipping scalar of least quantization error, by a fixed-point recursion (Sakr et al., ICML 2022).

A *scale* here is always the clipping scalar s, the magnitude that the outermost code stands for; the step between
codes is D = s / Q with Q from `code_range`. Symbols: B = bits, Q = largest code, R = rows that get one scale each.

The published recursion ("paper", theorem 3.1) assumes uniform noise of a grid whose top code is not used. "exact"
models the codes -Q..Q themselves: an element is overloaded from (Q + 1/2) D on, not from Q D. Both read

    D' = sum Q |x| [clipped] / (#[not clipped, not zero] / 12 + sum Q**2 [clipped])

with Q = 2**(B-1) (2**B unsigned) and threshold Q D for "paper". Zeros are exact in every grid and are left out;
elements that are not finite are ignored; a value equal to the threshold counts as clipped.
"""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["Grid", "code_range", "octav_scale", "scale_code"]

Grid = Literal["exact", "paper"]

_ITERATIONS = 24  # of the exact recursion with secant steps; the plain one needs at most 14 at 8 bits
_SHORT = 64  # rows this short try candidates instead of trusting a noise model, as in dgcomp/quant/cpu_scale.py
_TOLERANCE = 1e-6
_LARGE = 1 << 15  # elements from which one read by many programs beats many reads by one


def code_range(bits: int, signed: bool = True, narrow: bool = True) -> tuple[int, int]:
    """Smallest and largest integer code of a grid.

    Signed narrow grids are symmetric, +-(2**(bits-1) - 1); `narrow=False` adds the lowest two's-complement code;
    unsigned grids are 0..2**bits - 1. Raises ValueError for bits outside 2..8.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be an integer from 2 to 8, got {bits!r}")
    if not signed:
        return 0, 2**bits - 1
    highest = 2 ** (bits - 1) - 1
    return (-highest if narrow else -highest - 1), highest


def scale_code(bits: int, signed: bool = True, narrow: bool = True) -> int:
    """The code Q that the scale stands for, so that step = scale / Q: the largest magnitude among the codes."""
    low, high = code_range(bits, signed, narrow)
    return max(-low, high)


def octav_scale(
    x: Tensor,
    bits: int = 4,
    signed: bool = True,
    dim: int | Sequence[int] | None = None,
    grid: Grid = "exact",
    *,
    narrow: bool = True,
    start: Tensor | None = None,
    max_iterations: int | None = None,
) -> Tensor:
    """Clipping scalar that minimizes the mean squared quantization error.

    Parameters
    ----------
    x : floating-point Tensor of any shape; float16, bfloat16 and float64 are computed in float32.
    dim : dimensions that share a scale, as in `Tensor.amax`: None for one scale of the whole tensor, 1 for one scale
        per row of a linear weight, (1, 2, 3) for one per output channel of a convolution.
    grid : "exact" models the grid of codes that `fake_quantize` uses; "paper" is the published recursion.
    start : scale to start from (the previous step's), of the result's shape. 5 % are taken off, since iteration from
        above overshoots; a start that clips nothing is dropped. A good start makes one or two reads suffice.
    max_iterations : 10 in the paper. By default until the scale settles.

    Returns
    -------
    float32 Tensor, detached: 0-d where `dim` is None, else of x's shape with the dimensions `dim` of size 1.
    0 where no finite non-zero element is (an all-zero or empty row); such a scale quantizes to zeros.

    Raises ValueError for bits outside 2..8 and for an unknown grid, TypeError for integer tensors.
    On CPU one read of a large tensor suffices: its fixed point is first found on a sample of 65536 elements, and the
    full tensor gives a secant correction (dgcomp/quant/cpu_scale.py); what is left is below 1e-3 of the scale.
    """
    negative, positive, unit, overload = _levels(bits, signed, narrow, grid)
    rows, shape = _rows(x, dim)
    first = None if start is None else start.detach().reshape(-1).double() * (0.95 / unit)
    if rows.device.type == "cpu":
        step = _cpu_steps(rows, negative, positive, overload, first, max_iterations)
    elif has_triton(rows):
        step = _gpu_steps(rows, negative, positive, overload, first, max_iterations)
    else:
        step = reference_steps(rows, negative, positive, overload, first, max_iterations)
    return (step * unit).to(torch.float32).reshape(shape)


def _levels(bits: int, signed: bool, narrow: bool, grid: str) -> tuple[float, float, float, float]:
    """Largest negative and positive code, the code that the scale stands for, and the overload margin in steps."""
    low, high = code_range(bits, signed, narrow)
    if grid == "exact":
        return float(-low), float(high), float(max(-low, high)), 0.5
    if grid == "paper":
        top = float(2 ** (bits - 1) if signed else 2**bits)
        return (top if signed else 0.0), top, top, 0.0
    raise ValueError(f'grid must be "exact" or "paper", got {grid!r}')


def _rows(x: Tensor, dim: int | Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """`x` as contiguous float32 rows (R, n), one per scale, and the shape of the scales."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be a floating-point tensor to be quantized, got {x.dtype}; convert it with x.float()")
    x = x.detach()
    if dim is None:
        return dense_flat(x).to(torch.float32)[None], ()
    reduced = {d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    kept = [d for d in range(x.ndim) if d not in reduced]
    num_rows = int(np.prod([x.shape[d] for d in kept], dtype=np.int64))
    row_size = x.numel() // num_rows if num_rows else 0
    rows = x.permute(*kept, *sorted(reduced)).reshape(num_rows, row_size)
    shape = tuple(1 if d in reduced else x.shape[d] for d in range(x.ndim))
    return rows.to(torch.float32).contiguous(), shape


def dense_flat(x: Tensor) -> Tensor:
    """All elements as one dimension, in memory order, without a copy where the memory has no gaps."""
    if x.is_contiguous():
        return x.reshape(-1)
    return x.permute(memory_order(x)).reshape(-1)


def memory_order(x: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory: a permutation that makes a dense tensor contiguous."""
    strides = x.stride()
    return sorted(range(x.ndim), key=lambda d: (-strides[d], d))


def _cpu_steps(
    rows: Tensor, negative: float, positive: float, overload: float, start: Tensor | None, max_iterations: int | None
) -> Tensor:
    from dgcomp.quant import cpu_scale  # numba takes a second to import

    step = np.zeros(rows.shape[0])
    first = np.zeros(0) if start is None else np.ascontiguousarray(start.expand(rows.shape[0]).numpy())
    cpu_scale.octav_rows(
        rows.numpy(), step, negative, positive, overload, first, _TOLERANCE, max_iterations or _limit(overload)
    )
    return torch.from_numpy(step)


@functools.cache
def _is_triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_triton(x: Tensor) -> bool:
    """Whether the Triton kernels can run on this tensor."""
    return x.device.type == "cuda" and _is_triton_installed()


def _gpu_steps(
    rows: Tensor, negative: float, positive: float, overload: float, start: Tensor | None, max_iterations: int | None
) -> Tensor:
    """One read of a large tensor; a program each for rows, and for what only they can do."""
    from dgcomp.quant import triton_scale  # an optional package

    is_large = rows.shape[0] == 1 and rows.shape[1] >= _LARGE
    if is_large and start is None and max_iterations is None and negative in (0.0, positive):
        return triton_scale.tensor_step(rows, negative, positive, overload)
    return triton_scale.row_steps(rows, negative, positive, overload, start, max_iterations or _limit(overload))


def _limit(overload: float) -> int:
    return _ITERATIONS if overload > 0 else 200  # far below the fixed point the plain map only adds the mean excess


def reference_steps(
    rows: Tensor,
    negative: float,
    positive: float,
    overload: float,
    start: Tensor | None = None,
    max_iterations: int | None = None,
) -> Tensor:
    """Steps (R,) of float32 rows (R, n), in plain torch operations for every device; what the CPU loops must equal."""
    rows = torch.where(rows.isfinite(), rows, 0.0)
    if rows.numel() == 0:
        return torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    counted = rows if negative == 0 else rows.abs()
    total, nonzero = counted.clamp(min=0).sum(1, dtype=torch.float64), (counted > 0).sum(1)
    mean = total / (nonzero.clamp(min=1) * positive)
    step = mean.clone() if start is None else torch.where(start > 0, start.expand_as(mean), mean)
    step, clips = _iterate(rows, step, negative, positive, overload, max_iterations or _limit(overload))
    if start is not None and not bool(clips.all()):
        again, clips_again = _iterate(rows, mean, negative, positive, overload, max_iterations or _limit(overload))
        step, clips = torch.where(clips, step, again), clips | clips_again
    # An iterate that clips nothing: "exact" leaves the choice to the polish; for "paper" the mean of equal magnitudes
    # was lifted above them by rounding.
    unclipped = torch.zeros_like(step) if overload > 0 else counted.amax(1).double() / positive
    step = torch.where(clips, step, unclipped)
    if overload > 0:
        step = _polish(rows, step, negative, positive)
    return torch.where(nonzero > 0, step, torch.zeros_like(step))


def _map(rows: Tensor, step: Tensor, negative: float, positive: float, overload: float) -> tuple[Tensor, Tensor]:
    """One iterate of every row, and whether the row clips anything at `step`."""
    numerator, denominator = torch.zeros_like(step), torch.zeros_like(step)
    num_clipped, inside = torch.zeros_like(step), torch.zeros_like(step)
    sides = [(positive, rows.abs())] if negative == positive else [(positive, rows), (negative, -rows)]
    for levels, values in sides:
        if levels == 0:
            continue
        # A few units in the last place of slack, for a mean that rounding lifts above equal values.
        clipped = (values >= ((levels + overload) * step)[:, None] * (1 - 2e-7)) & (values > 0)
        count = clipped.sum(1).double()
        numerator += levels * torch.where(clipped, values, 0.0).sum(1, dtype=torch.float64)
        denominator += levels**2 * count
        num_clipped += count
        inside += (values > 0).sum(1) - count
    return numerator / (denominator + inside / 12).clamp(min=1e-300), num_clipped > 0


def _iterate(
    rows: Tensor, step: Tensor, negative: float, positive: float, overload: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Fixed point of every row; plain iteration for the published map, secant steps for the grid-aware one."""
    clips = torch.ones_like(step, dtype=torch.bool)
    previous_step, previous_following = torch.full_like(step, -1.0), torch.full_like(step, -1.0)
    before = previous_step
    for _ in range(max_iterations):
        following, still_clips = _map(rows, step, negative, positive, overload)
        clips = clips & still_clips
        slope = torch.zeros_like(step)
        if overload > 0:
            change = step - previous_step
            slope = ((following - previous_following) / torch.where(change == 0, 1.0, change)).clamp(-4, 0)
            slope = torch.where((previous_step > 0) & (change != 0), slope, 0.0)
        before, previous_step, previous_following = previous_step, step, following
        step = torch.where(clips, step + (following - step) / (1 - slope), step)
        if bool(((step - previous_step).abs() <= 1e-9 * step).all()):
            break
    # A cycle of two has its larger member in one of the last two iterates: it clips less.
    in_cycle = (overload == 0) & ((step - before).abs() <= 1e-9 * step)
    return torch.where(in_cycle, torch.maximum(step, previous_step), step), clips


def _polish(rows: Tensor, step: Tensor, negative: float, positive: float) -> Tensor:
    """The candidate of least squared error where uniform noise is a poor model: few codes, short rows, no clipping."""
    if positive == 1:
        codes = _codes(rows, step, negative, positive)
        square = (codes * codes).sum(1, dtype=torch.float64)
        lloyd = (rows * codes).sum(1, dtype=torch.float64) / square.clamp(min=1)
        step = torch.where((step > 0) & (square > 0), lloyd, step)
    if rows.shape[1] > _SHORT and bool((step > 0).all()):
        return step
    highest, lowest = rows.amax(1).clamp(min=0).double(), (-rows).amax(1).clamp(min=0).double()

    def widest(overload: float) -> Tensor:
        wide = highest / (positive + overload)
        return torch.maximum(wide, lowest / (negative + overload)) if negative > 0 else wide

    unclipped = step == 0
    best = torch.where(unclipped, widest(0.5), step)
    least = _squared_error(rows, best, negative, positive)
    for i in range(26 if rows.shape[1] <= _SHORT else 1):
        candidate = widest(0.0) * (1 - 0.02 * (i if i <= 20 else 20 - i))  # as the CPU loops do
        error = _squared_error(rows, candidate, negative, positive)
        wins = (error < least) & (unclipped | (rows.shape[1] <= _SHORT))
        best, least = torch.where(wins, candidate, best), torch.where(wins, error, least)
    return best


def _codes(rows: Tensor, step: Tensor, negative: float, positive: float) -> Tensor:
    inverse = torch.where(step > 0, 1 / step, 0.0).float()[:, None]
    return (rows * inverse).clamp(-negative, positive).round()


def _squared_error(rows: Tensor, step: Tensor, negative: float, positive: float) -> Tensor:
    rest = rows - _codes(rows, step, negative, positive) * step.float()[:, None]
    return (rest * rest).sum(1, dtype=torch.float64)
