"""DGCState: the compressor behind DDP's communication hook, which takes its gradients bucket by bucket."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgcomp.compressor import Compressor
from dgcomp.config import DGCConfig
from dgcomp.memory import ParameterSettings, flat_view
from dgcomp.passes import Passes
from dgcomp.sparse_step import SparseStep


class DGCState(Compressor):
    """State of the compressor for one DDP model; `dgcomp.attach` makes one and registers the hook.

    By hand: `state = DGCState(ddp_model, config)`, then `ddp_model.register_comm_hook(state, dgcomp.dgc_hook)`, with
    an optimizer that has neither momentum nor weight decay of its own.

    Parameters
    ----------
    model : DistributedDataParallel
    config : DGCConfig, optional
    settings : mapping from parameter name to ParameterSettings, optional
        Momentum, Nesterov form and weight decay by parameter; by default the config's for all.
    optimizer : torch.optim.Optimizer, optional
        Lets the state skip an update whose gradients were not finite, tell several backward passes of one step from
        several steps, and apply what flush() delivers.
    grad_scaler : torch.amp.GradScaler, optional
        The scaler that multiplies the loss; u and v stay in true units while its scale moves.

    Raises
    ------
    ValueError
        On every rank alike, if a parameter cannot be served or config or parameters differ between the ranks.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        config: DGCConfig | None = None,
        *,
        settings: Mapping[str, ParameterSettings] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        grad_scaler: Any = None,
    ):
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(f"model must be a DistributedDataParallel, got {type(model).__name__}; wrap it first")
        super().__init__(
            trainable_parameters(model),
            config,
            group=model.process_group,
            settings=settings,
            optimizer=optimizer,
            grad_scaler=grad_scaler,
        )
        self._may_skip = bool(model.find_unused_parameters or getattr(model, "static_graph", False))
        self._futures: list[torch.futures.Future[Tensor]] = []
        self._passes = Passes(model, self._names, optimizer, is_bucket_view=bool(model.gradient_as_bucket_view))
        # After Passes: what that leaves out or puts back decides what this finds. CPU: on a GPU the optimizer's pass is
        # cheap, and looking at samples would wait for the device.
        if type(optimizer) is torch.optim.SGD and self._applies_updates and self._device.type == "cpu":
            self._sparse_step = SparseStep(optimizer)

    def add_bucket(self, bucket: dist.GradBucket, future: torch.futures.Future[Tensor]) -> None:
        """Take one bucket of the current backward pass; the last one completes the step and all futures."""
        if self._step is None:
            self._begin_step()
        self._futures.append(future)
        gradients = {
            self._names[parameter]: flat_view(gradient)
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        }
        self._take(gradients, bucket.buffer())
        if bucket.is_last():
            futures, buffers = self._futures, self._buffers
            self._finish_step()
            for waiting, buffer in zip(futures, buffers, strict=True):
                waiting.set_result(buffer)
            self._futures = []


def trainable_parameters(model: DistributedDataParallel) -> list[tuple[str, nn.Parameter]]:
    """Names (without DDP's prefix) and parameters that DDP puts into its buckets; tied ones appear once."""
    ignored = set(getattr(model, "parameters_to_ignore", ()))
    named: Iterable[tuple[str, nn.Parameter]] = model.module.named_parameters()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad and name not in ignored]
