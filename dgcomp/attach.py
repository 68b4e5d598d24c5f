"""attach: two lines that turn a DDP training script into a compressed one."""

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from dgcomp import takeover
from dgcomp.config import DGCConfig
from dgcomp.errors import complaint_of, raise_together
from dgcomp.hook import dgc_hook
from dgcomp.state import DGCState, trainable_parameters


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
    complaint = complaint_of(lambda: _check(model, optimizer, config))
    raise_together(complaint, group=model.process_group, device=device)

    named, groups = trainable_parameters(model), takeover.groups_of(optimizer)
    settings = takeover.settings_of(named, optimizer, groups, config)
    state = DGCState(model, config, settings=settings, optimizer=optimizer, grad_scaler=grad_scaler)
    try:
        model.register_comm_hook(state, dgc_hook)
    except RuntimeError:  # a built-in hook, which DDP does not list
        state.close()
        raise
    state.changes += takeover.take_over(state.memory, optimizer, groups, config)
    takeover.log_changes(state.changes, state.group)
    return state


def _check(model: DistributedDataParallel, optimizer: torch.optim.Optimizer, config: DGCConfig) -> None:
    """Everything that can be wrong and is known without asking another rank."""
    if getattr(model, "_comm_hooks", None):
        raise ValueError("model already has a communication hook; DDP takes one only: make a new DDP model")
    takeover.check(trainable_parameters(model), optimizer, takeover.groups_of(optimizer), config)
    takeover.check_modules(model.module)
