"""Values to bytes and back: fp32, bf16, and blockwise quantizers of 8, 4 and 1 bits.

A quantized block of 256 values holds its smallest and largest magnitude as two bfloat16 numbers (rounded outwards) and
a sign and a magnitude code c per value: low + (high - low) * (c / top)**2. What survived a threshold has no magnitude
near zero, so all codes lie above the smallest one; and its tail is steep, so they lie closer together there: for
exponential and Student tails the error is 20 to 45 % below that of even spacing. "sign" holds one bfloat16 scale, the
mean magnitude, and one bit per value.

Decoding uses additions and multiplications of fp32 only, in a fixed order: the same bytes give the same floats
everywhere. What a format cannot hold is an error of the encoder that the caller feeds back.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dgcomp.wire.errors import WireError

Bytes = NDArray[np.uint8]
F32 = NDArray[np.float32]

FORMATS = ("fp32", "bf16", "int8", "int4", "sign")
BLOCK = 256
_BITS = {"int8": 8, "int4": 4, "sign": 1}
_SCALES = {"int8": 2, "int4": 2, "sign": 1}
_LARGEST_BF16 = 0x7F7F
_INFINITE_BF16 = 0x7F80


def num_bytes(form: str, count: int) -> int:
    """Exact size of `count` values in the named format."""
    if form in ("fp32", "bf16"):
        return count * (4 if form == "fp32" else 2)
    return 2 * _SCALES[form] * -(-count // BLOCK) + -(-count * _BITS[form] // 8)


def encode(form: str, values: F32) -> Bytes:
    """Bytes of finite values in the named format."""
    if form == "fp32":
        return values.astype("<f4", copy=False).view(np.uint8)
    if form == "bf16":
        return _to_bf16(values).view(np.uint8)
    scales = np.empty(_SCALES[form] * -(-values.size // BLOCK), np.uint16)
    codes = np.zeros(-(-values.size * _BITS[form] // 8), np.uint8)
    if form == "sign":
        _write_signs(values, scales, codes)
    else:
        _write_codes(values, _BITS[form], scales, codes)
    return np.concatenate((scales.view(np.uint8), codes))


def decode(form: str, payload: Bytes, count: int) -> F32:
    """The `count` values of a payload. Raises WireError if its size is another or a value is not finite."""
    if payload.size != num_bytes(form, count):
        raise WireError(f"{payload.size} bytes of {form} values where {count} values take {num_bytes(form, count)}")
    values = np.empty(count, np.float32)
    if form == "fp32":
        values.view(np.uint8)[:] = payload
    elif form == "bf16":
        values.view(np.uint32)[:] = payload.view("<u2").astype(np.uint32) << 16
    else:
        split = 2 * _SCALES[form] * -(-count // BLOCK)
        scales = _bf16_to_float(payload[:split])
        if form == "sign":
            _read_signs(scales, payload[split:], values)
        else:
            _read_codes(scales, payload[split:], _BITS[form], values)
    if not all_finite(values):
        raise WireError(f"the {form} values are not all finite")
    return values


def all_finite(values: F32) -> bool:
    """Whether no value is infinite or NaN."""
    return bool(_all_finite(np.ascontiguousarray(values).view(np.uint32)))


def _to_bf16(values: F32) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even, and to the largest finite one instead of to infinity."""
    pattern = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((pattern + np.uint32(0x7FFF) + ((pattern >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        "<u2"
    )
    overflow = (rounded & 0x7FFF) == _INFINITE_BF16
    rounded[overflow] -= 1
    return rounded


def _bf16_to_float(payload: Bytes) -> F32:
    return (payload.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


@njit(cache=True, nogil=True)
def _all_finite(patterns: NDArray[np.uint32]) -> bool:
    largest = np.uint32(0)
    for i in range(patterns.size):
        largest = max(largest, patterns[i] & np.uint32(0x7FFFFFFF))
    return bool(largest < np.uint32(0x7F800000))


@njit(cache=True, nogil=True)
def _write_codes(values: F32, bits: int, scales: NDArray[np.uint16], codes: Bytes) -> None:
    """Quantize block by block to a sign and `bits` - 1 bits of magnitude."""
    patterns = values.view(np.uint32)
    top = np.float32((1 << (bits - 1)) - 1)
    bounds = np.empty(2, np.uint32)
    as_float = bounds.view(np.float32)
    for block in range(scales.size // 2):
        start, stop = block * BLOCK, min(block * BLOCK + BLOCK, values.size)
        low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
        for i in range(start, stop):
            magnitude = patterns[i] & np.uint32(0x7FFFFFFF)
            low, high = min(low, magnitude), max(high, magnitude)
        low >>= np.uint32(16)
        high = min((high + np.uint32(0xFFFF)) >> np.uint32(16), np.uint32(_LARGEST_BF16))
        scales[2 * block], scales[2 * block + 1] = low, high
        bounds[0], bounds[1] = low << np.uint32(16), high << np.uint32(16)
        span = as_float[1] - as_float[0]
        squares = top * top / span if span > np.float32(1e-33) else np.float32(0)
        for i in range(start, stop):
            # halfway between c**2 and (c + 1)**2 is (c + 1/2)**2 + 1/4
            square = max((abs(values[i]) - as_float[0]) * squares - np.float32(0.25), np.float32(0))
            code = np.uint32(min(np.sqrt(square) + np.float32(0.5), top))
            code |= (patterns[i] >> np.uint32(31)) << np.uint32(bits - 1)
            if bits == 8:
                codes[i] = code
            else:
                codes[i >> 1] |= code << np.uint32(4 * (i & 1))


@njit(cache=True, nogil=True)
def _read_codes(scales: F32, codes: Bytes, bits: int, values: F32) -> None:
    """Undo `_write_codes`; a block whose bounds are not in order gives NaN."""
    levels = 1 << (bits - 1)
    table = np.empty(2 * levels, np.float32)
    mask = 2 * levels - 1
    top_squared = np.float32((levels - 1) * (levels - 1))
    for block in range(scales.size // 2):
        low, high = scales[2 * block], scales[2 * block + 1]
        span = high - low if np.float32(0) <= low <= high else np.float32(np.nan)
        for level in range(levels):
            table[level] = low + span * (np.float32(level * level) / top_squared)
            table[levels + level] = -table[level]
        for i in range(block * BLOCK, min(block * BLOCK + BLOCK, values.size)):
            code = codes[i] if bits == 8 else codes[i >> 1] >> (4 * (i & 1))
            values[i] = table[code & mask]


@njit(cache=True, nogil=True)
def _write_signs(values: F32, scales: NDArray[np.uint16], codes: Bytes) -> None:
    patterns = values.view(np.uint32)
    mean = np.empty(1, np.float32)
    pattern = mean.view(np.uint32)
    for block in range(scales.size):
        start, stop = block * BLOCK, min(block * BLOCK + BLOCK, values.size)
        total = 0.0
        for i in range(start, stop):
            total += abs(np.float64(values[i]))
            codes[i >> 3] |= (patterns[i] >> np.uint32(31)) << np.uint32(i & 7)
        mean[0] = total / (stop - start)
        scales[block] = min((pattern[0] + np.uint32(0x8000)) >> np.uint32(16), np.uint32(_LARGEST_BF16))


@njit(cache=True, nogil=True)
def _read_signs(scales: F32, codes: Bytes, values: F32) -> None:
    for i in range(values.size):
        scale = scales[i // BLOCK]
        values[i] = -scale if (codes[i >> 3] >> (i & 7)) & 1 else scale
