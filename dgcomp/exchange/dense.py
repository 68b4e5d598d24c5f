"""Dense exchange: one fp32 all-reduce of the whole vector, the choice when compressing does not pay."""

import torch
import torch.distributed as dist

from dgcomp import wire
from dgcomp.exchange.collectives import device_of
from dgcomp.exchange.result import Exchanged, Plan, Selection


def dense(selection: Selection, plan: Plan) -> Exchanged:
    """Sum by one all-reduce; the codecs do not apply. Positions of the result are those whose sum is not zero.

    The sum is the backend's: equal on all ranks, but not in rank order.
    """
    flat = torch.zeros(plan.numel + plan.dense_numel)
    flat[torch.from_numpy(selection.positions)] = torch.from_numpy(selection.values)
    flat[plan.numel :] = selection.dense
    if selection.failure is not None:
        flat.fill_(torch.nan)  # the one thing that reaches every rank
    flat = flat.to(device_of(plan.group))
    dist.all_reduce(flat, group=plan.group)
    flat = flat.cpu()
    if not torch.isfinite(flat).all():
        reason = selection.failure or "a rank's input was bad or the sum overflowed"
        raise wire.WireError(f"the dense sum is not finite: {reason}")
    positions = flat[: plan.numel].nonzero().squeeze(1)
    ranks = dist.get_world_size(plan.group)
    ring_bytes = 2 * (ranks - 1) * 4 * flat.numel() // ranks
    return Exchanged(
        positions=positions,
        values=flat[positions],
        returned_positions=torch.empty(0, dtype=torch.int64),
        returned_values=torch.empty(0),
        dense=flat[plan.numel :].clone(),
        dense_error=torch.zeros(plan.dense_numel),
        message_bytes=4 * flat.numel(),
        bytes_sent=ring_bytes,
        bytes_received=ring_bytes,
        messages=1,
    )
