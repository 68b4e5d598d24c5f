"""The compiled CPU loops. Everything here is NumPy arrays and numbers; numba_engine.py is the way in.

Blocks of `BLOCK` elements are updated by a loop without branches, which LLVM vectorizes, and which also says whether
any entry of the block reaches the threshold. Only such blocks, still in the first-level cache, are searched.
No loop uses fastmath: LLVM may then neither fuse a product with a sum nor reorder, and the bits equal the reference's.
"""

from typing import Any

import numpy as np
from numba import njit

from dgcomp.kernels.numba_bits import is_bad, magnitude_bits, widen
from dgcomp.kernels.rules import Rule

BLOCK = 128

_FEEDBACK, _MOMENTUM, _NESTEROV = int(Rule.FEEDBACK), int(Rule.MOMENTUM), int(Rule.NESTEROV)
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
    decay, limit = np.float32(weight_decay), np.float32(threshold)
    end = first
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        g, v = gradient[start:stop], residual[start:stop]
        w = None if parameter is None else parameter[start:stop]
        if momentum is None:
            hit = _update_feedback(g, w, v, scale, decay, limit)
        else:
            hit = _update_momentum(rule, g, w, momentum[start:stop], v, scale, factor, decay, limit)
        if hit:
            end = _compact(v, start, limit, positions, end)
    return end - first


@njit(cache=True, nogil=True)
def find_at_least(residual: Any, first: int, last: int, threshold: float, positions: Any) -> int:
    """Write the hits among elements [first, last) to positions[first:], and return how many there are."""
    limit = np.float32(threshold)
    end = first
    for start in range(first, last, BLOCK):
        v = residual[start : min(start + BLOCK, last)]
        hit = False
        for i in range(v.size):
            hit |= _reaches(v[i], limit)
        if hit:
            end = _compact(v, start, limit, positions, end)
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
def _update_feedback(gradient: Any, parameter: Any, residual: Any, scale: Any, decay: Any, limit: Any) -> bool:
    hit = False
    for i in range(residual.size):
        v = residual[i] + _scaled(gradient, parameter, scale, decay, i)
        residual[i] = v
        gradient[i] = 0
        hit |= _reaches(v, limit)
    return hit


@njit(nogil=True)
def _update_momentum(
    rule: int,
    gradient: Any,
    parameter: Any,
    momentum: Any,
    residual: Any,
    scale: Any,
    factor: Any,
    decay: Any,
    limit: Any,
) -> bool:
    """One loop per rule, since a choice inside the loop would keep it from being vectorized."""
    hit = False
    if rule == _MOMENTUM:
        for i in range(residual.size):
            u = factor * momentum[i] + _scaled(gradient, parameter, scale, decay, i)
            v = residual[i] + u
            hit |= _store(gradient, momentum, residual, i, u, v, limit)
    elif rule == _NESTEROV:
        for i in range(residual.size):
            g = _scaled(gradient, parameter, scale, decay, i)
            u = factor * (momentum[i] + g)
            v = (residual[i] + u) + g
            hit |= _store(gradient, momentum, residual, i, u, v, limit)
    elif rule == _ADDITIONAL_MOMENTUM:
        for i in range(residual.size):
            g = _scaled(gradient, parameter, scale, decay, i)
            hit |= _store(gradient, momentum, residual, i, momentum[i] + g, residual[i] + g, limit)
    else:
        for i in range(residual.size):
            g = _scaled(gradient, parameter, scale, decay, i)
            decayed = factor * g
            hit |= _store(gradient, momentum, residual, i, momentum[i] + decayed, (residual[i] + decayed) + g, limit)
    return hit


@njit(nogil=True)
def _scaled(gradient: Any, parameter: Any, scale: Any, decay: Any, i: int) -> Any:
    g = widen(gradient[i]) * scale
    if parameter is not None:
        g += decay * widen(parameter[i])
    return g


@njit(nogil=True)
def _store(gradient: Any, momentum: Any, residual: Any, i: int, u: Any, v: Any, limit: Any) -> bool:
    momentum[i] = u
    residual[i] = v
    gradient[i] = 0
    return _reaches(v, limit)


@njit(nogil=True)
def _reaches(v: Any, limit: Any) -> bool:
    return not (abs(v) < limit)  # so written, NaN reaches every limit


@njit(nogil=True)
def _compact(v: Any, start: int, limit: Any, positions: Any, end: int) -> int:
    """Append the block's hits; always writing and sometimes advancing is cheaper than a branch that guesses wrong."""
    for i in range(v.size):
        positions[end] = start + i
        end += _reaches(v[i], limit)
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
