"""Whole messages: round trips, what the encoder refuses, what the decoder refuses, sizes, the paper's figures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.shapes import MODELS, resnet50, split
from dgcomp.wire import WireError, capacity_bytes, decode, decode_message, encode, encode_message, failure_message
from dgcomp.wire.message import DENSE_CODECS
from dgcomp.wire.positions import FORMATS as POSITION_FORMATS
from dgcomp.wire.values import FORMATS as VALUE_FORMATS

CODECS = ["auto", "paper", *VALUE_FORMATS, *(f"fp32+{form}" for form in POSITION_FORMATS), "int4+block"]


def _random(count: int, numel: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(numel, generator=generator)[:count].sort().values
    return torch.randn(count, generator=generator), positions


def _good() -> Tensor:
    values, positions = _random(40, 3000)
    return encode_message(values, positions, 3000, "int4", dense=torch.randn(30), tag=0xDEADBEEF)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("count", "numel"), [(0, 1), (1, 1), (0, 500), (1, 500), (37, 500), (500, 500), (700, 70_000)])
def test_round_trip(codec: str, count: int, numel: int) -> None:
    values, positions = _random(count, numel)
    message = encode(values, positions, numel, codec)
    back, where, total = decode(message)
    assert message.dtype == torch.uint8
    assert total == numel
    assert torch.equal(where, positions)
    assert back.dtype == torch.float32
    if codec in ("auto", "paper") or codec.startswith("fp32"):
        assert torch.equal(back, values)
    assert torch.equal(encode(back, where, numel, codec), encode(back, where, numel, codec))
    assert len(message) <= capacity_bytes(count, numel, codec)


@pytest.mark.parametrize("dense_codec", DENSE_CODECS)
@settings(deadline=None, max_examples=25)
@given(count=st.integers(0, 60), more=st.integers(0, 20), dense_numel=st.integers(0, 600), seed=st.integers(0, 99))
def test_messages_fit_the_capacity_with_a_dense_part_and_padding(
    dense_codec: str, count: int, more: int, dense_numel: int, seed: int
) -> None:
    values, positions = _random(count, 2000, seed)
    dense = torch.randn(dense_numel)
    message = encode_message(values, positions, 2000, "int8", dense=dense, dense_codec=dense_codec, tag=seed)
    room = capacity_bytes(count + more, 2000, "int8", dense_numel=dense_numel, dense_codec=dense_codec)
    assert len(message) <= room
    padded = torch.cat((message, torch.zeros(room - len(message), dtype=torch.uint8)))
    read = decode_message(padded, tag=seed, numel=2000, dense_numel=dense_numel)
    assert torch.equal(read.positions, positions)
    assert read.dense.shape == dense.shape
    assert (read.tag, read.dense_codec, read.num_bytes) == (seed, dense_codec, len(message))
    if dense_codec == "fp32":
        assert torch.equal(read.dense, dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_unsorted_positions_are_sorted_with_their_values(dtype: torch.dtype) -> None:
    values, positions = torch.tensor([3.0, 1.0, 2.0], dtype=dtype), torch.tensor([30, 10, 20], dtype=torch.int32)
    back, where, _ = decode(encode(values, positions, 31))
    assert where.tolist() == [10, 20, 30]
    assert back.tolist() == [1, 2, 3]


def test_views_and_gradients_are_taken_as_they_are() -> None:
    values = torch.arange(10.0, requires_grad=True)[::2]
    back, where, _ = decode(encode(values, torch.arange(20)[::4], 20))
    assert back.tolist() == [0, 2, 4, 6, 8]
    assert where.tolist() == [0, 4, 8, 12, 16]


BAD_INPUT = {
    "unique in [0, 10), got 3 more than once": ([1.0, 2.0], [3, 3], 10),
    "got -1 outside it": ([1.0], [-1], 10),
    "got 10 outside it": ([1.0], [10], 10),
    "finite, got nan at index 1": ([1.0, float("nan")], [1, 2], 10),
    "finite, got inf at index 0": ([float("inf")], [1], 10),
    "equally many, got 1 and 2": ([1.0], [1, 2], 10),
    "numel must be in [1, 2**48], got 0": ([], [], 0),
    "numel must be in [1, 2**48], got -3": ([], [], -3),
}


@pytest.mark.parametrize("text", BAD_INPUT)
def test_the_encoder_names_what_is_wrong(text: str) -> None:
    values, positions, numel = BAD_INPUT[text]
    with pytest.raises(ValueError, match="must be") as caught:
        encode(torch.tensor(values), torch.tensor(positions, dtype=torch.int64), numel)
    assert text in str(caught.value)


def test_the_encoder_refuses_other_types_and_names() -> None:
    one, where = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="positions must be integers, got torch.float32"):
        encode(one, one, 5)
    with pytest.raises(ValueError, match="values must be floating point, got torch.int64"):
        encode(where, where, 5)
    with pytest.raises(ValueError, match=r'codec must be "auto", "paper" or one of .* got \'int5\''):
        encode(one, where, 5, "int5")
    with pytest.raises(ValueError, match="codec must be"):
        encode(one, where, 5, "int4+")
    with pytest.raises(ValueError, match="dense_codec must be one of"):
        encode_message(one, where, 5, dense=one, dense_codec="sign")
    with pytest.raises(ValueError, match="dense must be finite, got nan at index 0"):
        encode_message(one, where, 5, dense=torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match=r"count must be in \[0, numel = 5\], got 6"):
        capacity_bytes(6, 5)


def test_every_truncation_is_refused() -> None:
    message = _good()
    for length in range(len(message)):
        with pytest.raises(WireError):
            decode(message[:length])


def test_every_flipped_bit_is_refused() -> None:
    message = _good()
    for bit in range(8 * len(message)):
        damaged = message.clone()
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode(damaged)


def test_what_follows_a_message_must_be_zeros() -> None:
    message = _good()
    decode(torch.cat((message, torch.zeros(9, dtype=torch.uint8))))
    with pytest.raises(WireError, match="bytes other than zero follow"):
        decode(torch.cat((message, torch.tensor([0, 0, 1], dtype=torch.uint8))))


def test_another_model_version_or_kind_is_named() -> None:
    message = _good()
    with pytest.raises(WireError, match="another model: its tag is 0xdeadbeef, not 0x00000001"):
        decode_message(message, tag=1)
    with pytest.raises(WireError, match="another model: its numel is 3000, not 3001"):
        decode_message(message, numel=3001)
    with pytest.raises(WireError, match="another model: its dense_numel is 30, not 0"):
        decode_message(message, dense_numel=0)
    newer = message.clone()
    newer[1] += 1
    with pytest.raises(WireError, match="has version 2, this reader knows version 1"):
        decode(newer)
    with pytest.raises(WireError, match="does not start with the magic number"):
        decode(torch.zeros(100, dtype=torch.uint8))
    with pytest.raises(WireError, match="flat uint8 tensor, got torch.float32"):
        decode(torch.zeros(100))


@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(st.integers(0, 2**49 - 1), min_size=4, max_size=4), code=st.integers(0, 255))
def test_lying_headers_are_refused_before_room_is_made_for_them(numbers: list[int], code: int) -> None:
    body = b"".join(_varint(number) for number in numbers) + bytes(50)
    lie = torch.frombuffer(bytearray(b"\xd6\xc1" + bytes([code]) + bytes(8) + body), dtype=torch.uint8)
    with pytest.raises(WireError):
        decode(lie)


def _varint(number: int) -> bytes:
    low = [(number >> shift) & 0x7F for shift in range(0, 49, 7)]
    return bytes(part | 0x80 for part in low[:-1]) + bytes(low[-1:])


def test_a_failure_message_carries_its_reason() -> None:
    for room in (200, 30, 10, 3):
        message = failure_message("values must be finite, got nan at index 3", room)
        assert len(message) <= room
        with pytest.raises(WireError):
            decode(message)
    with pytest.raises(WireError, match="the sender failed: values must be finite, got nan at index 3"):
        decode(torch.cat((failure_message("values must be finite, got nan at index 3", 200), torch.zeros(9).byte())))


def test_headers_are_small() -> None:
    assert capacity_bytes(80, 80_000, "fp32+int32") - 80 * 8 <= 20
    assert (
        capacity_bytes(25_503, 25_502_912, "fp32+int32", dense_numel=54_120, dense_codec="fp32")
        - (25_503 * 8 + 54_120 * 4)
        == 24
    )


@pytest.mark.parametrize(("model", "mib", "ratio"), [("resnet50", 0.352, 277), ("lstm1500", 0.422, 462)])
def test_the_paper_s_wire_gives_the_paper_s_sizes(model: str, mib: float, ratio: int) -> None:
    """0.1 % of every weight tensor at 48 bits an entry, biases and batch norms in fp32 (papers' table 3)."""
    sparse_numel, dense_numel = split(MODELS[model]())
    count = sum(round(0.001 * int(np.prod(shape))) for shape in MODELS[model]() if len(shape) > 1)
    values, positions = _random(count, sparse_numel)
    message = encode_message(
        values, positions, sparse_numel, "paper", dense=torch.randn(dense_numel), dense_codec="fp32"
    )
    assert len(message) == 24 + 6 * count + 4 * dense_numel
    assert round(len(message) / 2**20, 3) == mib
    assert round(4 * (sparse_numel + dense_numel) / len(message)) == pytest.approx(ratio, abs=1)


def test_int4_ratios_of_resnet50_with_padding_and_everything_included() -> None:
    sparse_numel, dense_numel = split(resnet50())
    count = -(-sparse_numel // 1000)
    assert 4 * sparse_numel / capacity_bytes(count, sparse_numel, "int4") >= 1900
    everything = capacity_bytes(count, sparse_numel, "int4", dense_numel=dense_numel, dense_codec="int4")
    assert 4 * (sparse_numel + dense_numel) / everything >= 1200
