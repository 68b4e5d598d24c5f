"""One step of the exchange: local gradients in, the update that all ranks share out, in place.

Nothing here knows DDP; an integration hands over flat gradients by parameter name, all of one step together, and gets
them back as the update (mean over ranks, momentum applied). There are two ways through a step:

*sparse*  The gradient goes through weight decay and momentum into the residual; the largest k entries of each tensor
          leave it for the wire (paper, sections 3.1 to 3.3). Before anything is accumulated, the ranks agree in a
          few bytes that all gradients are finite, so that a bad step leaves no trace on any rank.
*dense*   (reduce_dense.py) The gradient is averaged first, as DDP does it, and the momentum is applied to the mean.
          At density 1 this is torch.optim.SGD; masking has no place in it.

Gradients are local means over the rank's own batch, as DDP delivers them: what the paper writes as a sum of g_k with
1/N inside is the mean here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp import kernels
from dgcomp.config import DGCConfig
from dgcomp.exchange import Exchanged, NodeGroups, Regions, all_reduce_sparse
from dgcomp.memory import GradientMemory, Slot
from dgcomp.select import next_threshold, select_fixed
from dgcomp.telemetry import Stopwatch
from dgcomp.wire import capacity_bytes

# A masked entry loses the momentum it has gathered. At one send in T steps the mean weight of a gradient falls to
# 1 - m(1 - m^T) / (T(1 - m)) of its dense value: 0.99 at T = 1000, but 0.6 at T = 20 and 0.1 at T = 1. Above this
# density entries are fresh enough to need no masking, and masking would only lower the learning rate unseen.
MASKING_MAX_DENSITY = 0.05

PROBE = 1024  # entries that are looked at before a whole gradient is searched for one that is not zero

CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that density 1 clips to the same digits


@dataclass(frozen=True)
class Step:
    """What is known of a step before its gradients arrive."""

    number: int
    density: float
    exchange: str
    loss_scale: float = 1.0
    is_additional: bool = False
    """A second synchronized backward of the same optimizer step: adds to the momentum without decaying it again."""
    learning_rates: tuple[float, ...] | None = None
    """The optimizer's rate for each sparse slot, where late updates are to keep the rate that they were made with."""
    regions: Regions | None = None
    """Which owner sums what; kept between the steps of an "owner" exchange."""
    nodes: NodeGroups | None = None
    """Groups of a two-level exchange, whose gradients come averaged over the ranks of each node."""
    shards: dist.ProcessGroup | None = None
    """The ranks that hold the other shards of the parameters: a step is finite, and a norm is known, on all of them."""
    may_skip_parameters: bool = False
    """Parameters may be unused on all ranks; those keep their momentum untouched, as their optimizer would."""

    def can_deliver(self, index: int) -> bool:
        """Whether what sparse slot `index` sends would be applied: at a learning rate of 0 it would be lost."""
        return self.learning_rates is None or self.learning_rates[index] > 0.0

    @property
    def is_dense(self) -> bool:
        """Whether whole gradients travel."""
        return self.density >= 1.0 or self.exchange.startswith("dense")


@dataclass
class Report:
    """What a step did."""

    is_finite: bool = True
    sent_entries: int = 0
    sparse_bytes_sent: int = 0
    leftover_bytes_sent: int = 0
    network_bytes_sent: int = 0
    network_bytes_received: int = 0
    messages: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    delivered: dict[str, Tensor] = field(default_factory=dict)
    """After a sparse step, by name of each sparse parameter: the only positions where its update is not zero."""


def entries_to_send(slot: Slot, density: float) -> int:
    """k of one tensor: its share of the density, at least one entry of a tensor that has any."""
    return min(slot.numel, max(1, round(density * slot.numel)))


def reduce_sparse(
    memory: GradientMemory,
    gradients: Mapping[str, Tensor],
    step: Step,
    config: DGCConfig,
    group: dist.ProcessGroup | None,
    *,
    is_finite: bool | None = None,
) -> Report:
    """Replace `gradients` (flat, by name) by the shared update, exchanging `step.density` of them; collective.

    A non-finite gradient on any rank leaves memory and gradients as they are and is reported. `is_finite` is what
    the caller knows of this rank's gradients; None has them looked at here, which is one more pass over memory.
    """
    watch = Stopwatch()
    num_senders = step.nodes.num_nodes if step.nodes else dist.get_world_size(group)
    if is_finite is None:
        is_finite = all(kernels.is_finite(gradients[slot.name]) for slot in memory.slots)
    all_finite, used = _agree(memory, gradients, step, group, is_finite)
    report = Report(is_finite=all_finite, messages=1, milliseconds=watch.milliseconds)
    watch.lap("agree")
    if not all_finite:
        return report

    # In slot order: the order of the buckets changes when DDP rebuilds them, and with it the rounding of the norm.
    ordered = [gradients[slot.name] for slot in memory.slots]
    scale = _local_clip_factor(ordered, step, config.clip_norm, num_senders) / step.loss_scale
    _enter_sparse(memory, gradients, step)
    positions, masked = _accumulate_and_select(memory, gradients, step, config, scale, used)
    values = memory.residual[positions]
    leftovers = _collect_leftovers(memory, gradients, scale, used)
    watch.lap("compress")

    count = sum(entries_to_send(slot, step.density) for slot in memory.sparse)
    result = all_reduce_sparse(
        values,
        positions,
        max(1, memory.sparse_numel),
        group=group,
        codec=config.codec,
        algorithm="two_level" if step.nodes else step.exchange,
        dense=leftovers,
        dense_codec=config.leftover_codec,
        count=count,
        tag=memory.layout_tag,
        regions=step.regions,
        nodes=step.nodes,
    )
    watch.lap("exchange")

    kernels.mask(positions, None, memory.residual)
    if config.momentum_masking and memory.momentum is not None:
        memory.momentum[masked] = 0.0
    memory.residual[result.returned_positions] += result.returned_values
    memory.replicated = False
    report.delivered = _deliver_entries(memory, gradients, result, step.loss_scale / num_senders)
    _deliver_leftovers(memory, gradients, result, step, num_senders, used)
    watch.lap("apply")

    report.sent_entries = positions.numel()
    report.sparse_bytes_sent = capacity_bytes(count, max(1, memory.sparse_numel), config.codec)
    report.leftover_bytes_sent = result.message_bytes - report.sparse_bytes_sent
    report.network_bytes_sent = result.bytes_sent
    report.network_bytes_received = result.bytes_received
    report.messages += result.messages
    return report


def _agree(
    memory: GradientMemory,
    gradients: Mapping[str, Tensor],
    step: Step,
    group: dist.ProcessGroup | None,
    is_finite: bool,
) -> tuple[bool, list[bool]]:
    """Whether all gradients of all ranks are finite, and which parameters any rank used, in slot order."""
    slots = memory.slots
    flags = [not is_finite]
    if step.may_skip_parameters:
        flags += [is_used(gradients[slot.name]) for slot in slots]
    device = memory.residual.device
    agreed = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
    if step.shards is not None:
        dist.all_reduce(agreed[:1], op=dist.ReduceOp.MAX, group=step.shards)
    answer = [bool(flag) for flag in agreed.tolist()]
    return not answer[0], answer[1:] or [True] * len(slots)


def is_used(gradient: Tensor) -> bool:
    """Whether a flat gradient has any entry but zeros; those of a layer that was used show it at once."""
    return bool(gradient[:PROBE].any()) or bool(gradient[PROBE:].any())


def gradient_norm(gradients: Sequence[Tensor], step: Step, device: torch.device) -> Tensor:
    """Norm of all tensors together, those of the other shards included: fp32, 0-dimensional; collective over shards."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients if g.numel()]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=device)
    if step.shards is not None:
        norm.square_()
        dist.all_reduce(norm, group=step.shards)
        norm.sqrt_()
    return norm


def _local_clip_factor(gradients: Sequence[Tensor], step: Step, clip_norm: float | None, num_senders: int) -> float:
    """Factor that clips the local gradient, all tensors together, before it is accumulated (paper, section 3.2).

    The paper's threshold for the local share g_k / N of the gradient is N^(-1/2) of the global one: independent
    noise makes the sum of N shares sqrt(N) times as long as each. For g_k itself, which is N shares long, that is
    sqrt(N) * clip_norm.
    """
    if clip_norm is None:
        return 1.0
    norm = float(gradient_norm(gradients, step, gradients[0].device)) / step.loss_scale
    return min(1.0, clip_norm * math.sqrt(num_senders) / (norm + CLIP_EPSILON))


def _enter_sparse(memory: GradientMemory, gradients: Mapping[str, Tensor], step: Step) -> None:
    """Bring v into the units of this step: of its learning rate, and of updates rather than gradients.

    The rounding error that a dense stage left in v goes back to the gradient that it was cut from.
    """
    if memory.residual_in_gradient:
        for slot in memory.sparse:
            gradients[slot.name].add_(memory.residual_of(slot), alpha=step.loss_scale)
        memory.residual.zero_()
        memory.residual_in_gradient = False
    if step.learning_rates is not None:
        memory.follow(step.learning_rates)


def _accumulate_and_select(
    memory: GradientMemory,
    gradients: Mapping[str, Tensor],
    step: Step,
    config: DGCConfig,
    scale: float,
    used: list[bool],
) -> tuple[Tensor, Tensor]:
    """Update u and v, zero the gradients, and choose k entries of every tensor.

    Returns the chosen positions in the flat space, ascending, and those of them whose momentum is to be masked.
    """
    chosen, masked = [], []
    for index, slot in enumerate(memory.sparse):
        if not used[index]:
            continue
        k = entries_to_send(slot, step.density)
        seed = _seed(config.seed, step.number, index)
        threshold = memory.thresholds[index]
        momentum, residual = memory.momentum_of(slot), memory.residual_of(slot)
        before = None if step.can_deliver(index) else residual.clone()
        update = kernels.accumulate_additional if step.is_additional else kernels.accumulate_select
        candidates = update(
            gradients[slot.name],
            momentum,
            residual,
            parameter=decayed_parameter(slot, gradients[slot.name], step),
            gradient_scale=scale,
            momentum_factor=slot.settings.momentum,
            nesterov=slot.settings.nesterov,
            weight_decay=0.0 if step.is_additional else slot.settings.weight_decay,
            threshold=threshold,
        )
        if before is not None:  # an update at rate 0 moves nothing: the momentum has it, v does not
            residual.copy_(before)
            continue
        selection = select_fixed(residual, candidates, k, generator_seed=seed)
        smallest = float(residual[selection].abs().min()) if selection.numel() else 0.0
        memory.thresholds[index] = next_threshold(threshold, candidates.numel(), k, smallest)
        chosen.append(selection + slot.offset)
        if k <= MASKING_MAX_DENSITY * slot.numel:
            masked.append(chosen[-1])
    return _concatenate(chosen, memory), _concatenate(masked, memory)


def decayed_parameter(slot: Slot, gradient: Tensor, step: Step) -> Tensor | None:
    """The flat parameter, in a dtype that kernels take with this gradient, or None where nothing decays."""
    if not slot.settings.weight_decay or step.is_additional:
        return None
    flat = slot.flat_parameter
    return flat if flat.dtype in (torch.float32, gradient.dtype) else flat.to(gradient.dtype)


def _seed(*parts: int) -> int:
    """Counter-based seed: a resumed run draws what the uninterrupted one would have drawn."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (1 << 62)
    return seed


def _concatenate(parts: list[Tensor], memory: GradientMemory) -> Tensor:
    empty = torch.zeros(0, dtype=torch.int64, device=memory.residual.device)
    return torch.cat(parts) if parts else empty


def _collect_leftovers(
    memory: GradientMemory, gradients: Mapping[str, Tensor], scale: float, used: list[bool]
) -> Tensor:
    """All leftover gradients with the rounding error of the last step added, as one flat tensor."""
    if not memory.leftover:
        return memory.leftover_residual
    flat = torch.cat([gradients[slot.name].float() for slot in memory.leftover]).mul_(scale)
    flat += memory.leftover_residual
    for slot in _unused(memory, used):
        slot.view(flat).zero_()
    return flat


def _unused(memory: GradientMemory, used: list[bool]) -> list[Slot]:
    return [slot for slot, is_used in zip(memory.leftover, used[len(memory.sparse) :], strict=True) if not is_used]


def _deliver_entries(
    memory: GradientMemory, gradients: Mapping[str, Tensor], result: Exchanged, scale: float
) -> dict[str, Tensor]:
    """Add the sums of the exchange into the (zeroed) gradients; returns where, by name."""
    delivered = {}
    starts = torch.tensor([slot.offset for slot in memory.sparse], device=result.positions.device)
    bounds = [*torch.searchsorted(result.positions, starts).tolist(), result.positions.numel()]
    for slot, low, high in zip(memory.sparse, bounds, bounds[1:], strict=False):
        positions = delivered[slot.name] = result.positions[low:high] - slot.offset
        if high > low:
            kernels.scatter_add(gradients[slot.name], positions, result.values[low:high], scale=scale)
    return delivered


def _deliver_leftovers(
    memory: GradientMemory,
    gradients: Mapping[str, Tensor],
    result: Exchanged,
    step: Step,
    num_senders: int,
    used: list[bool],
) -> None:
    """Turn the mean leftover gradients into updates and keep what the wire rounded off."""
    for slot in _unused(memory, used):
        slot.view(result.dense_error).copy_(memory.residual_of(slot))
    memory.leftover_residual.copy_(result.dense_error)
    unused = {slot.name for slot in _unused(memory, used)}
    for slot in memory.leftover:
        gradient = gradients[slot.name]
        if slot.name in unused:
            gradient.zero_()
            continue
        gradient.copy_(slot.view(result.dense))
        apply_momentum(memory, slot, gradient, step, gradient_scale=1.0 / num_senders)


def apply_momentum(memory: GradientMemory, slot: Slot, gradient: Tensor, step: Step, *, gradient_scale: float) -> None:
    """Turn a mean gradient into the update of torch.optim.SGD, in place, in units of the loss scale."""
    settings = slot.settings
    kernels.update_dense(
        gradient,
        memory.momentum_of(slot),
        parameter=decayed_parameter(slot, gradient, step),
        gradient_scale=gradient_scale,
        output_scale=step.loss_scale,
        momentum_factor=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=0.0 if step.is_additional else settings.weight_decay,
        is_additional=step.is_additional,
    )
