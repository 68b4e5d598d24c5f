"""The compiled CPU loops. Everything here is NumPy arrays and numbers; numba_engine.py is the way in.

A block of `BLOCK` elements goes through three loops while it is in the first-level cache: take the gradient as float32,
update u and v, search for entries that reach the threshold. Each loop is simple enough for LLVM to vectorize.
No loop uses fastmath: LLVM may then neither fuse a product with a sum nor reorder, and the bits equal the reference's.
"""

from typing import Any

import numpy as np
from numba import njit

from dgcomp.kernels.numba_bits import LANES, is_bad, lowest_bit, magnitude_bits, reaching_bits, widen
from dgcomp.kernels.rules import Rule

BLOCK = 512

_MOMENTUM, _NESTEROV = int(Rule.MOMENTUM), int(Rule.NESTEROV)
_ADDITIONAL_MOMENTUM = int(Rule.ADDITIONAL_MOMENTUM)
_RADIX_BITS = 8
_NUM_BINS = 1 << _RADIX_BITS


@njit(cache=True, nogil=True)
def accumulate_select(
    gradient: Any,
    parameter: Any,
    momentum: Any,
    residual: Any,
    rule: int,
    first: int,
    last: int,
    gradient_scale: float,
    momentum_factor: float,
    weight_decay: float,
    threshold: float,
    positions: Any,
) -> int:
    """Update elements [first, last), write hits to positions[first:], and return how many there are."""
    scale, factor = np.float32(gradient_scale), np.float32(momentum_factor)
    decay, limit = np.float32(weight_decay), magnitude_bits(threshold)
    scaled = np.empty(BLOCK, np.float32)
    end = first
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        g, v = scaled[: stop - start], residual[start:stop]
        if parameter is None:
            _take(gradient[start:stop], scale, g)
        else:
            _take_decayed(gradient[start:stop], parameter[start:stop], scale, decay, g)
        if momentum is None:
            _add(g, v)
        else:
            _accumulate(rule, g, factor, momentum[start:stop], v)
        end = _append_hits(v, start, limit, positions, end)
    return end - first


@njit(cache=True, nogil=True)
def find_at_least(residual: Any, first: int, last: int, threshold: float, positions: Any) -> int:
    """Write the hits among elements [first, last) to positions[first:], and return how many there are."""
    end = _append_hits(residual[first:last], first, magnitude_bits(threshold), positions, first)
    return end - first


@njit(cache=True, nogil=True)
def keep_largest(residual: Any, positions: Any, k: int, kept: Any) -> int:
    """Copy to `kept` what is not below the k-th largest nonzero magnitude; its number, or -1 if out of range."""
    if not _all_inside(positions, residual.size):
        return -1
    magnitudes = np.empty(positions.size, np.int32)
    for i in range(positions.size):
        magnitudes[i] = magnitude_bits(residual[positions[i]])
    kth = max(_kth_largest(magnitudes, k), 1)
    count = 0
    for i in range(positions.size):
        if magnitudes[i] >= kth:
            kept[count] = positions[i]
            count += 1
    return count


@njit(cache=True, nogil=True)
def is_finite(x: Any, first: int, last: int) -> bool:
    """Whether no element of [first, last) is NaN or infinite; stops at the first block that has one."""
    for start in range(first, last, 4096):
        block = x[start : min(start + 4096, last)]
        bad = False
        for i in range(block.size):
            bad |= is_bad(block[i])
        if bad:
            return False
    return True


@njit(cache=True, nogil=True)
def mask(positions: Any, momentum: Any, residual: Any) -> int:
    """Zero both arrays at `positions`; -1, and nothing changed, if one is out of range."""
    if not _all_inside(positions, residual.size):
        return -1
    for position in positions:
        residual[position] = np.float32(0.0)
        if momentum is not None:
            momentum[position] = np.float32(0.0)
    return 0


@njit(cache=True, nogil=True)
def scatter_add(output: Any, positions: Any, values: Any, scale: float) -> int:
    """output[positions] += values * scale; -1, and nothing changed, if a position is out of range."""
    if not _all_inside(positions, output.size):
        return -1
    factor = np.float32(scale)
    for i in range(positions.size):
        output[positions[i]] += values[i] * factor
    return 0


# --- the parts of a block's work ---


@njit(nogil=True)
def _take(gradient: Any, scale: Any, scaled: Any) -> None:
    for i in range(scaled.size):
        scaled[i] = widen(gradient[i]) * scale
        gradient[i] = 0


@njit(nogil=True)
def _take_decayed(gradient: Any, parameter: Any, scale: Any, decay: Any, scaled: Any) -> None:
    for i in range(scaled.size):
        scaled[i] = widen(gradient[i]) * scale + widen(parameter[i]) * decay
        gradient[i] = 0


@njit(nogil=True)
def _add(g: Any, v: Any) -> None:
    for i in range(v.size):
        v[i] += g[i]


@njit(nogil=True)
def _accumulate(rule: int, g: Any, factor: Any, u: Any, v: Any) -> None:
    """One loop per rule, since a choice inside the loop would keep it from being vectorized."""
    if rule == _MOMENTUM:
        for i in range(v.size):
            u[i] = factor * u[i] + g[i]
            v[i] += u[i]
    elif rule == _NESTEROV:
        for i in range(v.size):
            u[i] = factor * (u[i] + g[i])
            v[i] = (v[i] + u[i]) + g[i]
    elif rule == _ADDITIONAL_MOMENTUM:
        for i in range(v.size):
            u[i] += g[i]
            v[i] += g[i]
    else:
        for i in range(v.size):
            decayed = factor * g[i]
            u[i] += decayed
            v[i] = (v[i] + decayed) + g[i]


@njit(nogil=True)
def _append_hits(v: Any, start: int, limit: Any, positions: Any, end: int) -> int:
    """Append the positions of a block's hits; in most groups of LANES elements one comparison finds none."""
    num_grouped = v.size - v.size % LANES
    for first in range(0, num_grouped, LANES):
        bits = reaching_bits(v, first, limit)
        while bits:
            positions[end] = start + first + lowest_bit(bits)
            end += 1
            bits &= bits - 1
    for i in range(num_grouped, v.size):
        if magnitude_bits(v[i]) >= limit:
            positions[end] = start + i
            end += 1
    return end


@njit(nogil=True)
def _all_inside(positions: Any, size: int) -> bool:
    outside = False
    for position in positions:
        outside |= (position < 0) | (position >= size)
    return not outside


@njit(nogil=True)
def _kth_largest(magnitudes: Any, k: int) -> int:
    """The k-th largest of non-negative int32 (the smallest if there are fewer), by 8-bit digits from the top."""
    remaining = min(k, magnitudes.size)
    histogram = np.empty(_NUM_BINS, np.int64)
    prefix = 0
    for shift in (24, 16, 8, 0):
        histogram[:] = 0
        for magnitude in magnitudes:
            if magnitude >> (shift + _RADIX_BITS) == prefix:
                histogram[(magnitude >> shift) & (_NUM_BINS - 1)] += 1
        digit = _NUM_BINS - 1
        while histogram[digit] < remaining:
            remaining -= histogram[digit]
            digit -= 1
        prefix = (prefix << _RADIX_BITS) | digit
    return prefix
