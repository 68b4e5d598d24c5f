"""Chosen gradients to bytes and back: positions and values near their entropy, in one checked message.

Public: encode, decode; encode_message, decode_message, Message with a dense part; capacity_bytes; WireError.
"""

from dgcomp.wire.errors import WireError
from dgcomp.wire.message import (
    Message,
    capacity_bytes,
    decode,
    decode_message,
    encode,
    encode_message,
    failure_message,
    fixed_codec,
    parse_codec,
)

__all__ = [
    "Message",
    "WireError",
    "capacity_bytes",
    "decode",
    "decode_message",
    "encode",
    "encode_message",
    "failure_message",
    "fixed_codec",
    "parse_codec",
]
