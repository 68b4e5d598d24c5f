"""What the compressor takes over from an optimizer, so that it is done once and in the right place.

For torch.optim.SGD, momentum, Nesterov form and weight decay move into the compressor, where the paper's momentum
correction needs them (section 3.2), and the optimizer is left plain. Any other optimizer stays as it is.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dgcomp.config import DGCConfig
from dgcomp.memory import GradientMemory, ParameterSettings, check_parameters, flat_view, local_part

logger = logging.getLogger("dgcomp")

Named = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters of a model that share the options of its optimizer, and these options, live."""

    parameters: Sequence[Tensor]
    options: dict[str, Any]


def groups_of(optimizer: torch.optim.Optimizer | None) -> list[OptimizerGroup]:
    """The parameter groups of an optimizer that updates the model's own parameters; none without an optimizer."""
    return [] if optimizer is None else [OptimizerGroup(group["params"], group) for group in optimizer.param_groups]


def uses_momentum_correction(optimizer: torch.optim.Optimizer | None, config: DGCConfig) -> bool:
    """Whether the compressor does the momentum of this optimizer; otherwise it is error feedback in front of it."""
    return config.mode != "error_feedback" and type(optimizer) is torch.optim.SGD


def check(named: Named, optimizer: torch.optim.Optimizer, groups: Sequence[OptimizerGroup], config: DGCConfig) -> None:
    """Raise ValueError for parameters or an optimizer that cannot be served; asks no other rank."""
    check_parameters(named)
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise ValueError(f"optimizer {type(optimizer).__name__} cannot be served: it does not step once a gradient")
    own = {parameter for _, parameter in named}
    if not any(parameter in own for group in groups for parameter in group.parameters):
        raise ValueError("optimizer has none of the model's parameters; give the one that trains this model")
    if config.mode == "momentum_correction" and type(optimizer) is not torch.optim.SGD:
        raise ValueError(
            f'mode="momentum_correction" needs torch.optim.SGD, got {type(optimizer).__name__}; '
            'use mode="auto" or "error_feedback"'
        )
    if uses_momentum_correction(optimizer, config):
        _check_sgd(groups, own, config)


def check_modules(model: nn.Module) -> None:
    """Raise ValueError, naming the module, for one whose gradients are sparse tensors."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f"module {name!r} makes sparse gradients; build it with sparse=False")


def settings_of(
    named: Named, optimizer: torch.optim.Optimizer, groups: Sequence[OptimizerGroup], config: DGCConfig
) -> dict[str, ParameterSettings]:
    """Momentum, Nesterov form and weight decay by parameter name; the config's where the optimizer has none."""
    if not uses_momentum_correction(optimizer, config):
        return {name: ParameterSettings() for name, _ in named}
    by_parameter: dict[Tensor, ParameterSettings] = {}
    for group in groups:
        setting = ParameterSettings(
            momentum=float(group.options["momentum"] or config.momentum or 0.0),
            nesterov=bool(group.options["nesterov"] or config.nesterov),
            weight_decay=float(group.options["weight_decay"] or config.weight_decay or 0.0),
        )
        by_parameter |= dict.fromkeys(group.parameters, setting)
    return {name: by_parameter.get(parameter, ParameterSettings()) for name, parameter in named}


def take_over(
    memory: GradientMemory, optimizer: torch.optim.Optimizer, groups: Sequence[OptimizerGroup], config: DGCConfig
) -> list[str]:
    """Continue from the optimizer's momentum, leave SGD plain, and say in sentences what was changed."""
    if not uses_momentum_correction(optimizer, config):
        return [f"{type(optimizer).__name__} keeps its settings; the exchange uses error feedback alone"]
    _take_over_buffers(memory, optimizer)
    return _make_plain(groups, {slot.parameter for slot in memory.slots})


def log_changes(changes: Sequence[str], group: dist.ProcessGroup | None) -> None:
    """Say on one rank what was taken over."""
    if dist.get_rank(group) == 0:
        for change in changes:
            logger.warning("dgcomp: %s", change)


@torch.no_grad()
def apply_at_kept_rates(memory: GradientMemory, update: Mapping[str, Tensor], rates: Mapping[Tensor, float]) -> None:
    """Subtract what flush() took out, each tensor at the learning rate under which it was gathered, else at today's."""
    kept = {slot.name: rate for slot, rate in zip(memory.sparse, memory.learning_rates, strict=True)}
    for slot in memory.slots:
        rate = kept.get(slot.name) or rates.get(slot.parameter, 0.0)
        local_part(slot.parameter).sub_(update[slot.name].to(slot.parameter.dtype), alpha=rate)


@torch.no_grad()
def apply_as_gradient(optimizer: torch.optim.Optimizer, memory: GradientMemory, update: Mapping[str, Tensor]) -> None:
    """Let the optimizer make one step of what flush() took out; the gradients that are there stay as they are."""
    before = {slot.parameter: slot.parameter.grad for slot in memory.slots}
    for slot in memory.slots:
        slot.parameter.grad = torch.zeros_like(slot.parameter)
        local_part(slot.parameter.grad).copy_(update[slot.name])
    optimizer.step()
    for parameter, grad in before.items():
        parameter.grad = grad


def check_still_plain(groups: Sequence[OptimizerGroup], own: Mapping[Tensor, str]) -> None:
    """Raise RuntimeError for an optimizer that got momentum or weight decay back, which would be applied twice."""
    for index, group in enumerate(groups):
        momentum, weight_decay = group.options.get("momentum"), group.options.get("weight_decay")
        if (momentum or weight_decay) and any(parameter in own for parameter in group.parameters):
            raise RuntimeError(
                f"optimizer group {index} has momentum {momentum} and weight decay {weight_decay} again, which the "
                "hook already applies; leave both at 0 after attach (a scheduler such as OneCycleLR needs "
                "cycle_momentum=False)"
            )


def _check_sgd(groups: Sequence[OptimizerGroup], own: set[Tensor], config: DGCConfig) -> None:
    for index, group in enumerate(groups):
        inside = [parameter in own for parameter in group.parameters]
        if any(inside) and not all(p in own or not p.requires_grad for p in group.parameters):
            raise ValueError(
                f"optimizer group {index} mixes parameters of this model with others; put the others in another group"
            )
        if not any(inside):
            continue
        for option in ("dampening", "maximize"):
            if group.options.get(option):
                raise ValueError(
                    f"optimizer group {index} has {option}={group.options[option]}, which the hook cannot keep"
                )
        for option in ("momentum", "weight_decay", "nesterov"):
            wanted, there = getattr(config, option), group.options[option]
            if wanted is not None and there and wanted != there:
                raise ValueError(
                    f"{option} is {wanted} in DGCConfig and {there} in optimizer group {index}; "
                    "set it in one of the two places"
                )


def _take_over_buffers(memory: GradientMemory, optimizer: torch.optim.Optimizer) -> None:
    """Continue from the momentum that the optimizer has gathered: the same on all ranks, hence the mean of all."""
    for slot in memory.slots:
        buffer = optimizer.state.get(slot.parameter, {}).pop("momentum_buffer", None)
        momentum = memory.momentum_of(slot)
        if buffer is not None and momentum is not None:
            # Nesterov's u is m times torch's buffer: u = m*(u + g) against buffer = m*buffer + g.
            factor = slot.settings.momentum if slot.settings.nesterov else 1.0
            momentum.copy_(flat_view(local_part(buffer))).mul_(factor)


def _make_plain(groups: Sequence[OptimizerGroup], own: set[Tensor]) -> list[str]:
    changes = []
    for index, group in enumerate(groups):
        if not any(parameter in own for parameter in group.parameters):
            continue
        options = group.options
        moved = [f"{name} {options[name]:g}" for name in ("momentum", "weight_decay") if options[name]]
        if options["nesterov"]:
            moved.append("its Nesterov form")
        options.update(momentum=0.0, weight_decay=0.0, nesterov=False)
        if moved:
            changes.append(f"took {', '.join(moved)} of SGD group {index} over; the group is plain SGD now")
    return changes
