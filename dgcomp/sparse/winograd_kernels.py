"""Transforms of F(2x2, 3x3) and their gradients on the CPU, for channels-last images.

An image row holds its pixels' channels one after the other, so every step is a sum of long contiguous rows; columns
are split into even and odd ones first, which makes the step of two columns between tiles contiguous too. Only
additions: each kernel reads its input once and writes its output once. Each kernel does images [start, stop).

Shapes: images [N, H, W, C]; transformed tiles [16, N, tiles high, tiles wide * C].
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["input_gradient", "input_tiles", "output_images", "output_gradient"]

Array = npt.NDArray[Any]


@numba.njit(cache=True, nogil=True)
def _subtract(a: Array, b: Array, out: Array) -> None:
    for k in range(len(out)):
        out[k] = a[k] - b[k]


@numba.njit(cache=True, nogil=True)
def _add(a: Array, b: Array, out: Array) -> None:
    for k in range(len(out)):
        out[k] = a[k] + b[k]


@numba.njit(cache=True, nogil=True)
def _apply_relu(out: Array) -> None:
    for k in range(len(out)):
        out[k] = max(out[k], out.dtype.type(0))


@numba.njit(cache=True, nogil=True)
def input_tiles(x: Array, padding: int, relu: bool, v: Array, start: int, stop: int) -> None:
    """v = B^T d B, then ReLU if `relu`, of the 4x4 tiles d of x [N, H, W, C], `padding` zeros around each image."""
    height, width, channels = x.shape[1:]
    high, row_length = v.shape[2:]
    zeros = np.zeros((width, channels), x.dtype)
    even = np.zeros(row_length + channels, x.dtype)  # columns 0, 2, ... of the padded image; what is never written
    odd = np.zeros_like(even)  # stays zero, as the padding is
    for n in range(start, stop):
        for i in range(high):
            top = 2 * i - padding
            r0 = x[n, top] if 0 <= top < height else zeros
            r1 = x[n, top + 1] if 0 <= top + 1 < height else zeros
            r2 = x[n, top + 2] if 0 <= top + 2 < height else zeros
            r3 = x[n, top + 3] if 0 <= top + 3 < height else zeros
            for p in range(4):
                a = r0 if p == 0 else r2 if p == 2 else r1
                b = r3 if p == 3 else r1 if p == 2 else r2
                for w in range(width):
                    at = (w + padding) // 2 * channels
                    line = odd[at : at + channels] if (w + padding) % 2 else even[at : at + channels]
                    if p == 1:
                        _add(a[w], b[w], line)
                    else:
                        _subtract(a[w], b[w], line)
                _subtract(even, even[channels:], v[4 * p, n, i])
                _add(odd, even[channels:], v[4 * p + 1, n, i])
                _subtract(even[channels:], odd, v[4 * p + 2, n, i])
                _subtract(odd, odd[channels:], v[4 * p + 3, n, i])
                if relu:
                    for q in range(4):
                        _apply_relu(v[4 * p + q, n, i])


@numba.njit(cache=True, nogil=True)
def input_gradient(grad_v: Array, v: Array, relu: bool, padding: int, grad_x: Array, start: int, stop: int) -> None:
    """grad_x = B (grad_v where v > 0) B^T summed over the tiles that overlap; without `relu` v is not read."""
    height, width, channels = grad_x.shape[1:]
    high, row_length = v.shape[2:]
    zero = grad_v.dtype.type(0)
    part = np.zeros((4, row_length), grad_v.dtype)
    even, odd = np.zeros((4, row_length + channels), grad_v.dtype), np.zeros((4, row_length + channels), grad_v.dtype)
    rows = np.zeros((2, 4, row_length + channels), grad_v.dtype)
    for n in range(start, stop):
        grad_x[n] = 0
        for i in range(high):
            for p in range(4):
                for q in range(4):
                    source, active, target = grad_v[4 * p + q, n, i], v[4 * p + q, n, i], part[q]
                    for k in range(row_length):
                        target[k] = source[k] if active[k] > 0 or not relu else zero
                _columns_of_gradient(part[0], part[1], part[2], part[3], channels, even[p], odd[p])
            _rows_of_gradient(even, rows[0])
            _rows_of_gradient(odd, rows[1])
            for r in range(4):
                h = 2 * i - padding + r
                if 0 <= h < height:
                    for w in range(width):
                        at = (w + padding) // 2 * channels
                        target = grad_x[n, h, w]
                        _add(target, rows[(w + padding) % 2, r, at : at + channels], target)


@numba.njit(cache=True, nogil=True)
def _columns_of_gradient(
    g0: Array, g1: Array, g2: Array, g3: Array, channels: int, even: Array, odd: Array
) -> None:  # fmt: skip
    """One row of tiles times B^T: even and odd columns of one row of the image's gradient."""
    length = len(g0)
    for k in range(length):
        even[k] = g0[k]
        odd[k] = g1[k] - g2[k] + g3[k]
    even[length:] = 0
    odd[length:] = 0
    right_even, right_odd = even[channels:], odd[channels:]
    for k in range(length):
        right_even[k] += g1[k] + g2[k] - g0[k]
    for k in range(length):
        right_odd[k] -= g3[k]


@numba.njit(cache=True, nogil=True)
def _rows_of_gradient(t: Array, rows: Array) -> None:
    """B times four rows t."""
    t0, t1, t2, t3 = t[0], t[1], t[2], t[3]
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    for k in range(len(t0)):
        r0[k] = t0[k]
        r1[k] = t1[k] - t2[k] + t3[k]
        r2[k] = t1[k] + t2[k] - t0[k]
        r3[k] = -t3[k]


@numba.njit(cache=True, nogil=True)
def output_images(m: Array, y: Array, start: int, stop: int) -> None:
    """y = A^T m A [N, H, W, K]; the part of the last tiles that exceeds the image is cut off."""
    height, width, channels = y.shape[1:]
    high, row_length = m.shape[2:]
    columns = np.zeros((2, 4, row_length), m.dtype)
    line = np.zeros(row_length, m.dtype)
    for n in range(start, stop):
        for i in range(high):
            for p in range(4):
                m0, m1, m2, m3 = m[4 * p, n, i], m[4 * p + 1, n, i], m[4 * p + 2, n, i], m[4 * p + 3, n, i]
                left, right = columns[0, p], columns[1, p]
                for k in range(row_length):
                    left[k] = m0[k] + m1[k] + m2[k]
                for k in range(row_length):
                    right[k] = m1[k] - m2[k] - m3[k]
            for r in range(min(2, height - 2 * i)):
                for side in range(2):
                    s0, s1, s2, s3 = columns[side, 0], columns[side, 1], columns[side, 2], columns[side, 3]
                    if r == 0:
                        for k in range(row_length):
                            line[k] = s0[k] + s1[k] + s2[k]
                    else:
                        for k in range(row_length):
                            line[k] = s1[k] - s2[k] - s3[k]
                    for w in range(side, width, 2):
                        at = w // 2 * channels
                        y[n, 2 * i + r, w] = line[at : at + channels]


@numba.njit(cache=True, nogil=True)
def output_gradient(grad_y: Array, grad_m: Array, start: int, stop: int) -> None:
    """grad_m = A grad_y A^T."""
    height, width, channels = grad_y.shape[1:]
    high, row_length = grad_m.shape[2:]
    zeros = np.zeros((width, channels), grad_y.dtype)
    even, odd = np.zeros(row_length, grad_y.dtype), np.zeros(row_length, grad_y.dtype)
    for n in range(start, stop):
        for i in range(high):
            upper = grad_y[n, 2 * i]
            lower = grad_y[n, 2 * i + 1] if 2 * i + 1 < height else zeros
            for p in range(4):
                for w in range(width):
                    at = w // 2 * channels
                    line = odd[at : at + channels] if w % 2 else even[at : at + channels]
                    if p == 0:
                        line[:] = upper[w]
                    elif p == 1:
                        _add(upper[w], lower[w], line)
                    elif p == 2:
                        _subtract(upper[w], lower[w], line)
                    else:
                        _subtract(zeros[w], lower[w], line)
                grad_m[4 * p, n, i] = even
                _add(even, odd, grad_m[4 * p + 1, n, i])
                _subtract(even, odd, grad_m[4 * p + 2, n, i])
                for k in range(row_length):
                    grad_m[4 * p + 3, n, i, k] = -odd[k]
