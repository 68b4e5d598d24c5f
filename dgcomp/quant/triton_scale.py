"""OCTAV's scale on GPUs without waiting for the device: one read for a whole tensor, one program for each of many rows.

A whole tensor is read once into the histogram of float bit patterns of dgcomp/quant/histogram.py, whose integers this
engine reproduces exactly; one small program then finds the fixed point on the 8192 bins of magnitudes. Rows (a scale
per output channel) get a program each, which iterates over its row in cache.
Tested in Triton's interpreter and compiled to cubin for sm_80 and sm_90; not run on a GPU.
"""

# Triton reads a kernel's annotations as its own types, so arguments of kernels have none for mypy.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["bit_histogram", "row_steps", "tensor_step"]

MANTISSA_BITS = 5  # as in dgcomp/quant/histogram.py
BLOCK = 1024
ROW_BLOCK = 1024
ITERATIONS = 40
MOST_COPIES = 64
SLICE = MOST_COPIES << 20  # elements for one launch: 2**20 to a copy leave both halves of its counters room

_SHIFT = tl.constexpr(23 - MANTISSA_BITS)
_BINS = tl.constexpr(1 << (9 + MANTISSA_BITS))
_HALF = tl.constexpr(1 << (8 + MANTISSA_BITS))  # bins of one sign
_MANTISSA_BITS = tl.constexpr(MANTISSA_BITS)
_RESIDUE = tl.constexpr((1 << (23 - MANTISSA_BITS)) - 1)
_MANTISSA = tl.constexpr((1 << MANTISSA_BITS) - 1)
_SHORT = tl.constexpr(64)  # rows this short try candidates, as dgcomp/quant/octav.py does
_CLOSE = tl.constexpr(1e-7)


def bit_histogram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and residues, int64 (16384,) each on x's device, of a contiguous floating-point tensor."""
    flat, num_bins = x.reshape(-1), int(_BINS.value)
    total = torch.zeros(2, num_bins, dtype=torch.int64, device=x.device)
    for start in range(0, flat.numel(), SLICE):
        part = flat[start : start + SLICE]
        # programs add to several copies, so that the counters of the common magnitudes are not all one
        num_copies = min(MOST_COPIES, triton.cdiv(part.numel(), 1 << 14))
        packed = torch.zeros(num_copies, num_bins, dtype=torch.int64, device=x.device)
        histogram_kernel[(triton.cdiv(part.numel(), BLOCK),)](part, packed, part.numel(), num_copies, BLOCK=BLOCK)
        fold_kernel[(num_bins // BLOCK,)](packed, total, num_copies, BLOCK=BLOCK)
    return total[0], total[1]


def tensor_step(x: Tensor, negative: float, positive: float, overload: float) -> Tensor:
    """Step of a whole tensor, float64 (1,), as `octav.reference_steps` has it within 1e-3.

    `negative` is 0 (only elements above zero count) or equal to `positive`.
    """
    counts, residues = bit_histogram(x)
    step = torch.empty(1, dtype=torch.float64, device=x.device)
    solve_kernel[(1,)](counts, residues, step, positive, overload, ITERATIONS, SIGNED=negative > 0, num_warps=16)
    return step


def row_steps(
    rows: Tensor,
    negative: float,
    positive: float,
    overload: float,
    start: Tensor | None = None,
    max_iterations: int | None = None,
) -> Tensor:
    """Steps, float64 (R,), of contiguous rows (R, n): the same numbers as `octav.reference_steps` but for rounding."""
    step = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    if rows.numel():
        first = step if start is None else start.to(torch.float64).expand(rows.shape[0]).contiguous()
        row_kernel[(rows.shape[0],)](
            rows, first, step, rows.shape[1], negative, positive, overload, max_iterations or ITERATIONS,
            HAS_START=start is not None, SYMMETRIC=negative == positive, EXACT=overload > 0, BLOCK=ROW_BLOCK,
        )  # fmt: skip
    return step


# --- the histogram ----------------------------------------------------------------------------------------------------


@triton.jit
def histogram_kernel(x, packed, numel, num_copies, BLOCK: tl.constexpr):
    """Add a block to one copy of the counters; a counter holds count << 40 | sum of the bits below the key."""
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    bits = tl.load(x + at, mask=inside, other=0.0).to(tl.float32).to(tl.uint32, bitcast=True)
    counters = packed + (block % num_copies).to(tl.int64) * _BINS
    one = tl.full((), 1, tl.int64) << 40
    residue = (bits & _RESIDUE).to(tl.int64)
    # zeros are half of many activations: their counter would be a queue
    is_zero = (bits & 0x7FFFFFFF) == 0
    tl.atomic_add(counters + (bits >> _SHIFT), residue + one, mask=inside & (is_zero == 0), sem="relaxed")
    num_negative = tl.sum((inside & is_zero & (bits != 0)).to(tl.int64))
    num_positive = tl.sum((inside & (bits == 0)).to(tl.int64))
    tl.atomic_add(counters, num_positive * one, mask=num_positive > 0, sem="relaxed")
    tl.atomic_add(counters + _HALF, num_negative * one, mask=num_negative > 0, sem="relaxed")


@triton.jit
def fold_kernel(packed, total, num_copies, BLOCK: tl.constexpr):
    """Add all copies to the two rows of `total`, counts and residues."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count, residue = tl.load(total + at), tl.load(total + _BINS + at)
    for copy in range(num_copies):
        both = tl.load(packed + copy * _BINS + at)
        count += both >> 40
        residue += both & ((tl.full((), 1, tl.int64) << 40) - 1)
    tl.store(total + at, count)
    tl.store(total + _BINS + at, residue)


# --- the recursion ----------------------------------------------------------------------------------------------------


@triton.jit
def _towards(step, following, previous_step, previous_following, overload):
    """The iterate after `step`: what the map gave, turned into a secant step for the grid-aware map."""
    change = step - previous_step
    usable = (previous_step > 0) & (change != 0) & (overload > 0)
    slope = tl.where(usable, (following - previous_following) / tl.where(change == 0, 1.0, change), 0.0)
    return step + (following - step) / (1.0 - tl.minimum(tl.maximum(slope, -4.0), 0.0))


@triton.jit
def solve_kernel(counts, residues, out, positive, overload, iterations, SIGNED: tl.constexpr):
    """Fixed point on the bins of magnitudes, linear inside the bin that the threshold divides."""
    bins = tl.arange(0, _HALF)
    count, residue = tl.load(counts + bins), tl.load(residues + bins)
    if SIGNED:
        count += tl.load(counts + _HALF + bins)
        residue += tl.load(residues + _HALF + bins)
    lower, upper, unit, mantissa = _edges(bins)
    count = tl.where((bins >> _MANTISSA_BITS) == 0xFF, 0, count)
    total = unit * (count * mantissa + residue).to(tl.float64)
    # zeros share the first bin with the smallest denormals, which then do not matter
    used = (count > 0) & (total > 0)
    has_normal = tl.sum((used & (bins > 0)).to(tl.int32)) > 0
    used = used & ((bins > 0) | (has_normal == 0))
    number, total = tl.where(used, count, 0).to(tl.float64), tl.where(used, total, 0.0)
    nonzero = tl.sum(number)

    step = tl.sum(total) / (tl.maximum(nonzero, 1.0) * positive)
    clips = nonzero > 0
    previous_step, previous_following = step * 0 - 1, step * 0 - 1
    is_done = nonzero == 0
    for _ in range(iterations):
        clipped, overloaded = _above(number, total, lower, upper, (positive + overload) * step)
        following = positive * overloaded / ((nonzero - clipped) / 12 + positive * positive * clipped + 1e-300)
        clips = clips & (is_done | (clipped > 0))
        is_done = is_done | (clipped == 0)
        is_close = tl.abs(following - step) <= _CLOSE * following
        later = tl.where(is_close, following, _towards(step, following, previous_step, previous_following, overload))
        previous_step = tl.where(is_done, previous_step, step)
        previous_following = tl.where(is_done, previous_following, following)
        step = tl.where(is_done, step, later)
        is_done = is_done | is_close
    mean = total / tl.maximum(number, 1.0)
    step = tl.where(clips, step, _unclipped(number, mean, positive, overload))
    if (positive == 1.0) & (overload > 0):
        count_above, sum_above = _above(number, total, lower, upper, 0.5 * step)
        step = tl.where(count_above > 0, sum_above / tl.maximum(count_above, 1.0), step)
    tl.store(out, tl.where(nonzero > 0, step, 0.0))


@triton.jit
def _edges(bins):
    """Edges of the bins, the value of a mantissa's last bit in them, and the mantissa at the lower edge."""
    exponent = bins >> _MANTISSA_BITS
    is_finite = exponent < 0xFF
    lower = tl.where(is_finite, bins << _SHIFT, 0).to(tl.float32, bitcast=True).to(tl.float64)
    upper = tl.where(is_finite, (bins + 1) << _SHIFT, 1).to(tl.float32, bitcast=True).to(tl.float64)
    unit = ((tl.maximum(exponent, 1).to(tl.int64) + (1023 - 150)) << 52).to(tl.float64, bitcast=True)
    below = (bins & _MANTISSA) << _SHIFT
    mantissa = (below + tl.where(exponent > 0, 1 << 23, 0)).to(tl.int64)
    # the last finite bin ends at 2**128, where float32 has infinity; the bins beyond are empty
    largest = (tl.full((), 1023 + 128, tl.int64) << 52).to(tl.float64, bitcast=True)
    return lower, tl.minimum(upper, largest), unit, mantissa


@triton.jit
def _above(number, total, lower, upper, threshold):
    """Count and sum of the magnitudes >= threshold."""
    part = tl.minimum(tl.maximum((upper - threshold) / (upper - lower), 0.0), 1.0)
    lift = tl.where(part < 1.0, (threshold + upper) / (lower + upper), 1.0)
    return tl.sum(part * number), tl.sum(part * total * lift)


@triton.jit
def _unclipped(number, mean, positive, overload):
    """Step where the recursion clips nothing: of the two that just reach the maximum, the one of less error."""
    widest = tl.max(tl.where(number > 0, mean, 0.0))
    inner, outer = widest / positive, widest / (positive + overload)
    inner_error = tl.sum(number * _rest(mean, inner, positive))
    outer_error = tl.sum(number * _rest(mean, outer, positive))
    return tl.where((inner_error < outer_error) | (overload == 0), inner, outer)


@triton.jit
def _rest(value, step, positive):
    """Squared error of values at a step, with codes up to +-positive."""
    inverse = tl.where(step > 0, 1.0 / tl.where(step > 0, step, 1.0), 0.0)
    code = tl.floor(tl.minimum(tl.abs(value) * inverse, positive) + 0.5)
    error = tl.abs(value) - code * step
    return error * error


# --- rows -------------------------------------------------------------------------------------------------------------


@triton.jit
def row_kernel(
    rows,
    starts,
    out,
    numel,
    negative,
    positive,
    overload,
    iterations,
    HAS_START: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step of one row: the recursion, then the candidate of least error where the noise model is coarse."""
    program = tl.program_id(0)
    row = rows + program.to(tl.int64) * numel
    count, total, highest, lowest = _survey(row, numel, SYMMETRIC or (negative > 0), BLOCK)
    mean = total / (tl.maximum(count, 1.0) * positive)
    step = mean
    if HAS_START:
        first = tl.load(starts + program)
        step = tl.where(first > 0, first, mean)
    step, clips = _solve_row(row, numel, step, negative, positive, overload, iterations, SYMMETRIC, BLOCK)
    if HAS_START & (clips == 0):
        step, clips = _solve_row(row, numel, mean, negative, positive, overload, iterations, SYMMETRIC, BLOCK)
    # an iterate that clips nothing implies no step: zero leaves the choice to the polish
    if EXACT:
        step = tl.where(clips > 0, step, 0.0)
        step = _polish(row, numel, step, highest, lowest, negative, positive, BLOCK)
    else:
        step = tl.where(clips > 0, step, tl.maximum(highest, lowest) / positive)
    tl.store(out + program, tl.where(count > 0, step, 0.0))


@triton.jit
def _load(row, start, numel, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    x = tl.load(row + at, mask=at < numel, other=0.0).to(tl.float32)
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _survey(row, numel, both_sides, BLOCK: tl.constexpr):
    """Count and sum of the non-zero magnitudes (of those above zero, unless both sides count), and their maxima."""
    zero = tl.full((), 0, tl.float64)
    count, total, highest, lowest = zero, zero, zero, zero
    for start in range(0, numel, BLOCK):
        x = _load(row, start, numel, BLOCK)
        counted = tl.where(both_sides, tl.abs(x), tl.maximum(x, 0.0))
        count += tl.sum((counted > 0).to(tl.int32)).to(tl.float64)
        total += tl.sum(counted).to(tl.float64)
        highest = tl.maximum(highest, tl.max(x).to(tl.float64))
        lowest = tl.maximum(lowest, tl.max(-x).to(tl.float64))
    return count, total, highest, tl.where(both_sides, lowest, 0.0)


@triton.jit
def _next_step(row, numel, step, negative, positive, overload, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr):
    """One iterate, and how many elements are clipped at `step`; the equation is in dgcomp/quant/octav.py."""
    zero = tl.full((), 0, tl.float64)
    numerator, denominator, clipped = zero, zero, zero
    # a few units in the last place of slack, for a mean that rounding lifts above equal values
    upper = ((positive + overload) * step * (1 - 2e-7)).to(tl.float32)
    lower = ((negative + overload) * step * (1 - 2e-7)).to(tl.float32)
    for start in range(0, numel, BLOCK):
        x = _load(row, start, numel, BLOCK)
        if SYMMETRIC:
            above, below = (tl.abs(x) >= upper) & (x != 0), x != x
        else:
            above, below = (x >= upper) & (x > 0), (-x >= lower) & (x < 0) & (negative > 0)
        number_above = tl.sum(above.to(tl.int32)).to(tl.float64)
        number_below = tl.sum(below.to(tl.int32)).to(tl.float64)
        counted = tl.sum(((x > 0) | ((x < 0) & (negative > 0))).to(tl.int32)).to(tl.float64)
        numerator += positive * tl.sum(tl.where(above, tl.abs(x), 0.0)).to(tl.float64)
        numerator += negative * tl.sum(tl.where(below, -x, 0.0)).to(tl.float64)
        denominator += positive * positive * number_above + negative * negative * number_below
        denominator += (counted - number_above - number_below) / 12
        clipped += number_above + number_below
    return numerator / tl.maximum(denominator, 1e-300), clipped


@triton.jit
def _solve_row(
    row, numel, step, negative, positive, overload, iterations, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr
):
    """Fixed point from `step`; also the number of elements clipped by the last iterate, 0 if one clipped nothing."""
    before, previous_step, previous_following = step * 0 - 1, step * 0 - 1, step * 0 - 1
    clips, is_done = step * 0 + 1, step < 0
    iteration = 0
    while (iteration < iterations) & (is_done == 0):
        following, clips = _next_step(row, numel, step, negative, positive, overload, SYMMETRIC, BLOCK)
        later = _towards(step, following, previous_step, previous_following, overload)
        before = previous_step
        previous_step, previous_following = step, following
        step = tl.where(clips > 0, later, step)
        is_done = (clips == 0) | (tl.abs(step - previous_step) <= 1e-9 * step)
        # a cycle of two is left with its larger member, which clips less
        in_cycle = (overload == 0) & (tl.abs(step - before) <= 1e-9 * step)
        step = tl.where(in_cycle, tl.maximum(step, previous_step), step)
        is_done = is_done | in_cycle
        iteration += 1
    return step, clips


@triton.jit
def _error(row, numel, step, negative, positive, BLOCK: tl.constexpr):
    """Squared error of the row at a step, and the best step for the codes that it gives (one Lloyd iteration)."""
    zero = tl.full((), 0, tl.float64)
    error, product, square = zero, zero, zero
    inverse = tl.where(step > 0, 1.0 / tl.where(step > 0, step, 1.0), 0.0).to(tl.float32)
    for start in range(0, numel, BLOCK):
        x = _load(row, start, numel, BLOCK)
        scaled = tl.minimum(tl.maximum(x * inverse, -negative), positive)
        code = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2**23: rounds half to even
        rest = x - code * step.to(tl.float32)
        error += tl.sum(rest * rest).to(tl.float64)
        product += tl.sum(x * code).to(tl.float64)
        square += tl.sum(code * code).to(tl.float64)
    return error, tl.where(square > 0, product / tl.maximum(square, 1.0), step)


@triton.jit
def _polish(row, numel, step, highest, lowest, negative, positive, BLOCK: tl.constexpr):
    """The candidate of least squared error where uniform noise is a poor model: few codes, short rows, no clipping."""
    if (positive == 1.0) & (step > 0):
        _, step = _error(row, numel, step, negative, positive, BLOCK)
    if (numel <= _SHORT) | (step == 0):
        widest, outer = highest / positive, highest / (positive + 0.5)
        if negative > 0:
            widest = tl.maximum(widest, lowest / negative)
            outer = tl.maximum(outer, lowest / (negative + 0.5))
        num_candidates = tl.where(numel <= _SHORT, 26, 1)
        best = tl.where(step == 0, outer, step)
        least, _ = _error(row, numel, best, negative, positive, BLOCK)
        for i in range(num_candidates):
            candidate = widest * (1.0 - 0.02 * tl.where(i <= 20, i, 20 - i).to(tl.float64))
            error, _ = _error(row, numel, candidate, negative, positive, BLOCK)
            best = tl.where(error < least, candidate, best)
            least = tl.minimum(error, least)
        step = best
    return step
