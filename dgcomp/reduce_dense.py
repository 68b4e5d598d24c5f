"""A dense step: buckets are summed over the ranks as backward fills them, then the momentum is applied to the mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp import kernels
from dgcomp.config import DGCConfig
from dgcomp.memory import GradientMemory
from dgcomp.reduce import CLIP_EPSILON, Report, Step, apply_momentum, gradient_norm, is_used
from dgcomp.telemetry import Stopwatch


def ring_bytes(num_bytes: int, world_size: int) -> int:
    """Bytes that a rank sends, and receives, in a ring all-reduce of a tensor of `num_bytes`."""
    return 2 * num_bytes * (world_size - 1) // world_size


def pack(gradients: Mapping[str, Tensor]) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Copies in one buffer for each dtype, and views of it by name: what one dense all-reduce sums."""
    packed = []
    for dtype in {gradient.dtype: None for gradient in gradients.values()}:
        members = {name: gradient for name, gradient in gradients.items() if gradient.dtype == dtype}
        buffer = torch.cat(list(members.values()))
        views = buffer.split([gradient.numel() for gradient in members.values()])
        packed.append((dict(zip(members, views, strict=True)), buffer))
    return packed


@dataclass
class DensePart:
    """Gradients of one bucket on their way through a dense all-reduce."""

    gradients: Mapping[str, Tensor]
    buffer: Tensor
    wire: Tensor
    work: Any


def start_dense(
    memory: GradientMemory,
    gradients: Mapping[str, Tensor],
    buffer: Tensor,
    step: Step,
    group: dist.ProcessGroup | None,
) -> DensePart:
    """Begin to sum one bucket over the ranks, as soon as backward has filled it.

    `gradients` are views of `buffer`. With "dense_bf16" a copy in bf16 travels, and what that rounds off is added to
    the next step's gradient; `memory` changes only in finish_dense, when all gradients are known to be finite.
    """
    slots = [slot for slot in memory.slots if slot.name in gradients]
    for slot in slots:
        if slot.local.dim() < 2 or memory.residual_in_gradient:
            gradients[slot.name].add_(memory.residual_of(slot), alpha=step.loss_scale)
    wire = buffer
    if step.exchange == "dense_bf16" and buffer.dtype == torch.float32:
        wire = (buffer / step.loss_scale).to(torch.bfloat16)
    return DensePart(gradients, buffer, wire, dist.all_reduce(wire, group=group, async_op=True))


def finish_dense(
    memory: GradientMemory,
    parts: list[DensePart],
    step: Step,
    config: DGCConfig,
    group: dist.ProcessGroup | None,
) -> Report:
    """Wait for all buckets of a step and turn the mean gradients into updates, in place; collective.

    An infinity or NaN of any rank is in the sum that all ranks have: memory then stays as it is, and is_finite is
    False in the report.
    """
    watch = Stopwatch()
    for part in parts:
        part.work.wait()
    watch.lap("exchange")
    world_size = dist.get_world_size(group)
    sent = sum(part.wire.numel() * part.wire.element_size() for part in parts)
    share = memory.sparse_numel / max(1, memory.sparse_numel + memory.leftover_numel)
    report = Report(
        is_finite=_all_finite(parts, step, memory.residual.device),
        sent_entries=memory.sparse_numel,
        sparse_bytes_sent=round(sent * share),
        leftover_bytes_sent=sent - round(sent * share),
        network_bytes_sent=ring_bytes(sent, world_size),
        network_bytes_received=ring_bytes(sent, world_size),
        messages=len(parts),
        milliseconds=watch.milliseconds,
    )
    if not report.is_finite:
        return report

    undelivered = _leave_sparse(memory, step, group)
    _keep_rounding_errors(memory, parts, step)
    gradients = {name: gradient for part in parts for name, gradient in part.gradients.items()}
    divisor = step.loss_scale * world_size
    scale = _mean_clip_factor([gradients[slot.name] for slot in memory.slots], divisor, config.clip_norm, step, group)
    scale /= divisor
    for slot in memory.slots:
        gradient = gradients[slot.name]
        if step.may_skip_parameters and not is_used(gradient):
            continue
        apply_momentum(memory, slot, gradient, step, gradient_scale=scale)
    if undelivered is not None:
        for slot in memory.sparse:
            gradients[slot.name].add_(slot.view(undelivered), alpha=step.loss_scale)
    watch.lap("apply")
    return report


def _all_finite(parts: list[DensePart], step: Step, device: torch.device) -> bool:
    """Whether the sums are finite; all ranks of the group have the same sums, those of other shards are asked."""
    is_finite = all(kernels.is_finite(part.wire) for part in parts)
    if step.shards is None:
        return is_finite
    agreed = torch.tensor([is_finite], dtype=torch.uint8, device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=step.shards)
    return bool(agreed)


def _leave_sparse(memory: GradientMemory, step: Step, group: dist.ProcessGroup | None) -> Tensor | None:
    """On the first dense step after sparse ones: make u common to all ranks and take out the mean residual."""
    if memory.replicated:
        return None
    memory.average(group)
    if step.learning_rates is not None:
        memory.follow(step.learning_rates)
    if not all(step.can_deliver(index) for index in range(len(memory.sparse))):
        return None  # it is applied in a later step
    memory.replicated = True
    undelivered = memory.residual.clone()
    memory.residual.zero_()
    return undelivered


def _keep_rounding_errors(memory: GradientMemory, parts: list[DensePart], step: Step) -> None:
    """Store what bf16 cut off the local gradients, and put the sums that travelled in their place."""
    is_rounded = any(part.wire is not part.buffer for part in parts)
    memory.leftover_residual.zero_()
    if memory.residual_in_gradient or is_rounded:
        memory.residual.zero_()
    slots = {slot.name: slot for slot in memory.slots}
    for part in parts:
        if part.wire is part.buffer:
            continue
        for name, gradient in part.gradients.items():
            offset = gradient.storage_offset() - part.buffer.storage_offset()
            local = gradient / step.loss_scale
            memory.residual_of(slots[name]).copy_(local - local.to(part.wire.dtype).float())
            gradient.copy_(part.wire[offset : offset + gradient.numel()]).mul_(step.loss_scale)
    memory.residual_in_gradient = is_rounded


def _mean_clip_factor(
    gradients: Sequence[Tensor],
    divisor: float,
    clip_norm: float | None,
    step: Step,
    group: dist.ProcessGroup | None,
) -> float:
    """Factor of torch.nn.utils.clip_grad_norm_ on the mean gradient, which every rank holds."""
    if clip_norm is None:
        return 1.0
    norm = gradient_norm(gradients, step, gradients[0].device) / divisor
    # Processors of different make may sum in different order; the replicas must not.
    dist.all_reduce(norm, op=dist.ReduceOp.MAX, group=group)
    return min(1.0, clip_norm / (float(norm) + CLIP_EPSILON))
