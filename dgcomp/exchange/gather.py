"""Packed all-gather: one padded message from every rank to every rank, merged in rank order.

Least latency and exact, and its bytes grow with the number of ranks: the choice below the crossover with `owner`.
"""

import torch
import torch.distributed as dist

from dgcomp import wire
from dgcomp.exchange.collectives import gather_bytes
from dgcomp.exchange.merge import merge
from dgcomp.exchange.result import Exchanged, Plan, Selection, decode_all, padded, sum_dense


def all_gather(selection: Selection, plan: Plan) -> Exchanged:
    """Exchange by one all-gather; `plan.group` holds the ranks."""
    message = pack(selection, plan)
    rows, calls = gather_bytes(message, plan.group)
    return unpack(selection, plan, rows, dist.get_rank(plan.group), calls)


def pack(selection: Selection, plan: Plan) -> torch.Tensor:
    """This rank's message, padded to the capacity that all ranks agree on."""
    capacity = plan.capacity_bytes()
    if selection.failure is not None:
        return padded(wire.failure_message(selection.failure, capacity), capacity)
    message = wire.encode_message(
        torch.from_numpy(selection.values),
        torch.from_numpy(selection.positions),
        plan.numel,
        plan.fixed_codec(),
        dense=selection.dense,
        dense_codec=plan.dense_codec,
        tag=plan.tag,
    )
    return padded(message, capacity)


def unpack(selection: Selection, plan: Plan, rows: torch.Tensor, own: int, calls: int) -> Exchanged:
    """Read all messages and add them up; `own` is the row of this rank's message."""
    ranks, capacity = rows.shape
    messages = decode_all(rows, plan.group, [plan.numel] * ranks, [plan.dense_numel] * ranks)
    positions, values = merge([m.positions for m in messages], [m.values for m in messages], plan.numel)
    error = torch.from_numpy(selection.values) - messages[own].values
    lost = error.nonzero().squeeze(1)
    return Exchanged(
        positions=positions,
        values=values,
        returned_positions=messages[own].positions[lost],
        returned_values=error[lost],
        dense=sum_dense([m.dense for m in messages]),
        dense_error=selection.dense - messages[own].dense,
        message_bytes=capacity,
        bytes_sent=(ranks - 1) * capacity,
        bytes_received=(ranks - 1) * capacity,
        messages=calls,
    )
