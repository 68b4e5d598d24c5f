"""attach: two lines that turn a DDP training script into a compressed one."""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgcomp.config import DGCConfig
from dgcomp.errors import raise_together
from dgcomp.hook import dgc_hook
from dgcomp.memory import ParameterSettings, check_parameters, flat_view
from dgcomp.state import DGCState, trainable_parameters

logger = logging.getLogger("dgcomp")


def attach(
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    config: DGCConfig | None = None,
    *,
    grad_scaler: Any = None,
) -> DGCState:
    """Compress the gradient exchange of a DDP model from now on; collective: call it on every rank.

    For torch.optim.SGD, momentum, Nesterov form and weight decay of every parameter group move into the hook, where
    the paper's momentum correction needs them, and the optimizer is left plain (momentum buffers that it already has
    are taken over); what was changed is logged on rank 0 and listed in `state.changes`. Any other optimizer stays as
    it is and gets error feedback alone (COMP-AMS).

    Parameters
    ----------
    model : DistributedDataParallel, without another communication hook
    optimizer : torch.optim.Optimizer of this model
    config : DGCConfig, optional
    grad_scaler : torch.amp.GradScaler, optional
        Must be given when a GradScaler multiplies the loss.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        On every rank alike, before anything is changed: another hook is registered, the optimizer cannot be served,
        or config or parameters differ between the ranks.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"model must be a DistributedDataParallel, got {type(model).__name__}; wrap it first")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    config = config or DGCConfig()
    device = next(model.parameters()).device
    complaint = _complaint(lambda: _check(model, optimizer, config))
    raise_together(complaint, group=model.process_group, device=device)

    uses_correction = _uses_momentum_correction(optimizer, config)
    settings = _settings(model, optimizer, config) if uses_correction else None
    plain = {name: ParameterSettings() for name, _ in trainable_parameters(model)}
    state = DGCState(model, config, settings=settings or plain, optimizer=optimizer, grad_scaler=grad_scaler)
    try:
        model.register_comm_hook(state, dgc_hook)
    except RuntimeError:  # a built-in hook, which DDP does not list
        state.close()
        raise
    if uses_correction:
        _take_over_buffers(state, optimizer)
        state.changes += _make_plain(optimizer, set(model.parameters()))
    else:
        state.changes.append(f"{type(optimizer).__name__} keeps its settings; the exchange uses error feedback alone")
    if dist.get_rank(model.process_group) == 0:
        for change in state.changes:
            logger.warning("dgcomp: %s", change)
    return state


def _complaint(check: Callable[[], None]) -> str | None:
    try:
        check()
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _check(model: DistributedDataParallel, optimizer: torch.optim.Optimizer, config: DGCConfig) -> None:
    """Everything that can be wrong and is known without asking another rank."""
    if getattr(model, "_comm_hooks", None):
        raise ValueError("model already has a communication hook; DDP takes one only: make a new DDP model")
    named = trainable_parameters(model)
    check_parameters(named)
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f"module {name!r} makes sparse gradients; build it with sparse=False")
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise ValueError(f"optimizer {type(optimizer).__name__} cannot be served: it does not step once a gradient")
    own = {parameter for _, parameter in named}
    if not any(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("optimizer has none of the model's parameters; give the one that trains this model")
    if config.mode == "momentum_correction" and type(optimizer) is not torch.optim.SGD:
        raise ValueError(
            f'mode="momentum_correction" needs torch.optim.SGD, got {type(optimizer).__name__}; '
            'use mode="auto" or "error_feedback"'
        )
    if _uses_momentum_correction(optimizer, config):
        _check_sgd(optimizer, own, config)


def _uses_momentum_correction(optimizer: torch.optim.Optimizer, config: DGCConfig) -> bool:
    return config.mode != "error_feedback" and type(optimizer) is torch.optim.SGD


def _check_sgd(optimizer: torch.optim.Optimizer, own: set[nn.Parameter], config: DGCConfig) -> None:
    for index, group in enumerate(optimizer.param_groups):
        inside = [parameter in own for parameter in group["params"]]
        if any(inside) and not all(p in own or not p.requires_grad for p in group["params"]):
            raise ValueError(
                f"optimizer group {index} mixes parameters of this model with others; put the others in another group"
            )
        if not any(inside):
            continue
        for option in ("dampening", "maximize"):
            if group.get(option):
                raise ValueError(f"optimizer group {index} has {option}={group[option]}, which the hook cannot keep")
        for option in ("momentum", "weight_decay", "nesterov"):
            wanted, there = getattr(config, option), group[option]
            if wanted is not None and there and wanted != there:
                raise ValueError(
                    f"{option} is {wanted} in DGCConfig and {there} in optimizer group {index}; "
                    "set it in one of the two places"
                )


def _settings(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, config: DGCConfig
) -> dict[str, ParameterSettings]:
    """Momentum, Nesterov form and weight decay by parameter name; the config's where the optimizer has none."""
    by_parameter: dict[nn.Parameter, ParameterSettings] = {}
    for group in optimizer.param_groups:
        setting = ParameterSettings(
            momentum=float(group["momentum"] or config.momentum or 0.0),
            nesterov=bool(group["nesterov"] or config.nesterov),
            weight_decay=float(group["weight_decay"] or config.weight_decay or 0.0),
        )
        by_parameter |= dict.fromkeys(group["params"], setting)
    return {name: by_parameter.get(p, ParameterSettings()) for name, p in trainable_parameters(model)}


def _take_over_buffers(state: DGCState, optimizer: torch.optim.Optimizer) -> None:
    """Continue from the momentum that the optimizer has gathered: the same on all ranks, hence the mean of all."""
    for slot in state.memory.slots:
        buffer = optimizer.state.get(slot.parameter, {}).pop("momentum_buffer", None)
        momentum = state.memory.momentum_of(slot)
        if buffer is not None and momentum is not None:
            # Nesterov's u is m times torch's buffer: u = m*(u + g) against buffer = m*buffer + g.
            factor = slot.settings.momentum if slot.settings.nesterov else 1.0
            momentum.copy_(flat_view(buffer)).mul_(factor)


def _make_plain(optimizer: torch.optim.Optimizer, own: set[nn.Parameter]) -> list[str]:
    changes = []
    for index, group in enumerate(optimizer.param_groups):
        if not any(parameter in own for parameter in group["params"]):
            continue
        moved = [f"{name} {group[name]:g}" for name in ("momentum", "weight_decay") if group[name]]
        if group["nesterov"]:
            moved.append("its Nesterov form")
        group.update(momentum=0.0, weight_decay=0.0, nesterov=False)
        if moved:
            changes.append(f"took {', '.join(moved)} of SGD group {index} over; the group is plain SGD now")
    return changes
