"""What an exchange of sparse vectors hands back, and the steps that all algorithms share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dgcomp import wire
from dgcomp.wire.message import sorted_entries


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The sum over the ranks, and what this rank must keep because it was not sent.

    Conservation, up to rounding: the sum over ranks of the inputs is the result plus the sum over ranks of what was
    returned; the same holds for the dense part. All tensors are on the device of the input values.
    """

    positions: Tensor
    """int64, sorted: the union of what was sent (of what the owners selected). Equal on all ranks."""
    values: Tensor
    """fp32: sums over the ranks, added in rank order. Bitwise equal on all ranks."""
    returned_positions: Tensor
    """int64, each once, sorted: where this rank must add `returned_values` back to its residual."""
    returned_values: Tensor
    """fp32: quantization error of this rank's message, and sums that this rank as an owner did not select."""
    dense: Tensor
    """fp32, shape (dense_numel,): sum of the dense parts in rank order. Bitwise equal on all ranks."""
    dense_error: Tensor
    """fp32, shape (dense_numel,): what this rank must add to its next dense part."""
    message_bytes: int
    """Bytes of this rank's own contribution, padding included: the "upload" of the paper's ratios."""
    bytes_sent: int
    """Payload bytes that this rank puts on the network; a gathered message passes through N - 1 links."""
    bytes_received: int
    messages: int
    """Collective calls issued."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A rank's input as checked flat arrays; `failure` says why there is none, and goes to all ranks."""

    values: NDArray[np.float32]
    positions: NDArray[np.int64]
    dense: Tensor
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every rank knows alike before the exchange."""

    numel: int
    count: int
    codec: str
    dense_numel: int
    dense_codec: str
    tag: int
    group: dist.ProcessGroup | None
    room_for_a_reason: int = 128
    """Bytes that even the smallest message has, so that it can say why a rank failed."""

    def capacity_bytes(self) -> int:
        """Length of one rank's padded message."""
        needed = wire.capacity_bytes(
            self.count, self.numel, self.codec, dense_numel=self.dense_numel, dense_codec=self.dense_codec
        )
        return max(needed, self.room_for_a_reason)

    def encode(self, values: NDArray[np.float32], positions: NDArray[np.int64], dense: Tensor) -> Tensor:
        """A message of these entries, padded to the capacity."""
        message = wire.encode_message(
            torch.from_numpy(values),
            torch.from_numpy(positions),
            self.numel,
            wire.fixed_codec(self.codec, self.count, self.numel),
            dense=dense,
            dense_codec=self.dense_codec,
            tag=self.tag,
        )
        return padded(message, self.capacity_bytes())

    def failure(self, reason: str) -> Tensor:
        """A message of the same length that makes every receiver raise."""
        return padded(wire.failure_message(reason, self.capacity_bytes()), self.capacity_bytes())


def select(values: Tensor, positions: Tensor, dense: Tensor, plan: Plan) -> Selection:
    """Check a rank's input. A fault of one rank must reach all of them as a message, so none is raised here."""
    try:
        entries, where = sorted_entries(values, positions, plan.numel)
        if where.size > plan.count:
            raise ValueError(f"values must be at most count = {plan.count}, got {where.size}")
        if not torch.isfinite(dense).all():
            raise ValueError("dense must be finite")
        return Selection(entries, where, dense)
    except ValueError as error:
        return Selection(np.empty(0, np.float32), np.empty(0, np.int64), torch.zeros(plan.dense_numel), str(error))


def padded(message: Tensor, capacity: int) -> Tensor:
    """The message with zeros behind it, `capacity` bytes long."""
    out = torch.zeros(capacity, dtype=torch.uint8)
    out[: len(message)] = message
    return out


def decode_all(
    rows: Iterable[Tensor], names: Sequence[int], numels: Sequence[int], dense_numels: Sequence[int]
) -> list[wire.Message]:
    """Read one message per rank; raises WireError that names the first rank whose message cannot be read.

    The first rank's tag is the measure for the others, so that all ranks blame the same one.
    """
    messages: list[wire.Message] = []
    for name, row, numel, dense_numel in zip(names, rows, numels, dense_numels, strict=True):
        try:
            tag = messages[0].tag if messages else None
            messages.append(wire.decode_message(row, tag=tag, numel=numel, dense_numel=dense_numel))
        except wire.WireError as error:
            raise wire.WireError(f"rank {name}: {error}") from None
    return messages


def global_ranks(group: dist.ProcessGroup | None) -> list[int]:
    """Names of a group's ranks for messages: their global ranks."""
    if group is None:
        return list(range(dist.get_world_size()))
    return dist.get_process_group_ranks(group)


def sum_dense(parts: Sequence[Tensor]) -> Tensor:
    """Sum in the order given."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
