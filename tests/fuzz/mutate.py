"""Damaged messages, and what must hold for every one of them: refused in one sentence, or decoded consistently."""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from dgcomp.wire import WireError, decode_message, encode_message
from dgcomp.wire.message import DENSE_CODECS
from dgcomp.wire.positions import FORMATS as POSITION_FORMATS
from dgcomp.wire.values import FORMATS as VALUE_FORMATS

Bytes = NDArray[np.uint8]


def random_message(rng: np.random.Generator) -> Bytes:
    """A good message of a random codec, density and size."""
    numel = int(rng.integers(1, 10 ** rng.integers(1, 6)))
    count = int(rng.integers(0, min(numel, 200) + 1))
    positions = rng.choice(numel, count, replace=False)
    codec = f"{rng.choice(VALUE_FORMATS)}+{rng.choice(POSITION_FORMATS)}"
    message = encode_message(
        torch.from_numpy(rng.standard_normal(count)),
        torch.from_numpy(positions),
        numel,
        codec,
        dense=torch.from_numpy(rng.standard_normal(rng.integers(0, 40))),
        dense_codec=str(rng.choice(DENSE_CODECS)),
        tag=int(rng.integers(0, 2**32)),
    )
    return message.numpy()


def mutated(message: Bytes, rng: np.random.Generator) -> Bytes:
    """The message with a few faults, most often with a checksum that hides them."""
    raw = message.copy()
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(0, 6)
        at = int(rng.integers(0, raw.size)) if raw.size else 0
        if kind == 0:
            raw = raw[:at]
        elif kind == 1:
            raw = np.concatenate((raw, rng.integers(0, 256, rng.integers(1, 20), np.uint8)))
        elif raw.size and kind == 2:
            raw[at] = rng.choice(np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint8))
        elif raw.size and kind == 3:  # the header is where a fault does most
            raw[at % min(raw.size, 26)] = rng.integers(0, 256)
        elif raw.size:
            raw[at] ^= np.uint8(1 << rng.integers(0, 8))
    return raw if rng.random() < 0.1 else with_checksum(raw)


def with_checksum(raw: Bytes) -> Bytes:
    """The same bytes with the checksum that the decoder will compute if it takes all of them for the message."""
    raw = raw.copy()
    if raw.size >= 11:
        checksum = zlib.crc32(raw[11:].tobytes(), zlib.crc32(raw[:7].tobytes()))
        raw[7:11] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
    return raw


def check(raw: Bytes) -> bool:
    """Decode any bytes; returns whether they were a message. Raises AssertionError if the result is inconsistent."""
    try:
        read = decode_message(torch.from_numpy(raw))
    except WireError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        return False
    count = read.positions.numel()
    assert read.values.shape == read.positions.shape
    assert count <= 8 * raw.size
    assert read.dense.numel() <= 8 * raw.size
    assert bool(torch.isfinite(read.values).all())
    assert bool(torch.isfinite(read.dense).all())
    if count:
        assert bool((read.positions.diff() > 0).all())
        assert int(read.positions[0]) >= 0
        assert int(read.positions[-1]) < read.numel
    again = decode_message(
        encode_message(read.values, read.positions, read.numel, dense=read.dense, dense_codec="fp32", tag=read.tag)
    )
    assert torch.equal(again.positions, read.positions)
    assert torch.equal(again.values, read.values)
    assert torch.equal(again.dense, read.dense)
    assert (again.numel, again.tag) == (read.numel, read.tag)
    return True


def run(count: int, seed: int = 0) -> int:
    """Check `count` mutated messages; returns how many were still messages."""
    rng = np.random.default_rng(seed)
    accepted = 0
    for i in range(count):
        if i % 10 == 0:
            message = random_message(rng)
        accepted += check(mutated(message, rng))
    return accepted
