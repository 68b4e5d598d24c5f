"""Steps without communication, and a compressed outer step now and then: post-local SGD, DiLoCo.

Every rank trains its own copy with an inner optimizer. After `sync_every` steps the ranks exchange how far they have
moved, start minus end, the pseudo-gradient, and an outer optimizer applies the mean of these to the common start. DGC
compresses the pseudo-gradients as it does gradients: for an outer torch.optim.SGD with (Nesterov) momentum, the
recipe of DiLoCo (arXiv 2311.08105: lr 0.7, momentum 0.9), the momentum moves into the compressor. With lr 1 and
without momentum the outer step is plain averaging of parameters, post-local SGD (arXiv 1808.07217).

The model is a plain module: neither DDP nor any other wrapper may synchronize the inner steps.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgcomp.compressor import Compressor
from dgcomp.config import DGCConfig
from dgcomp.memory import flat_like, shaped_like
from dgcomp.takeover import check_modules


class LocalSGD:
    """Counts the inner optimizer's steps and makes the outer ones; collective, on every rank alike.

    Nothing in the training loop changes: the outer step runs inside every `sync_every`-th call of
    `inner_optimizer.step()`. The inner optimizer keeps its own state over an outer step, as in DiLoCo.

    Parameters
    ----------
    model : module with the same parameters on every rank
    inner_optimizer : any torch.optim.Optimizer of the model, stepped by the training loop
    outer_optimizer : torch.optim.Optimizer of the same parameters, which the training loop leaves alone
    sync_every : int
        Inner steps for each outer one, at least 1.
    config : DGCConfig, optional
        Of the outer exchange; its steps are outer steps.
    group : ProcessGroup, optional

    Attributes
    ----------
    compressor : Compressor
        Of the pseudo-gradients: `compressor.stats()`.
    start : dict from parameter name to Tensor
        The parameters of the last outer step, the same on all ranks.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        On every rank alike: `sync_every` below 1, a model in DDP, or as `dgcomp.attach`.
    """

    _compressor_class = Compressor

    def __init__(
        self,
        model: nn.Module,
        inner_optimizer: torch.optim.Optimizer,
        outer_optimizer: torch.optim.Optimizer,
        *,
        sync_every: int,
        config: DGCConfig | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        if sync_every < 1:
            raise ValueError(f"sync_every must be at least 1 inner step, got {sync_every}")
        if isinstance(model, DistributedDataParallel):
            raise TypeError("model must not be in DistributedDataParallel, which would average every inner step")
        check_modules(model)
        self.compressor = self._compressor_class.attached(
            model.named_parameters(), outer_optimizer, config, group=group
        )
        self.inner_optimizer, self.outer_optimizer = inner_optimizer, outer_optimizer
        self.sync_every = sync_every
        self.local_steps = 0
        self._parameters = {slot.name: slot.parameter for slot in self.compressor.memory.slots}
        self.start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._hook = inner_optimizer.register_step_post_hook(self._after_inner_step)

    def state_dict(self) -> dict[str, Any]:
        """Compressor, start, outer optimizer and the count of inner steps; collective: call it on every rank.

        The parameters themselves differ between ranks in the middle of a round; each rank saves its own with it.
        """
        return {
            "compressor": self.compressor.state_dict(),
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "start": {name: tensor.clone() for name, tensor in self.start.items()},
            "local_steps": self.local_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict; collective. Raises ValueError as `DGCState.load_state_dict`."""
        self.compressor.load_state_dict(state["compressor"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        for name, tensor in self.start.items():
            tensor.copy_(state["start"][name])
        self.local_steps = int(state["local_steps"])

    def close(self) -> None:
        """Stop making outer steps."""
        self._hook.remove()

    @torch.no_grad()
    def outer_step(self) -> bool:
        """Exchange the pseudo-gradients and step from the common start, now; collective.

        Returns False if a parameter of any rank was not finite: then all ranks go back to the start, the exchange has
        left no trace, and what the inner optimizer gathered that is not finite is forgotten.
        """
        pseudo_gradients = self._take_pseudo_gradients()
        if not self.compressor.reduce(pseudo_gradients):
            self._heal_inner_optimizer()
            return False
        self._apply(pseudo_gradients)
        return True

    def flush(self) -> None:
        """Apply what the outer steps still hold back to the start, and go there; collective.

        Call it right after an outer step, before evaluating or exporting: what was trained since is dropped.
        """
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.start[name])
        self.compressor.flush()
        for name, parameter in self._parameters.items():
            self.start[name].copy_(parameter.detach())
        self.local_steps = 0

    def _take_pseudo_gradients(self) -> dict[str, Tensor]:
        """How far the parameters have moved, by name; they are at the start again, and a new round begins."""
        moved: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            moved[name] = flat_like(self.start[name] - parameter, parameter)
            parameter.copy_(self.start[name])
        self.local_steps = 0
        return moved

    def _apply(self, shared: Mapping[str, Tensor]) -> None:
        """Step the outer optimizer by the shared update, from the start to the next one."""
        kept = {parameter: parameter.grad for parameter in self._parameters.values()}
        for name, parameter in self._parameters.items():
            parameter.grad = shaped_like(shared[name], parameter)
        self.outer_optimizer.step()
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        for name, parameter in self._parameters.items():
            self.start[name].copy_(parameter)

    def _heal_inner_optimizer(self) -> None:
        for parameter in self._parameters.values():
            gathered = [value for value in self.inner_optimizer.state[parameter].values() if isinstance(value, Tensor)]
            if not all(bool(value.isfinite().all()) for value in gathered):
                self.inner_optimizer.state.pop(parameter)

    def _after_inner_step(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self.local_steps += 1
        if self.local_steps == self.sync_every:
            self.outer_step()
