"""CPU loops that find scales: OCTAV's recursion and the histogram of float bit patterns.

Everything works on float32 data through their 32-bit patterns: among finite values of one sign, the order of the
patterns is the order of the numbers, so a threshold test is an integer comparison that vectorizes, and infinity and
NaN are the patterns from 0x7f800000 up. numba is imported with this module, that is at the first call on a CPU tensor.

Symbols: D = step; codes run from -negative to positive; an element is clipped when its magnitude reaches
(Q + overload) D, with Q the largest code of its sign.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dgcomp.quant.cpu_quantize import round_code

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Number = Any  # a Python or numpy scalar: numba does not distinguish them, their stubs do

SIGN = np.int32(-0x80000000)
MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
BOTH, POSITIVE, NEGATIVE = 0, 1, 2  # which elements a sum sees: all by magnitude, or those of one sign

MANTISSA_BITS = 5  # of the histogram's key: bins are 3 % wide and interpolation inside one is good to 1e-3
SHIFT = 23 - MANTISSA_BITS
NUM_BINS = 1 << (9 + MANTISSA_BITS)  # sign, exponent, leading mantissa bits

SAMPLE = 1 << 16  # elements that give a large tensor's starting point
_BLOCK = 4096  # float32 partial sums are this short; block sums are added in float64
_SHORT = 64  # rows this short try candidates instead of trusting a noise model

_REASSOCIATE = {"reassoc", "nsz"}  # lets the sums vectorize; NaN and infinity keep their meaning


# --- sums over one row ------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, fastmath=_REASSOCIATE)
def _block_moments(
    values: Floats,
    bits: Integers,
    threshold_bits: Number,
    flip: Number,
    mask: Number,
) -> tuple[Number, Number, Number]:
    clipped, nonzero, total = np.int32(0), np.int32(0), np.float32(0.0)
    for i in range(values.size):
        key = (bits[i] ^ flip) & mask
        finite = key < INFINITY
        is_clipped = (key >= threshold_bits) & finite
        clipped += np.int32(is_clipped)
        nonzero += np.int32((key > 0) & finite)
        total += abs(values[i]) if is_clipped else np.float32(0.0)
    return clipped, nonzero, total


@njit(nogil=True, cache=True)
def _side_key(side: Number) -> tuple[Number, Number]:
    return (SIGN if side == NEGATIVE else np.int32(0)), (MAGNITUDE if side == BOTH else np.int32(-1))


@njit(nogil=True, cache=True)
def moments(values: Floats, threshold: Number, side: Number) -> tuple[Number, Number, Number]:
    """Count and sum of the finite magnitudes >= threshold, and count of non-zero elements, of one side."""
    flip, mask = _side_key(side)
    bits = values.view(np.int32)
    # One unit in the last place of slack: a mean that rounding lifted above equal values still sees them clipped.
    threshold_bits = max(np.array([threshold], np.float32).view(np.int32)[0] - np.int32(1), np.int32(1))
    clipped, nonzero, total = 0, 0, 0.0
    for start in range(0, values.size, _BLOCK):
        stop = min(start + _BLOCK, values.size)
        c, n, t = _block_moments(values[start:stop], bits[start:stop], threshold_bits, flip, mask)
        clipped, nonzero, total = clipped + c, nonzero + n, total + np.float64(t)
    return clipped, nonzero, total


@njit(nogil=True, cache=True)
def largest(values: Floats, side: Number) -> Number:
    """Largest finite magnitude of one side, 0 where there is none."""
    flip, mask = _side_key(side)
    bits = values.view(np.int32)
    key = np.zeros(1, np.int32)
    for i in range(bits.size):
        candidate = (bits[i] ^ flip) & mask
        key[0] = max(key[0], candidate if candidate < INFINITY else np.int32(0))
    return key.view(np.float32)[0]


@njit(nogil=True, cache=True)
def _most(bits: NDArray[np.uint32]) -> Number:
    most = np.uint32(0)
    for i in range(bits.size):
        most = max(most, bits[i])
    return most


@njit(nogil=True, cache=True)
def has_negative(values: Floats) -> bool:
    """Whether any element is below zero (-0.0 is not); stops at the first block that has one."""
    bits = values.view(np.uint32)
    for start in range(0, bits.size, _BLOCK):  # noqa: SIM110 - numba compiles no any()
        if _most(bits[start : start + _BLOCK]) > np.uint32(0x80000000):
            return True
    return False


@njit(nogil=True, cache=True)
def _block_codes_of(values: Floats, codes: Floats, inverse: Number, low: Number, high: Number) -> None:
    for i in range(values.size):
        codes[i] = round_code(values[i] * inverse, low, high)


@njit(nogil=True, cache=True, fastmath=_REASSOCIATE)
def _block_fit(values: Floats, codes: Floats, step: Number) -> tuple[Number, Number, Number]:
    """Squared error, sum of x q and sum of q q of one block; elements that are not finite are left out."""
    error, product, square = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for i in range(values.size):
        finite = abs(values[i]) < np.inf
        value = values[i] if finite else np.float32(0.0)
        code = codes[i] if finite else np.float32(0.0)
        rest = value - code * step
        error += rest * rest
        product += value * code
        square += code * code
    return error, product, square


@njit(nogil=True, cache=True)
def fit(values: Floats, step: Number, negative: Number, positive: Number) -> tuple[Number, Number]:
    """Sum of squared errors at `step`, and the best step for the codes that `step` gives (one Lloyd iteration)."""
    error, product, square = 0.0, 0.0, 0.0
    # Codes are made by a function of their own: reassociation, which the sums need, would undo the rounding.
    codes = np.empty(min(_BLOCK, values.size), np.float32)
    inverse, low, high = np.float32(1.0 / step), np.float32(-negative), np.float32(positive)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        _block_codes_of(block, codes, inverse, low, high)
        e, p, s = _block_fit(block, codes, np.float32(step))
        error, product, square = error + np.float64(e), product + np.float64(p), square + np.float64(s)
    return error, product / square if square > 0 else step


# --- the recursion ----------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _next_step(
    values: Floats,
    step: Number,
    negative: Number,
    positive: Number,
    overload: Number,
) -> tuple[Number, Number]:
    """One iterate: D' = sum Q |x| [clipped] / (#[not clipped, not zero] / 12 + sum Q Q [clipped]); also the count."""
    symmetric = negative == positive
    numerator, denominator = 0.0, 0.0
    num_clipped, inside = 0, 0
    for side in (POSITIVE, NEGATIVE):
        levels = positive if side == POSITIVE else negative
        if levels == 0 or (symmetric and side == NEGATIVE):
            continue
        clipped, nonzero, total = moments(values, (levels + overload) * step, BOTH if symmetric else side)
        numerator += levels * total
        denominator += levels * levels * np.float64(clipped)
        num_clipped, inside = num_clipped + clipped, inside + nonzero - clipped
    return (numerator / (denominator + inside / 12.0) if num_clipped > 0 else 0.0), num_clipped


@njit(nogil=True, cache=True)
def mean_step(values: Floats, negative: Number, positive: Number) -> Number:
    """The published first guess, the mean of the non-zero magnitudes, as a step; 0 where there are none."""
    clipped, _, total = moments(values, 0.0, POSITIVE if negative == 0 else BOTH)
    return total / (clipped * positive) if clipped > 0 else 0.0


@njit(nogil=True, cache=True)
def widest_step(values: Floats, negative: Number, positive: Number, overload: Number) -> Number:
    """The smallest step at which nothing is clipped."""
    if negative == positive:
        return largest(values, BOTH) / (positive + overload)
    step = largest(values, POSITIVE) / (positive + overload)
    return max(step, largest(values, NEGATIVE) / (negative + overload)) if negative > 0 else step


@njit(nogil=True, cache=True)
def _solve(
    values: Floats,
    negative: Number,
    positive: Number,
    overload: Number,
    start: Number,
    tolerance: Number,
    max_iterations: Number,
) -> Number:
    """Iterate to the fixed point from the step `start`; 0 when an iterate clips nothing, so that no step is implied.

    The published recursion (overload 0) is iterated as it stands. The grid-aware one has slopes down to -1.1 at 2 bits,
    where plain iteration circles; there the slope between the last two iterates turns each into a secant step.
    """
    step, following, previous_step, previous_following = start, 0.0, -1.0, -1.0
    for _ in range(max_iterations):
        following, clipped = _next_step(values, step, negative, positive, overload)
        if clipped == 0:
            return 0.0
        if abs(following - step) <= tolerance * following:
            return following
        if overload == 0 and abs(following - previous_step) <= 1e-9 * following:
            return max(following, step)  # a cycle of two: the larger member clips less
        slope = 0.0
        if overload > 0 and previous_step > 0:
            slope = min(max((following - previous_following) / (step - previous_step), -4.0), 0.0)
        previous_step, previous_following = step, following
        step += (following - step) / (1.0 - slope)
        if step == previous_step:
            break
    return max(step, previous_step) if overload == 0 else step


@njit(nogil=True, cache=True)
def _sample(values: Floats) -> Floats:
    """SAMPLE elements in runs of 16 spread evenly over the row."""
    num_runs = SAMPLE // 16
    picked = np.empty(SAMPLE, np.float32)
    for i in range(num_runs):
        begin = i * (values.size - 16) // (num_runs - 1)  # the first run begins with the row, the last one ends with it
        picked[16 * i : 16 * i + 16] = values[begin : begin + 16]
    return picked


@njit(nogil=True, cache=True)
def _solve_large(
    values: Floats, negative: Number, positive: Number, overload: Number, tolerance: Number
) -> tuple[Number, bool]:
    """Fixed point of a large row from that of a sample, in one read as a rule; returns step and whether it settled.

    The map's slope, taken from the sample, turns each iterate into a secant step, whose error is of second order:
    a last correction below 0.5 % leaves less than 1e-3.
    """
    picked = _sample(values)
    step = _solve(picked, negative, positive, overload, mean_step(picked, negative, positive), 1e-3, 40)
    if step == 0.0:  # the sample clips nothing; if the row does not either, its widest step is the answer
        step = widest_step(picked, negative, positive, overload)
        return (_solve(values, negative, positive, overload, step, tolerance, 40), True) if step > 0 else (0.0, False)
    higher, _ = _next_step(picked, 1.01 * step, negative, positive, overload)
    lower, _ = _next_step(picked, 0.99 * step, negative, positive, overload)
    slope = min(max((higher - lower) / (0.02 * step), -4.0), 0.0) if higher > 0 else 0.0
    for _ in range(4):
        following, clipped = _next_step(values, step, negative, positive, overload)
        if clipped == 0:
            return 0.0, False
        correction = (following - step) / (1.0 - slope)
        step += correction
        if abs(correction) <= 0.005 * step:
            return step, True
    return 0.0, False


@njit(nogil=True, cache=True)
def octav_step(
    values: Floats,
    negative: Number,
    positive: Number,
    overload: Number,
    start: Number,
    tolerance: Number,
    max_iterations: Number,
) -> Number:
    """Step D of one contiguous float32 row by OCTAV's recursion; 0 where no element is finite and non-zero.

    `overload` 0.5 models the real grid and polishes the result where the noise model is coarse; 0 is the published
    recursion, which counts values equal to the threshold as clipped. `start` > 0 is a step to start from.
    """
    step, settled = 0.0, False
    if start > 0.0:
        step = _solve(values, negative, positive, overload, start, tolerance, max_iterations)
        settled = step > 0.0  # a start that clips nothing may lie far above the fixed point
    if not settled and values.size >= 4 * SAMPLE:
        step, settled = _solve_large(values, negative, positive, overload, tolerance)
    if not settled:
        first = mean_step(values, negative, positive)
        if first == 0.0:
            return 0.0
        step = _solve(values, negative, positive, overload, first, tolerance, max_iterations)
        if step == 0.0 and overload == 0:  # rounding lifted the mean of equal magnitudes above them
            step = widest_step(values, negative, positive, 0.0)
    return _polish(values, step, negative, positive) if overload > 0 else step


@njit(nogil=True, cache=True)
def _polish(values: Floats, step: Number, negative: Number, positive: Number) -> Number:
    """The candidate of least squared error where uniform noise is a poor model: few codes, short rows, no clipping."""
    if step > 0 and positive == 1:
        step = fit(values, step, negative, positive)[1]
    if step > 0 and values.size > _SHORT:
        return step
    widest = widest_step(values, negative, positive, 0.0)
    if step == 0.0:
        step = widest_step(values, negative, positive, 0.5)
    best, least = step, fit(values, step, negative, positive)[0]
    for i in range(26 if values.size <= _SHORT else 1):
        candidate = widest * (1.0 - 0.02 * (i if i <= 20 else 20 - i))  # 1, then down to 0.6, then up to 1.1
        error = fit(values, candidate, negative, positive)[0]
        if error < least:
            best, least = candidate, error
    return best


@njit(nogil=True, cache=True)
def octav_rows(
    rows: Floats,
    out: NDArray[np.float64],
    negative: Number,
    positive: Number,
    overload: Number,
    start: NDArray[np.float64],
    tolerance: Number,
    max_iterations: Number,
) -> None:
    """`octav_step` of every row of a contiguous (R, n) array, into `out` (R,); `start` is (R,) or empty."""
    for r in range(rows.shape[0]):
        first = start[r] if start.size > 0 else 0.0
        out[r] = octav_step(rows[r], negative, positive, overload, first, tolerance, max_iterations)


@njit(nogil=True, cache=True)
def bit_histogram(values: Floats, counts: NDArray[np.int64], residues: NDArray[np.int64]) -> None:
    """Add float32 elements to int64 histograms (NUM_BINS,) of the leading bits: count, and sum of the bits below.

    Count and sum travel in one 64-bit addition, are flushed before either can overflow, and are integers: the result
    does not depend on the order, and histograms of parts add up exactly.
    """
    bits = values.view(np.uint32)
    below = np.uint32((1 << SHIFT) - 1)
    # Neighbours go to different counters, so that additions to one bin do not wait for each other.
    packed = np.zeros((2, NUM_BINS), np.uint64)
    for start in range(0, bits.size, 1 << 20):
        packed[:] = 0
        for i in range(start, min(start + (1 << 20), bits.size)):
            packed[i & 1, bits[i] >> np.uint32(SHIFT)] += np.uint64(1 << 40) + np.uint64(bits[i] & below)
        for way in range(2):
            for b in range(NUM_BINS):
                if packed[way, b]:
                    counts[b] += np.int64(packed[way, b] >> np.uint64(40))
                    residues[b] += np.int64(packed[way, b] & np.uint64((1 << 40) - 1))
