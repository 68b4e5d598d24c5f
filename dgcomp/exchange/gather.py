"""Packed all-gather: one padded message from every rank to every rank, merged in rank order.

Least latency and exact, and its bytes grow with the number of ranks: the choice below the crossover with `owner`.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.collectives import gather_bytes
from dgcomp.exchange.merge import merge
from dgcomp.exchange.result import Exchanged, Plan, Selection, decode_all, global_ranks, sum_dense


def all_gather(selection: Selection, plan: Plan) -> Exchanged:
    """Exchange by one all-gather over `plan.group`."""
    rows, calls = gather_bytes(pack(selection, plan), plan.group)
    names = global_ranks(plan.group)
    return unpack(selection, plan, rows, own=dist.get_rank(plan.group), names=names, calls=calls, links=len(names) - 1)


def pack(selection: Selection, plan: Plan) -> Tensor:
    """This rank's message, padded to the capacity that all ranks agree on."""
    if selection.failure is not None:
        return plan.failure(selection.failure)
    return plan.encode(selection.values, selection.positions, selection.dense)


def unpack(
    selection: Selection, plan: Plan, rows: Tensor, *, own: int, names: list[int], calls: int, links: int
) -> Exchanged:
    """Read all messages and add them up.

    own: the row of this rank's message. names: whose rows they are. links: how often this rank sends (and receives)
    a message.
    """
    ranks, capacity = rows.shape
    messages = decode_all(rows, names, [plan.numel] * ranks, [plan.dense_numel] * ranks)
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
        bytes_sent=links * capacity,
        bytes_received=links * capacity,
        messages=calls,
    )
