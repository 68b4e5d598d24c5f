"""Accelerate and the Hugging Face Trainer: one call on the prepared model."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dgcomp.attach import attach as attach_to_ddp
from dgcomp.config import DGCConfig
from dgcomp.integrations.files import load_own, save_own
from dgcomp.state import DGCState

FOLDER = "dgcomp"


def attach(
    accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer, config: DGCConfig | None = None
) -> DGCState:
    """Compress the gradient exchange of what `accelerator.prepare` returned; collective: call it on every rank.

    Call it before `accelerator.load_state`. From then on save_state writes the residuals into the folder `dgcomp` of
    the checkpoint, one file for each rank, and load_state reads them. The GradScaler of mixed_precision="fp16" is
    taken into account. Clip with DGCConfig(clip_norm=...) and not with accelerator.clip_grad_norm_.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
    model, optimizer : as accelerator.prepare returned them
    config : DGCConfig, optional

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `dgcomp.attach`; for a model that Accelerate did not wrap in DDP (one process, FSDP, DeepSpeed) the text
        names the integration that serves it.
    """
    if not isinstance(model, DistributedDataParallel):
        kind = str(getattr(accelerator, "distributed_type", "")).rpartition(".")[2]
        raise TypeError(
            f"model must be a DistributedDataParallel from accelerator.prepare, got {type(model).__name__} "
            f"(distributed type {kind}); start at least two processes, and for FSDP2 or DeepSpeed use "
            "dgcomp.integrations.fsdp or dgcomp.integrations.deepspeed"
        )
    plain = getattr(optimizer, "optimizer", optimizer)  # AcceleratedOptimizer wraps
    state = attach_to_ddp(model, plain, config, grad_scaler=getattr(accelerator, "scaler", None))

    def save(_models: list[nn.Module], _weights: list[Any], folder: str) -> None:
        save_own(state, Path(folder) / FOLDER)

    def load(_models: list[nn.Module], folder: str) -> None:
        load_own(state, Path(folder) / FOLDER)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return state
