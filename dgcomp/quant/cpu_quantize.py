"""CPU loops that quantize: fused fake quantization with its gradients, and packing to 4-bit codes and single bits.

numba is imported with this module, that is at the first call on a CPU tensor.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Number = Any  # a Python or numpy scalar: numba does not distinguish them, their stubs do

_BLOCK = 4096  # elements whose codes wait in cache to be packed
_TINY = np.float32(1e-37)  # steps below this count as zero: their reciprocal overflows
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds |v| < 2**22 half to even


@njit(nogil=True, cache=True, inline="always")
def round_code(scaled: Number, low: Number, high: Number) -> Number:
    """Nearest integer code, ties to even, within [low, high]; NaN stays NaN."""
    clamped = high if scaled > high else scaled
    clamped = low if clamped < low else clamped
    return (clamped + _ROUND) - _ROUND


@njit(nogil=True, cache=True)
def fake_quantize(values: Floats, out: Floats, steps: Floats, low: Number, high: Number) -> None:
    """out = step * code on (outer, channels, inner) arrays, one step per channel."""
    for o in range(values.shape[0]):
        for c in range(values.shape[1]):
            step = steps[c] if steps[c] >= _TINY else np.float32(0.0)
            inverse = np.float32(1.0) / step if step > 0 else np.float32(0.0)
            source, target = values[o, c], out[o, c]
            for i in range(source.size):
                target[i] = round_code(source[i] * inverse, low, high) * step


@njit(nogil=True, cache=True)
def clip_gradient(
    gradient: Floats, values: Floats, out: Floats, low_edges: Floats, high_edges: Floats, keep_direction: bool
) -> None:
    """Gradient through a clipped channel: 0 outside (PWL), or edge / x there (MAD), where `keep_direction`."""
    for o in range(values.shape[0]):
        for c in range(values.shape[1]):
            low, high = low_edges[c], high_edges[c]
            g, x, target = gradient[o, c], values[o, c], out[o, c]
            if keep_direction:
                for i in range(x.size):
                    edge = high if x[i] > high else low
                    outside = (x[i] > high) | (x[i] < low)
                    target[i] = g[i] * ((edge if outside else np.float32(1.0)) / (x[i] if outside else np.float32(1.0)))
            else:
                for i in range(x.size):
                    target[i] = g[i] if (x[i] <= high) & (x[i] >= low) else np.float32(0.0)


# --- scales per vector ------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _squared_error(values: Floats, codes: Floats, scale: Number) -> Number:
    error = np.float32(0.0)
    for i in range(values.size):
        rest = values[i] - codes[i] * scale
        error += rest * rest
    return error


@njit(nogil=True, cache=True)
def _codes_at(values: Floats, codes: Floats, scale: Number, low: Number, high: Number) -> None:
    for i in range(values.size):
        codes[i] = round_code(values[i] / scale, low, high) if scale >= _TINY else np.float32(0.0)


@njit(nogil=True, cache=True)
def least_error(
    values: Floats, candidates: Floats, gamma: Floats, codes: Floats, scale_codes: Floats, low: Number, high: Number
) -> None:
    """Codes (R, n, V) and scale codes (R, n) with the least squared error per vector; the earlier one in a tie.

    `values` is (R, n, V), `candidates` (R, n, candidates) holds scale codes, `gamma` (R,) what they multiply.
    """
    trial = np.empty(values.shape[2], np.float32)
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            vector, best = values[r, j], codes[r, j]
            least = np.float32(np.inf)
            for k in range(candidates.shape[2]):
                scale = candidates[r, j, k] * gamma[r]
                _codes_at(vector, trial, scale, low, high)
                error = _squared_error(vector, trial, scale)
                if k == 0 or error < least:
                    least, scale_codes[r, j] = error, candidates[r, j, k]
                    best[:] = trial


# --- packed codes and flags -------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _block_codes(
    values: Floats,
    out: Floats,
    codes: Integers,
    inside: Bytes,
    inverse: Number,
    step: Number,
    low: Number,
    high: Number,
    low_edge: Number,
    high_edge: Number,
) -> None:
    for i in range(values.size):
        code = round_code(values[i] * inverse, low, high)
        out[i] = code * step
        codes[i] = np.int32(code)
        inside[i] = (values[i] <= high_edge) & (values[i] >= low_edge)


@njit(nogil=True, cache=True)
def _pack_nibbles(codes: Integers, packed: Bytes) -> None:
    for i in range(packed.size):
        packed[i] = (codes[2 * i] & 15) | ((codes[2 * i + 1] & 15) << 4)


@njit(nogil=True, cache=True)
def pack_flags(flags: Bytes, packed: Bytes) -> None:
    """Eight zeros or ones to a byte, least significant bit first; `flags` has 8 elements per byte of `packed`."""
    for i in range(packed.size):
        byte = np.int32(0)
        for j in range(8):
            byte |= np.int32(flags[8 * i + j]) << j
        packed[i] = byte


@njit(nogil=True, cache=True)
def quantize_packed(
    values: Floats,
    out: Floats,
    packed: Bytes,
    inside: Bytes,
    step: Number,
    low: Number,
    high: Number,
    low_edge: Number,
    high_edge: Number,
) -> None:
    """Fake quantization of a flat tensor that also leaves 4-bit codes and one bit per element that is not clipped.

    `packed` has ceil(n / 2) bytes, low nibble first; `inside` ceil(n / 8) bytes, least significant bit first.
    """
    step = step if step >= _TINY else np.float32(0.0)
    inverse = np.float32(1.0) / step if step > 0 else np.float32(0.0)
    codes, flags = np.zeros(_BLOCK, np.int32), np.zeros(_BLOCK, np.uint8)
    for start in range(0, values.size, _BLOCK):
        stop = min(start + _BLOCK, values.size)
        n = stop - start
        _block_codes(values[start:stop], out[start:stop], codes, flags, inverse, step, low, high, low_edge, high_edge)
        codes[n:], flags[n:] = 0, 0
        _pack_nibbles(codes, packed[start // 2 : (stop + 1) // 2])
        pack_flags(flags, inside[start // 8 : (stop + 7) // 8])


@njit(nogil=True, cache=True)
def unpack_codes(packed: Bytes, out: Floats, step: Number, low: Number) -> None:
    """out = step * code from 4-bit codes two to a byte; `low` < 0 marks them as two's complement."""
    sign = np.int32(8) if low < 0 else np.int32(0)  # (code ^ 8) - 8 extends the sign of a nibble
    for i in range(out.size // 2):
        byte = np.int32(packed[i])
        out[2 * i] = np.float32(((byte & 15) ^ sign) - sign) * step
        out[2 * i + 1] = np.float32(((byte >> 4) ^ sign) - sign) * step
    if out.size % 2:
        out[out.size - 1] = np.float32(((np.int32(packed[out.size // 2]) & 15) ^ sign) - sign) * step


@njit(nogil=True, cache=True)
def pack_positive(values: Floats, packed: Bytes) -> None:
    """One bit per element, set where it is above zero, least significant bit first."""
    flags = np.zeros(_BLOCK, np.uint8)
    for start in range(0, values.size, _BLOCK):
        stop = min(start + _BLOCK, values.size)
        for i in range(stop - start):
            flags[i] = values[start + i] > 0
        flags[stop - start :] = 0
        pack_flags(flags, packed[start // 8 : (stop + 7) // 8])


@njit(nogil=True, cache=True)
def mask_gradient(gradient: Floats, out: Floats, packed: Bytes) -> None:
    """out = gradient where the element's bit is set, else 0."""
    for i in range(gradient.size // 8):
        byte = np.int32(packed[i])
        for j in range(8):
            out[8 * i + j] = gradient[8 * i + j] if (byte >> j) & 1 else np.float32(0.0)
    for i in range(gradient.size // 8 * 8, gradient.size):
        out[i] = gradient[i] if (packed[i >> 3] >> (i & 7)) & 1 else np.float32(0.0)
