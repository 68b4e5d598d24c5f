"""Transforms of F(2x2, 3x3) and their gradients on the CPU, for channels-last images.

An image row holds its pixels' channels one after the other, so every step is a sum of long contiguous rows; columns
are split into even and odd ones first, which makes the step of two columns between tiles contiguous too. Only
additions: each kernel reads its input once and writes its output once. Each kernel does images [start, stop).

Shapes: images [N, H, W, C]; transformed tiles [16, N, tiles high, tiles wide * C]. Inner loops have one index that
counts from zero and store to one row: those are the loops that numba's compiler turns into vector instructions.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["input_gradient", "input_tiles", "output_gradient", "output_images"]

Array = npt.NDArray[Any]


@numba.njit(cache=True, nogil=True)
def input_tiles(x: Array, padding: int, relu: bool, v: Array, start: int, stop: int) -> None:
    """v = B^T d B, then ReLU if `relu`, of the 4x4 tiles d of x [N, H, W, C], `padding` zeros around each image."""
    height, width, channels = x.shape[1:]
    high, length = v.shape[2:]
    zeros = np.zeros((width, channels), x.dtype)
    # even and odd columns of the padded image; the padding's cells are never written and stay zero
    columns = np.zeros((2, length // channels + 1, channels), x.dtype)
    even, odd = columns[0].reshape(-1), columns[1].reshape(-1)
    right_even, right_odd = even[channels:], odd[channels:]
    floor = x.dtype.type(0) if relu else x.dtype.type(-np.inf)
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
                    side, at = (w + padding) % 2, (w + padding) // 2
                    if p == 1:
                        for c in range(channels):
                            columns[side, at, c] = a[w, c] + b[w, c]
                    else:
                        for c in range(channels):
                            columns[side, at, c] = a[w, c] - b[w, c]
                for k in range(length):
                    v[4 * p, n, i, k] = max(even[k] - right_even[k], floor)
                for k in range(length):
                    v[4 * p + 1, n, i, k] = max(odd[k] + right_even[k], floor)
                for k in range(length):
                    v[4 * p + 2, n, i, k] = max(right_even[k] - odd[k], floor)
                for k in range(length):
                    v[4 * p + 3, n, i, k] = max(odd[k] - right_odd[k], floor)


@numba.njit(cache=True, nogil=True)
def input_gradient(grad_v: Array, v: Array, relu: bool, padding: int, grad_x: Array, start: int, stop: int) -> None:
    """grad_x = B (grad_v where v > 0) B^T summed over the tiles that overlap; without `relu` v is not read."""
    height, width, channels = grad_x.shape[1:]
    high, length = v.shape[2:]
    zero = grad_v.dtype.type(0)
    t = np.zeros((4, length), grad_v.dtype)
    columns = np.zeros((4, 2, length // channels + 1, channels), grad_v.dtype)  # a row of tiles, times B^T
    rows = np.zeros((2, length // channels + 1, channels), grad_v.dtype)  # B times that, one row of the image
    flat = columns.reshape(4, -1)
    row = rows.reshape(-1)
    for n in range(start, stop):
        grad_x[n] = 0
        for i in range(high):
            for p in range(4):
                for q in range(4):
                    for k in range(length):
                        is_cut = relu and v[4 * p + q, n, i, k] <= zero
                        t[q, k] = zero if is_cut else grad_v[4 * p + q, n, i, k]
                _transpose_columns(t, channels, flat[p])
            for r in range(4):
                h = 2 * i - padding + r
                if not 0 <= h < height:
                    continue
                if r == 0:
                    row[:] = flat[0]
                elif r == 1:
                    for k in range(len(row)):
                        row[k] = flat[1, k] - flat[2, k] + flat[3, k]
                elif r == 2:
                    for k in range(len(row)):
                        row[k] = flat[1, k] + flat[2, k] - flat[0, k]
                else:
                    for k in range(len(row)):
                        row[k] = -flat[3, k]
                for w in range(width):
                    side, at = (w + padding) % 2, (w + padding) // 2
                    for c in range(channels):
                        grad_x[n, h, w, c] += rows[side, at, c]


@numba.njit(cache=True, nogil=True)
def _transpose_columns(t: Array, channels: int, out: Array) -> None:
    """Four rows of a row of tiles, times B^T: even columns in the first half of `out`, odd ones in the second."""
    length = t.shape[1]
    even, odd = out[: length + channels], out[length + channels :]
    right_even, right_odd = even[channels:], odd[channels:]
    t0, t1, t2, t3 = t[0], t[1], t[2], t[3]
    even[length:] = 0
    odd[length:] = 0
    for k in range(length):
        even[k] = t0[k]
    for k in range(length):
        right_even[k] += t1[k] + t2[k] - t0[k]
    for k in range(length):
        odd[k] = t1[k] - t2[k] + t3[k]
    for k in range(length):
        right_odd[k] -= t3[k]


@numba.njit(cache=True, nogil=True)
def output_images(m: Array, y: Array, start: int, stop: int) -> None:
    """y = A^T M A [N, H, W, K]; the part of the last tiles that exceeds the image is cut off."""
    height, width, channels = y.shape[1:]
    high, length = m.shape[2:]
    columns = np.zeros((2, 4, length), m.dtype)
    lines = np.zeros((2, length // channels, channels), m.dtype)
    flat = lines.reshape(2, -1)
    for n in range(start, stop):
        for i in range(high):
            for p in range(4):
                m0, m1, m2, m3 = m[4 * p, n, i], m[4 * p + 1, n, i], m[4 * p + 2, n, i], m[4 * p + 3, n, i]
                for k in range(length):
                    columns[0, p, k] = m0[k] + m1[k] + m2[k]
                for k in range(length):
                    columns[1, p, k] = m1[k] - m2[k] - m3[k]
            for r in range(min(2, height - 2 * i)):
                for side in range(2):
                    s0, s1, s2, s3 = columns[side, 0], columns[side, 1], columns[side, 2], columns[side, 3]
                    if r == 0:
                        for k in range(length):
                            flat[side, k] = s0[k] + s1[k] + s2[k]
                    else:
                        for k in range(length):
                            flat[side, k] = s1[k] - s2[k] - s3[k]
                for w in range(width):
                    for c in range(channels):
                        y[n, 2 * i + r, w, c] = lines[w % 2, w // 2, c]


@numba.njit(cache=True, nogil=True)
def output_gradient(grad_y: Array, grad_m: Array, start: int, stop: int) -> None:
    """grad_m = A grad_y A^T."""
    height, width, channels = grad_y.shape[1:]
    high, length = grad_m.shape[2:]
    zeros = np.zeros((width, channels), grad_y.dtype)
    columns = np.zeros((2, length // channels, channels), grad_y.dtype)  # the last odd one may lie outside: zero
    even, odd = columns[0].reshape(-1), columns[1].reshape(-1)
    for n in range(start, stop):
        for i in range(high):
            upper = grad_y[n, 2 * i]
            lower = grad_y[n, 2 * i + 1] if 2 * i + 1 < height else zeros
            for p in range(4):
                a = zeros if p == 3 else upper
                b = zeros if p == 0 else lower
                sign = grad_y.dtype.type(1 if p == 1 else -1)
                for w in range(width):
                    for c in range(channels):
                        columns[w % 2, w // 2, c] = a[w, c] + sign * b[w, c]
                for k in range(length):
                    grad_m[4 * p, n, i, k] = even[k]
                for k in range(length):
                    grad_m[4 * p + 1, n, i, k] = even[k] + odd[k]
                for k in range(length):
                    grad_m[4 * p + 2, n, i, k] = even[k] - odd[k]
                for k in range(length):
                    grad_m[4 * p + 3, n, i, k] = -odd[k]
