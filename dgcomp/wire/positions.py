"""Sorted positions to bytes and back, in five formats, with their exact and worst-case sizes.

| format | bytes | good at |
|---|---|---|
| bitmap | one bit per element | densities above a third |
| rice | gaps, Rice-coded with the best parameter for these gaps | everything below: within 2 % of the entropy |
| block | blocks of 2**b elements, b-bit offsets, counts in unary (Elias-Fano) | a size known beforehand |
| run16 | 16-bit runs of zeros, 65535 = skip 65535 and go on (Lin et al., ICLR 2018, sec. 3.1) | the paper's wire |
| int32 | four bytes each | a peer's wire, for comparison |

An empty selection takes no bytes in any format.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dgcomp.wire import bits
from dgcomp.wire.errors import WireError

Bytes = NDArray[np.uint8]
I64 = NDArray[np.int64]

FORMATS = ("bitmap", "rice", "block", "run16", "int32")
MAX_NUMEL = 2**48  # far above any model, far below where the arithmetic of positions could overflow
_MAX_LOW_BITS = 48
_RICE_WIDTHS_BELOW = 3  # clustered positions want a smaller parameter than their density suggests
_RICE_SAMPLES = 4096  # gaps that choose the parameter; all of them would take longer than the coding
_FILLER = 65535


def encode(form: str, positions: I64, numel: int) -> Bytes:
    """Bytes of strictly increasing positions in [0, numel), in the named format."""
    return _ENCODERS[form](positions, numel) if positions.size else np.empty(0, np.uint8)


def decode(form: str, payload: Bytes, count: int, numel: int) -> I64:
    """The `count` positions of a payload, strictly increasing in [0, numel). Raises WireError if it holds others."""
    if count == 0:
        if payload.size:
            raise WireError(f"{payload.size} bytes of positions for an empty selection")
        return np.empty(0, np.int64)
    if payload.size < _least_bytes(form, count, numel):
        raise WireError(f"{payload.size} bytes cannot hold {count} {form} positions of {numel}")
    return _DECODERS[form](payload, count, numel)


def worst_bytes(form: str, count: int, numel: int) -> int:
    """Largest size that at most `count` positions of `numel` can take: the same number on every rank."""
    if count == 0:
        return 0
    if form == "bitmap":
        return -(-numel // 8)
    if form == "int32":
        return 4 * count
    if form == "run16":
        return 2 * (count + (numel - count) // _FILLER)
    if form == "rice":
        return min(_rice_bytes(count, width, (numel - count) >> width) for width in _likely_widths(count, numel))
    return min(_block_bytes(count, width, numel) for width in _likely_widths(count, numel))


def smallest(count: int, numel: int) -> str:
    """The format with the smallest worst case; ties go to the one that stands first in FORMATS."""
    return min(_automatic(numel), key=lambda form: worst_bytes(form, count, numel))


def encode_smallest(positions: I64, numel: int) -> tuple[str, Bytes]:
    """The format that is smallest for exactly these positions, and their bytes in it."""
    if positions.size == 0:
        return FORMATS[0], encode(FORMATS[0], positions, numel)
    sizes = {form: worst_bytes(form, positions.size, numel) for form in _automatic(numel)}
    sizes["rice"] = _rice_size(positions, numel)[1]
    if 2 * positions.size < min(sizes.values()):  # even with fillers, runs may be smaller than their worst case
        sizes["run16"] = _encode_run16(positions, numel).size
    form = min(sizes, key=lambda name: sizes[name])
    return form, encode(form, positions, numel)


def entropy_bits(count: int, numel: int) -> float:
    """Entropy of `count` independent positions of `numel`, in bits per position: H(d) / d."""
    density = count / numel
    if density in (0.0, 1.0):
        return 0.0
    return float(-np.log2(density) - (1 - density) / density * np.log2(1 - density))


def _automatic(numel: int) -> tuple[str, ...]:
    return FORMATS if numel <= 2**32 else FORMATS[:-1]


def _likely_widths(count: int, numel: int) -> range:
    """Widths among which the smallest total `count * (width + 1) + (numel >> width)` lies."""
    width = max((numel // count).bit_length() - 1, 0)
    return range(max(width - 2, 0), min(width + 2, _MAX_LOW_BITS) + 1)


def _rice_bytes(count: int, width: int, quotients: int) -> int:
    return 1 + -(-count * width // 8) + -(-(count + quotients) // 8)


def _block_bytes(count: int, width: int, numel: int) -> int:
    return _rice_bytes(count, width, (numel - 1) >> width)


def _least_bytes(form: str, count: int, numel: int) -> int:
    """A bound on the size from below: what a decoder asks for before it makes room for `count` positions."""
    return {"bitmap": -(-numel // 8), "int32": 4 * count, "run16": 2 * count}.get(form, 1 + -(-count // 8))


def _rice_size(positions: I64, numel: int) -> tuple[int, int]:
    """A good Rice parameter for these positions (the best, if they are few), and the size with it."""
    likely = _likely_widths(positions.size, numel)
    widths = range(max(likely.start - _RICE_WIDTHS_BELOW, 0), likely.stop)
    stride = max(positions.size // _RICE_SAMPLES, 1)
    sums = stride * _quotients(positions, widths, stride)
    sizes = [_rice_bytes(positions.size, width, int(total)) for width, total in zip(widths, sums, strict=True)]
    width = widths[int(np.argmin(sizes))]
    size = _rice_bytes(positions.size, width, int(_quotients(positions, range(width, width + 1))[0]))
    if size > worst_bytes("rice", positions.size, numel):  # the samples misled: take what the worst case assumes
        width = min(likely, key=lambda b: _rice_bytes(positions.size, b, (numel - positions.size) >> b))
        size = _rice_bytes(positions.size, width, int(_quotients(positions, range(width, width + 1))[0]))
    return width, size


def _quotients(positions: I64, widths: range, stride: int = 1) -> I64:
    sums = np.zeros(len(widths), np.int64)
    bits.quotient_sums(positions, widths.start, stride, sums)
    return sums


def _encode_rice(positions: I64, numel: int) -> Bytes:
    width, size = _rice_size(positions, numel)
    return _encode_split(positions, width, size, relative=True)


def _encode_block(positions: I64, numel: int) -> Bytes:
    count = positions.size
    width = min(_likely_widths(count, numel), key=lambda b: _block_bytes(count, b, numel))
    return _encode_split(positions, width, _block_bytes(count, width, numel), relative=False)


def _encode_split(positions: I64, width: int, size: int, *, relative: bool) -> Bytes:
    """One byte for the width, then the packed low bits, then the unary part."""
    low_bytes = -(-positions.size * width // 8)
    low, high = _zero_words(low_bytes), _zero_words(size - 1 - low_bytes)
    bits.write_split(positions, width, relative, low, high)
    out = np.empty(size, np.uint8)
    out[0] = width
    out[1 : 1 + low_bytes] = low.view(np.uint8)[:low_bytes]
    out[1 + low_bytes :] = high.view(np.uint8)[: size - 1 - low_bytes]
    return out


def _decode_rice(payload: Bytes, count: int, numel: int) -> I64:
    return _decode_split(payload, count, numel, relative=True)


def _decode_block(payload: Bytes, count: int, numel: int) -> I64:
    width = int(payload[0])
    if width <= _MAX_LOW_BITS and payload.size != _block_bytes(count, width, numel):
        raise WireError(f"{payload.size} bytes of block positions where the counts ask for another number")
    return _decode_split(payload, count, numel, relative=False)


def _decode_split(payload: Bytes, count: int, numel: int, *, relative: bool) -> I64:
    width = int(payload[0])
    low_bytes = -(-count * width // 8)
    if width > _MAX_LOW_BITS or 1 + low_bytes > payload.size:
        raise WireError(f"{payload.size} bytes cannot hold {count} positions of {width} low bits")
    low, high = _to_words(payload[1 : 1 + low_bytes]), _to_words(payload[1 + low_bytes :])
    positions = np.empty(count, np.int64)
    _check(bits.read_split(low, high, width, relative, numel, positions), count, numel)
    return positions


def _encode_bitmap(positions: I64, numel: int) -> Bytes:
    words = _zero_words(-(-numel // 8))
    bits.write_bitmap(positions, words)
    return words.view(np.uint8)[: -(-numel // 8)]


def _decode_bitmap(payload: Bytes, count: int, numel: int) -> I64:
    if payload.size != -(-numel // 8):
        raise WireError(f"a bitmap of {payload.size} bytes where {numel} elements need {-(-numel // 8)}")
    positions = np.empty(count, np.int64)
    _check(bits.read_bitmap(_to_words(payload), numel, positions), count, numel)
    return positions


def _encode_run16(positions: I64, numel: int) -> Bytes:
    gaps = np.diff(positions, prepend=-1) - 1
    fillers, runs = gaps // _FILLER, gaps % _FILLER
    out = np.full(positions.size + int(fillers.sum()), _FILLER, "<u2")
    out[np.cumsum(fillers + 1) - 1] = runs
    return out.view(np.uint8)


def _decode_run16(payload: Bytes, count: int, numel: int) -> I64:
    if payload.size % 2:
        raise WireError(f"16-bit runs in an odd number of bytes, {payload.size}")
    runs = payload.view("<u2").astype(np.int64)
    is_entry = runs != _FILLER
    positions: I64 = np.cumsum(runs + is_entry)[is_entry] - 1
    if positions.size != count or not is_entry[-1]:
        raise WireError(f"{positions.size} runs end in a position where the header counts {count}")
    if positions[-1] >= numel:
        raise WireError(f"position {int(positions[-1])} lies outside [0, {numel})")
    return positions


def _encode_int32(positions: I64, numel: int) -> Bytes:
    if numel > 2**32:
        raise ValueError(f"codec with int32 positions takes at most 2**32 elements, got {numel}; use rice positions")
    return positions.astype("<u4").view(np.uint8)


def _decode_int32(payload: Bytes, count: int, numel: int) -> I64:
    if payload.size != 4 * count:
        raise WireError(f"{payload.size} bytes of int32 positions where the header counts {count}")
    positions = payload.view("<u4").astype(np.int64)
    disorder = bits.first_disorder(positions, numel)
    if disorder >= 0:
        raise WireError(f"position {int(positions[disorder])} is out of order or outside [0, {numel})")
    return positions


_ENCODERS: dict[str, Callable[[I64, int], Bytes]] = {
    "bitmap": _encode_bitmap,
    "rice": _encode_rice,
    "block": _encode_block,
    "run16": _encode_run16,
    "int32": _encode_int32,
}
_DECODERS: dict[str, Callable[[Bytes, int, int], I64]] = {
    "bitmap": _decode_bitmap,
    "rice": _decode_rice,
    "block": _decode_block,
    "run16": _decode_run16,
    "int32": _decode_int32,
}


def _zero_words(num_bytes: int) -> NDArray[np.uint64]:
    # never none: a kernel may look at the first word even when the width is zero
    return np.zeros(max(-(-num_bytes // 8), 1), np.uint64)


def _to_words(payload: Bytes) -> NDArray[np.uint64]:
    words = _zero_words(payload.size)
    words.view(np.uint8)[: payload.size] = payload
    return words


def _check(status: int, count: int, numel: int) -> None:
    if status == bits.TOO_FEW:
        raise WireError(f"fewer positions than the {count} that the header counts")
    if status == bits.TOO_MANY:
        raise WireError(f"more positions than the {count} that the header counts")
    if status == bits.OUT_OF_RANGE:
        raise WireError(f"a position lies outside [0, {numel})")
    if status == bits.NOT_INCREASING:
        raise WireError("the positions are not strictly increasing")
