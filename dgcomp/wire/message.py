"""One self-describing message per step: a header, positions, values, and the dense leftovers.

The byte format is in docs/wire.md. A message is written by `encode_message` and read by `decode_message`, which
trusts nothing it reads: sizes are checked against the message's own length before room is made for what they count.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.wire import bits
from dgcomp.wire import positions as position_formats
from dgcomp.wire import values as value_formats
from dgcomp.wire.errors import WireError

Bytes = NDArray[np.uint8]

DENSE_CODECS = value_formats.FORMATS[:4]
_MAGIC = b"\xd6\xc1"  # 12 bits of magic, 4 bits of version
_FAILURE_MAGIC = b"\xd6\xf0"
_FIXED_BYTES = 11  # magic and version 2, codec 1, tag 4, checksum 4
_MAX_VARINT_BYTES = 7
_PAPER = ("fp32", "run16")


@dataclass(frozen=True, slots=True)
class Message:
    """What one message says; all tensors are on the CPU."""

    values: Tensor
    """fp32, shape (count,)."""
    positions: Tensor
    """int64, shape (count,), strictly increasing in [0, numel)."""
    numel: int
    """Length of the vector that the positions point into."""
    dense: Tensor
    """fp32, shape (dense_numel,): what travels without positions."""
    tag: int
    """The sender's 32-bit mark of the model's layout."""
    codec: str
    """Value format + position format, such as "int4+rice"."""
    dense_codec: str
    num_bytes: int
    """Length of the message without the padding behind it."""


def encode(values: Tensor, positions: Tensor, numel: int, codec: str = "auto") -> Tensor:
    """Pack selected entries of a vector into one message.

    values: float, shape (count,), finite. positions: integers, shape (count,), each once, in [0, numel); sorted if
    they are not. codec: a value format ("fp32", "bf16", "int8", "int4", "sign"), alone with the smallest position
    format for these positions, or with one ("int4+rice", "fp32+bitmap", "+block", "+run16", "+int32"); "auto" is
    "fp32", lossless; "paper" is "fp32+run16", 48 bits an entry (Lin et al., ICLR 2018, sec. 3.1).
    Returns uint8, shape (bytes,), on the CPU. Raises ValueError that names the first offending entry.
    """
    return encode_message(values, positions, numel, codec)


def decode(message: Tensor) -> tuple[Tensor, Tensor, int]:
    """Unpack `encode`'s message into values (fp32), sorted positions (int64) and numel; raises WireError."""
    read = decode_message(message)
    return read.values, read.positions, read.numel


def encode_message(
    values: Tensor,
    positions: Tensor,
    numel: int,
    codec: str = "auto",
    *,
    dense: Tensor | None = None,
    dense_codec: str = "int8",
    tag: int = 0,
) -> Tensor:
    """Pack entries as `encode` does, and a dense vector behind them.

    dense: float, any shape, finite, sent whole in `dense_codec` ("fp32", "bf16", "int8", "int4"). tag: 32 bits that
    the receiver compares with its own, such as a hash of the model's layout.
    """
    value_form, position_form = parse_codec(codec)
    entries, where = sorted_entries(values, positions, numel)
    leftovers = _finite_floats(torch.empty(0) if dense is None else dense, "dense")
    if position_form is None:
        position_form, where_bytes = position_formats.encode_smallest(where, numel)
    else:
        where_bytes = position_formats.encode(position_form, where, numel)
    sections = (
        where_bytes,
        value_formats.encode(value_form, entries),
        value_formats.encode(_checked_dense_codec(dense_codec), leftovers),
    )
    code = _codec_byte(value_form, position_form, dense_codec)
    numbers = (numel, entries.size, leftovers.size, where_bytes.size)
    return _assemble(code, tag, numbers, sections)


def decode_message(
    message: Tensor, *, tag: int | None = None, numel: int | None = None, dense_numel: int | None = None
) -> Message:
    """Unpack a message; zeros behind it are padding.

    message: uint8, shape (bytes,). tag, numel, dense_numel: what the receiver expects, unchecked if None.
    Raises WireError with one sentence for anything but a complete, undamaged message of the expected model.
    """
    raw = _raw_bytes(message)
    code, found_tag, checksum, numbers, start = _read_header(raw)
    value_form, position_form, dense_codec = _codec_names(code)
    total, count, num_dense, position_bytes = numbers
    value_start = start + position_bytes
    dense_start = value_start + value_formats.num_bytes(value_form, count)
    stop = dense_start + value_formats.num_bytes(dense_codec, num_dense)
    if not max(count, 1) <= total <= position_formats.MAX_NUMEL or stop > raw.size:
        raise WireError(f"the header counts {count} of {total} entries and {stop} bytes, the message has {raw.size}")
    if _checksum(raw[:7], raw[_FIXED_BYTES:stop]) != checksum:
        raise WireError("the checksum does not match: the message is damaged")
    if tag is not None and found_tag != tag & 0xFFFFFFFF:
        raise WireError(f"the message is of another model: its tag is {found_tag:#010x}, not {tag & 0xFFFFFFFF:#010x}")
    _check_expected("numel", total, numel)
    _check_expected("dense_numel", num_dense, dense_numel)
    if raw[stop:].any():
        raise WireError(f"bytes other than zero follow the message's {stop} bytes")
    positions = position_formats.decode(position_form, raw[start:value_start], count, total)
    values = value_formats.decode(value_form, raw[value_start:dense_start], count)
    dense = value_formats.decode(dense_codec, raw[dense_start:stop], num_dense)
    return Message(
        values=torch.from_numpy(values),
        positions=torch.from_numpy(positions),
        numel=total,
        dense=torch.from_numpy(dense),
        tag=found_tag,
        codec=f"{value_form}+{position_form}",
        dense_codec=dense_codec,
        num_bytes=stop,
    )


def capacity_bytes(
    count: int, numel: int, codec: str = "auto", *, dense_numel: int = 0, dense_codec: str = "int8"
) -> int:
    """Largest message of at most `count` entries of `numel`: a function of its arguments only, so equal on all ranks.

    It costs a few percent over the typical message with Rice positions, nothing with the others.
    """
    value_form, position_form = parse_codec(codec)
    if not 0 <= count <= numel:
        raise ValueError(f"count must be in [0, numel = {numel}], got {count}")
    form = position_form or position_formats.smallest(count, numel)
    position_bytes = position_formats.worst_bytes(form, count, numel)
    numbers = (numel, count, dense_numel, position_bytes)
    return (
        _FIXED_BYTES
        + sum(len(_varint(number)) for number in numbers)
        + position_bytes
        + value_formats.num_bytes(value_form, count)
        + value_formats.num_bytes(_checked_dense_codec(dense_codec), dense_numel)
    )


def fixed_codec(codec: str, count: int, numel: int) -> str:
    """The codec with its position format spelled out: the one whose worst case `capacity_bytes` counts with."""
    value_form, position_form = parse_codec(codec)
    return f"{value_form}+{position_form or position_formats.smallest(count, numel)}"


def failure_message(reason: str, capacity: int) -> Tensor:
    """A message that makes every receiver raise WireError with `reason`, cut to at most `capacity` bytes.

    A rank that cannot encode sends it in place of its message: nobody waits for a rank that has left.
    """
    text = reason.encode()[: max(min(capacity - 8, 0xFFFF), 0)]
    body = len(text).to_bytes(2, "little") + text
    raw = _FAILURE_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
    return torch.from_numpy(np.frombuffer(raw[:capacity], np.uint8).copy())


def parse_codec(codec: str) -> tuple[str, str | None]:
    """Value format and position format (None: the smallest) of a codec's name; raises ValueError."""
    if codec == "paper":
        return _PAPER
    value_form, plus, position_form = codec.partition("+")
    if value_form == "auto":
        value_form = "fp32"
    known = value_form in value_formats.FORMATS and (position_form in position_formats.FORMATS if plus else True)
    if not known:
        raise ValueError(
            f'codec must be "auto", "paper" or one of {value_formats.FORMATS}, alone or followed by "+" and one of '
            f"{position_formats.FORMATS}, got {codec!r}"
        )
    return value_form, position_form or None


def sorted_entries(values: Tensor, positions: Tensor, numel: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The entries as flat arrays in ascending order of positions; raises ValueError where `encode` would."""
    if not 1 <= numel <= position_formats.MAX_NUMEL:
        raise ValueError(f"numel must be in [1, 2**48], got {numel}")
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ValueError(f"positions must be integers, got {positions.dtype}")
    entries = _finite_floats(values, "values")
    where = positions.detach().to("cpu", torch.int64).contiguous().reshape(-1).numpy()
    if entries.size != where.size:
        raise ValueError(f"values and positions must be equally many, got {entries.size} and {where.size}")
    if bits.first_disorder(where, numel) >= 0:
        order = np.argsort(where, kind="stable")
        entries, where = np.ascontiguousarray(entries[order]), np.ascontiguousarray(where[order])
        _refuse_disorder(where, numel)
    return entries, where


def _refuse_disorder(where: NDArray[np.int64], numel: int) -> None:
    first = bits.first_disorder(where, numel)
    if first >= 0:
        position = int(where[first])
        problem = "more than once" if 0 <= position < numel else "outside it"
        raise ValueError(f"positions must be unique in [0, {numel}), got {position} {problem}")


def _finite_floats(tensor: Tensor, name: str) -> NDArray[np.float32]:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    floats = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy()
    if not value_formats.all_finite(floats):
        first = int(np.flatnonzero(~np.isfinite(floats))[0])
        raise ValueError(f"{name} must be finite, got {floats[first]} at index {first}")
    return floats


def _checked_dense_codec(name: str) -> str:
    if name not in DENSE_CODECS:
        raise ValueError(f"dense_codec must be one of {DENSE_CODECS}, got {name!r}")
    return name


def _codec_byte(value_form: str, position_form: str, dense_codec: str) -> int:
    return (
        value_formats.FORMATS.index(value_form)
        | position_formats.FORMATS.index(position_form) << 3
        | DENSE_CODECS.index(dense_codec) << 6
    )


def _codec_names(code: int) -> tuple[str, str, str]:
    value, position, dense = code & 7, code >> 3 & 7, code >> 6
    if value >= len(value_formats.FORMATS) or position >= len(position_formats.FORMATS):
        raise WireError(f"unknown codec {code:#04x}")
    return value_formats.FORMATS[value], position_formats.FORMATS[position], DENSE_CODECS[dense]


def _assemble(code: int, tag: int, numbers: tuple[int, ...], sections: tuple[Bytes, ...]) -> Tensor:
    head = _MAGIC + bytes([code]) + (tag & 0xFFFFFFFF).to_bytes(4, "little")
    varints = b"".join(map(_varint, numbers))
    body = np.concatenate((np.frombuffer(varints, np.uint8), *sections))
    out = np.empty(_FIXED_BYTES + body.size, np.uint8)
    out[:7] = np.frombuffer(head, np.uint8)
    out[7:11] = np.frombuffer(_checksum(out[:7], body).to_bytes(4, "little"), np.uint8)
    out[11:] = body
    return torch.from_numpy(out)


def _checksum(head: Bytes, body: Bytes) -> int:
    return zlib.crc32(body.data, zlib.crc32(head.data))


def _raw_bytes(message: Tensor) -> Bytes:
    if message.dtype != torch.uint8 or message.ndim != 1:
        raise WireError(f"a message is a flat uint8 tensor, got {message.dtype} of shape {tuple(message.shape)}")
    raw: Bytes = message.detach().cpu().contiguous().numpy()
    return raw


def _read_header(raw: Bytes) -> tuple[int, int, int, list[int], int]:
    """Codec byte, tag, checksum, the four numbers, and where the sections start."""
    if raw.size < _FIXED_BYTES:
        raise WireError(f"a message has at least {_FIXED_BYTES} bytes, got {raw.size}")
    head = raw[: _FIXED_BYTES + 4 * _MAX_VARINT_BYTES].tobytes()
    if head[:2] == _FAILURE_MAGIC:
        raise WireError(f"the sender failed: {_failure_reason(raw)}")
    if head[0] != _MAGIC[0] or head[1] >> 4 != _MAGIC[1] >> 4:
        raise WireError("not a message: it does not start with the magic number")
    if head[1] != _MAGIC[1]:
        raise WireError(f"the message has version {head[1] & 15}, this reader knows version {_MAGIC[1] & 15}")
    numbers, at = [], _FIXED_BYTES
    for _ in range(4):
        number, at = _read_varint(head, at)
        numbers.append(number)
    return head[2], int.from_bytes(head[3:7], "little"), int.from_bytes(head[7:11], "little"), numbers, at


def _failure_reason(raw: Bytes) -> str:
    body = raw[6 : 8 + int.from_bytes(raw[6:8].tobytes(), "little")].tobytes()
    if zlib.crc32(body) != int.from_bytes(raw[2:6].tobytes(), "little"):
        return "and its reason is damaged"
    return body[2:].decode(errors="replace")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(head: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at >= len(head):
            raise WireError("the message ends inside its header")
        number |= (head[at] & 0x7F) << shift
        at += 1
        if head[at - 1] < 0x80:
            return number, at
    raise WireError("a count of the header does not end")


def _check_expected(name: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        raise WireError(f"the message is of another model: its {name} is {found}, not {expected}")
