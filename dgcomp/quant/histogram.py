"""A histogram of float bit patterns: one read of the data answers every question about its scale.

Bins are the sign, the exponent and the leading mantissa bits of a float32, 3 % wide at every magnitude. Counts and
sums are integers, so that the histograms of batches, micro-batches or ranks add up to exactly the histogram of all
their data, in any order: `all_reduce` gives every rank the same scale.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.quant.octav import Grid, _levels, code_range, dense_flat, has_triton, scale_code

__all__ = ["BitHistogram"]

_MANTISSA_BITS = 5
_SHIFT = 23 - _MANTISSA_BITS
_NUM_BINS = 1 << (9 + _MANTISSA_BITS)
_FLOATS = NDArray[np.float64]


class BitHistogram:
    """Counts and sums of float32 values by sign, exponent and five leading mantissa bits.

    `counts` and `residues` are int64 tensors (16384,): how many values fell in a bin, and the sum of the mantissa bits
    below the key, from which the sum of the values follows exactly.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_NUM_BINS, dtype=torch.int64)
        self.residues = torch.zeros(_NUM_BINS, dtype=torch.int64)

    def add(self, x: Tensor) -> "BitHistogram":
        """Count the elements of a floating-point tensor (as float32); changes and returns this histogram."""
        flat = dense_flat(x.detach()).to(torch.float32).contiguous()
        if flat.device.type == "cpu":
            from dgcomp.quant import cpu_scale  # numba takes a second to import

            cpu_scale.bit_histogram(flat.numpy(), self.counts.numpy(), self.residues.numpy())
        elif has_triton(flat):
            from dgcomp.quant import triton_scale  # an optional package

            counts, residues = triton_scale.bit_histogram(flat)
            self.counts += counts.cpu()
            self.residues += residues.cpu()
        else:
            bits = flat.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
            key = bits >> _SHIFT
            self.counts += torch.bincount(key, minlength=_NUM_BINS).cpu()
            below = torch.zeros(_NUM_BINS, dtype=torch.int64, device=flat.device)
            self.residues += below.index_add_(0, key, bits & ((1 << _SHIFT) - 1)).cpu()
        return self

    def merge(self, other: "BitHistogram") -> "BitHistogram":
        """Add another histogram's counts; changes and returns this one."""
        self.counts += other.counts
        self.residues += other.residues
        return self

    def all_reduce(self, group: Any = None) -> "BitHistogram":
        """Sum over the ranks of a process group, in place, in one message of 256 KiB; the result is exact."""
        message = torch.stack([self.counts, self.residues])
        dist.all_reduce(message, group=group)
        self.counts, self.residues = message[0].contiguous(), message[1].contiguous()
        return self

    def octav_scale(self, bits: int = 4, signed: bool = True, grid: Grid = "exact", *, narrow: bool = True) -> float:
        """Clipping scalar as `quant.octav_scale` finds it, within 1e-3 for smooth distributions; 0 for no data."""
        negative, positive, unit, overload = _levels(bits, signed, narrow, grid)
        sides = [self._side("both")] if negative == positive else [self._side("positive"), self._side("negative")]
        levels = [positive] if negative == positive else [positive, negative]
        used = [(q, side) for q, side in zip(levels, sides, strict=True) if q > 0 and side.count.sum() > 0]
        if not used:
            return 0.0
        step = _solve(used, overload)
        if overload > 0 and positive == 1:
            step = _lloyd(used, step)
        return float(step * unit)

    def quantile(self, fraction: float, *, signed: bool = True) -> float:
        """Magnitude below which `fraction` of the finite elements lie, zeros included; of positive ones if unsigned."""
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        side = self._side("both" if signed else "positive")
        if not side.count.size:
            return 0.0
        zeros = int(self._finite_counts().sum() - side.count.sum())
        cumulated = zeros + np.cumsum(side.count)
        i = int(np.searchsorted(cumulated, fraction * cumulated[-1]))
        i = min(i, side.count.size - 1)
        missing = (cumulated[i] - fraction * cumulated[-1]) / side.count[i]
        return float(side.upper[i] - min(max(missing, 0.0), 1.0) * (side.upper[i] - side.lower[i]))

    def mse_scale(self, bits: int = 4, signed: bool = True, *, narrow: bool = True, candidates: int = 100) -> float:
        """Best of `candidates` equally spaced fractions of the largest magnitude, by squared error over bin means."""
        low, high = code_range(bits, signed, narrow)
        values, counts = self._means()
        widest = max(np.abs(values).max() if signed else values.max(), 0.0) if values.size else 0.0
        if widest == 0.0:
            return 0.0
        scales = widest * np.arange(1, candidates + 1) / candidates
        steps = scales / scale_code(bits, signed, narrow)
        errors = [counts @ (values - np.clip(np.rint(values / d), low, high) * d) ** 2 for d in steps]
        return float(scales[int(np.argmin(errors))])

    @property
    def has_negative(self) -> bool:
        """Whether a finite element below zero was counted."""
        return self._side("negative").count.size > 0

    def linear(self, num_bins: int, *, signed: bool = True) -> tuple[_FLOATS, _FLOATS]:
        """Edges (num_bins + 1,) from 0 to the largest magnitude, and counts (num_bins,) of the non-zero elements."""
        side = self._side("both" if signed else "positive")
        if not side.count.size:
            return np.linspace(0, 1, num_bins + 1), np.zeros(num_bins)
        edges = np.linspace(0, side.upper[-1], num_bins + 1)
        below = np.interp(edges, np.append(side.lower[0], side.upper), np.append(0.0, np.cumsum(side.count)))
        return edges, np.diff(below)

    def _side(self, which: str) -> "_Side":
        count, total = self._finite_counts().astype(np.float64), self._sums()
        half = _NUM_BINS // 2
        lower = _bin_edges()
        if which == "both":
            count, total = count[:half] + count[half:], total[:half] + total[half:]
        else:
            part = slice(0, half) if which == "positive" else slice(half, None)
            count, total = count[part], total[part]
        used = (count > 0) & (total > 0)
        if used[1:].any():
            used[0] = False  # zeros share this bin with the smallest denormals, which then do not matter
        return _Side(lower[:-1][used], lower[1:][used], count[used], total[used])

    def _finite_counts(self) -> NDArray[np.int64]:
        finite = self.counts.numpy().copy()
        finite[((np.arange(_NUM_BINS) >> _MANTISSA_BITS) & 0xFF) == 0xFF] = 0
        return finite

    def _sums(self) -> _FLOATS:
        """Sum of magnitudes per bin: 2**(exponent - 150) * (count * key mantissa + residues)."""
        index = np.arange(_NUM_BINS)
        exponent = (index >> _MANTISSA_BITS) & 0xFF
        implicit = np.where(exponent > 0, 1 << 23, 0)
        mantissa = implicit + ((index & ((1 << _MANTISSA_BITS) - 1)) << _SHIFT)
        unit = np.exp2(np.maximum(exponent, 1) - 150.0)
        sums = unit * (self._finite_counts().astype(np.float64) * mantissa + self.residues.numpy())
        result: _FLOATS = np.where(exponent == 0xFF, 0.0, sums)
        return result

    def _means(self) -> tuple[_FLOATS, _FLOATS]:
        """Signed mean of every occupied bin, and its count."""
        count = self._finite_counts().astype(np.float64)
        sums = self._sums() * np.where(np.arange(_NUM_BINS) < _NUM_BINS // 2, 1.0, -1.0)
        used = count > 0
        return sums[used] / count[used], count[used]


class _Side:
    """Occupied bins of one sign: edges, count and sum of magnitudes, with suffix sums for threshold queries."""

    def __init__(self, lower: _FLOATS, upper: _FLOATS, count: _FLOATS, total: _FLOATS) -> None:
        self.lower, self.upper, self.count, self.total = lower, upper, count, total
        self._counts_from = np.append(np.cumsum(count[::-1])[::-1], 0.0)
        self._totals_from = np.append(np.cumsum(total[::-1])[::-1], 0.0)

    def above(self, threshold: float) -> tuple[float, float]:
        """Count and sum of the magnitudes >= threshold, linear inside the bin that it divides."""
        i = int(np.searchsorted(self.upper, threshold, side="right"))
        if i == self.upper.size or threshold <= self.lower[i]:
            return float(self._counts_from[i]), float(self._totals_from[i])
        low, high = self.lower[i], self.upper[i]
        part = (high - threshold) / (high - low)
        count = self._counts_from[i + 1] + part * self.count[i]
        total = self._totals_from[i + 1] + part * self.total[i] * (threshold + high) / (low + high)
        return float(count), float(total)


def _bin_edges() -> _FLOATS:
    """Lower magnitude edge of every bin of one sign, and the upper edge of the last."""
    index = np.arange(_NUM_BINS // 2 + 1, dtype=np.int64)
    exponent, mantissa = index >> _MANTISSA_BITS, (index & ((1 << _MANTISSA_BITS) - 1)) << _SHIFT
    edges: _FLOATS = np.exp2(np.maximum(exponent, 1) - 150.0) * (np.where(exponent > 0, 1 << 23, 0) + mantissa)
    return edges


def _solve(sides: list[tuple[float, _Side]], overload: float) -> float:
    """Fixed point on suffix sums, from the mean magnitude, with secant steps for the grid-aware recursion."""
    nonzero = sum(side.count.sum() for _, side in sides)
    step = sum(side.total.sum() for _, side in sides) / (nonzero * sides[0][0])
    previous: tuple[float, float] | None = None
    for _ in range(200):
        numerator = denominator = clipped = 0.0
        for levels, side in sides:
            count, total = side.above((levels + overload) * step)
            numerator += levels * total
            denominator += levels**2 * count
            clipped += count
        if clipped == 0:
            return float(max(side.upper[-1] / (levels + overload) for levels, side in sides))
        following = numerator / (denominator + (nonzero - clipped) / 12)
        if abs(following - step) <= 1e-7 * following:
            return float(following)
        slope = 0.0
        if overload > 0 and previous is not None and previous[0] != step:
            slope = min(max((following - previous[1]) / (step - previous[0]), -4.0), 0.0)
        previous = (step, following)
        step += (following - step) / (1 - slope)
    return float(step)


def _lloyd(sides: list[tuple[float, _Side]], step: float) -> float:
    """Best step for the codes that `step` gives, sum(x q) / sum(q q), summed by the thresholds (k - 1/2) step."""
    product = square = 0.0
    for levels, side in sides:
        for k in range(1, int(levels) + 1):
            count, total = side.above((k - 0.5) * step)
            product += total
            square += (2 * k - 1) * count
    return product / square if square > 0 else step
