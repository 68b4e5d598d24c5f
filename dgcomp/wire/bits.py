"""Bit-level loops of the position formats, compiled by numba.

All of them work on arrays of 64-bit little-endian words, lowest bit first, and never outside the arrays they get.
"Split" means: the low bits of a number in a packed array of fixed width, the rest in unary as the distance between
set bits of a bit vector. Applied to the gaps between positions this is Rice coding, applied to the positions
themselves it is Elias-Fano coding, that is, blocks of 2**low_bits positions with their counts in unary.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

# What `read_split` and `read_bitmap` return.
OK, TOO_FEW, TOO_MANY, OUT_OF_RANGE, NOT_INCREASING = 0, 1, 2, 3, 4

# Index of the only set bit of a word: a de Bruijn sequence names the 64 cases by its top six bits.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_INDEX = np.zeros(64, np.int64)
for _bit in range(64):
    _BIT_INDEX[((0x03F79D71B4CB0A89 << _bit) & (2**64 - 1)) >> 58] = _bit
_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_TOP_SIX = np.uint64(58)


@njit(cache=True, nogil=True)
def lowest_bit(word: np.uint64) -> Any:
    """Index (int64) of the lowest set bit of a word that is not zero."""
    return _BIT_INDEX[((word & (~word + _ONE)) * _DE_BRUIJN) >> _TOP_SIX]


@njit(cache=True, nogil=True)
def write_split(positions: I64, low_bits: int, relative: bool, low: U64, high: U64) -> None:
    """Split sorted positions (or, if `relative`, the gaps between them) into zeroed `low` and `high` words."""
    width = np.uint64(low_bits)
    mask = (_ONE << width) - _ONE
    previous, bit = np.int64(-1), np.int64(-1)
    word, filled, pending = 0, np.uint64(0), _ZERO
    for i in range(positions.size):
        number = positions[i]
        if relative:
            number = positions[i] - previous - 1
            previous = positions[i]
            bit += (number >> low_bits) + 1
        else:
            bit = (number >> low_bits) + i
        high[bit >> 6] |= _ONE << np.uint64(bit & 63)
        part = np.uint64(number) & mask
        pending |= part << filled
        filled += width
        if filled >= np.uint64(64):
            low[word] = pending
            word += 1
            filled -= np.uint64(64)
            pending = part >> (width - filled)
    if filled > _ZERO:
        low[word] = pending


@njit(cache=True, nogil=True)
def read_split(low: U64, high: U64, low_bits: int, relative: bool, numel: int, positions: I64) -> int:
    """Fill `positions` from what `write_split` wrote; returns OK or what is wrong, trusting nothing."""
    width = np.uint64(low_bits)
    mask = (_ONE << width) - _ONE
    limit = np.int64(numel)
    previous, previous_bit = np.int64(-1), np.int64(-1)
    word, current = -1, _ZERO
    at = np.uint64(0)
    for i in range(positions.size):
        while current == _ZERO:
            word += 1
            if word >= high.size:
                return TOO_FEW
            current = high[word]
        bit = np.int64(word) * 64 + lowest_bit(current)
        current &= current - _ONE
        index, shift = at >> np.uint64(6), at & np.uint64(63)
        part = low[index] >> shift
        if shift + width > np.uint64(64):
            part |= low[index + _ONE] << (np.uint64(64) - shift)
        at += width
        quotient = bit - previous_bit - 1 if relative else bit - i
        if quotient > (limit >> low_bits):
            return OUT_OF_RANGE
        number = (quotient << low_bits) | np.int64(part & mask)
        if relative:
            number += previous + 1
            previous_bit = bit
        elif number <= previous:
            return NOT_INCREASING
        if number >= limit:
            return OUT_OF_RANGE
        positions[i] = number
        previous = number
    if current != _ZERO:
        return TOO_MANY
    for rest in range(word + 1, high.size):
        if high[rest] != _ZERO:
            return TOO_MANY
    return OK


@njit(cache=True, nogil=True)
def write_bitmap(positions: I64, words: U64) -> None:
    """Set one bit per position in zeroed `words`."""
    for i in range(positions.size):
        words[positions[i] >> 6] |= _ONE << np.uint64(positions[i] & 63)


@njit(cache=True, nogil=True)
def read_bitmap(words: U64, numel: int, positions: I64) -> int:
    """Fill `positions` with the indices of the set bits; returns OK or what is wrong."""
    found = 0
    for word in range(words.size):
        current = words[word]
        while current != _ZERO:
            if found == positions.size:
                return TOO_MANY
            positions[found] = np.int64(word) * 64 + lowest_bit(current)
            current &= current - _ONE
            found += 1
    if found < positions.size:
        return TOO_FEW
    if found and positions[found - 1] >= numel:
        return OUT_OF_RANGE
    return OK


@njit(cache=True, nogil=True)
def quotient_sums(positions: I64, low_bits: int, stride: int, sums: I64) -> None:
    """Add up the unary parts of every stride-th gap for the widths low_bits, low_bits + 1, ..."""
    for i in range(0, positions.size, stride):
        previous = positions[i - 1] if i else np.int64(-1)
        gap = (positions[i] - previous - 1) >> low_bits
        for width in range(sums.size):
            sums[width] += gap >> width


@njit(cache=True, nogil=True)
def first_disorder(positions: I64, numel: int) -> int:
    """Index of the first position that is out of [0, numel) or not above its predecessor, -1 if there is none."""
    previous = np.int64(-1)
    for i in range(positions.size):
        if positions[i] <= previous or positions[i] >= numel:
            return i
        previous = positions[i]
    return -1
