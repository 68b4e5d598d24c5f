"""Tell several backward passes of one optimizer step from several steps, and leave out an update that must not be made.

DDP sums gradients of a second backward onto what the first one left in `.grad`. Behind this hook that is an update,
which has been through the momentum; fed into the next exchange as if it were a gradient, it would go through the
momentum again. So before a forward pass the updates that are already there are set aside, and they are added back
when the next ones arrive.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgcomp.memory import GradientMemory, flat_view, local_part


class Passes:
    """Watches a model's forward passes and its optimizer's steps; without them it takes every pass for a step.

    Attributes
    ----------
    earlier : dict from parameter name to Tensor
        Updates of earlier passes of this optimizer step, set aside.
    skip_update : bool
        Set it to leave all parameters alone in the optimizer's next step.
    """

    def __init__(
        self,
        model: nn.Module | None,
        names: Mapping[Tensor, str],
        optimizer: torch.optim.Optimizer | None,
        *,
        is_bucket_view: bool = False,
    ):
        self.earlier: dict[str, Tensor] = {}
        self.skip_update = False
        self._names = names
        self._is_bucket_view = is_bucket_view
        self._has_delivered = False
        self._is_same_update = False
        self._handles = []
        if model is not None and optimizer is not None:
            self._handles = [
                model.register_forward_pre_hook(self._before_forward),
                optimizer.register_step_pre_hook(self._before_update),
                optimizer.register_step_post_hook(self._after_update),
            ]

    @property
    def is_additional(self) -> bool:
        """Whether the backward pass under way adds to an update that the optimizer has not applied yet."""
        return bool(self.earlier) and self._is_same_update

    def note_delivery(self) -> None:
        """Call when `.grad` is about to hold an update."""
        self._has_delivered = self._is_same_update = True

    def forget_delivery(self) -> None:
        """Call when `.grad` holds nothing that a further pass would add to: it was applied, or will be dropped."""
        self._has_delivered = self._is_same_update = False

    def add_earlier(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the updates that were set aside to those that have just arrived (flat, by name)."""
        for name, update in self.earlier.items():
            gradients[name].add_(flat_view(local_part(update)))
        self.earlier = {}

    def keep_earlier(self, memory: GradientMemory, loss_scale: float) -> None:
        """Put the updates that were set aside back into the residual: whoever scales the loss will drop this step."""
        for slot in memory.slots:
            if slot.name in self.earlier:
                kept = flat_view(local_part(self.earlier[slot.name]))
                memory.residual_of(slot).add_(kept, alpha=1.0 / loss_scale)
        self.earlier = {}
        self.forget_delivery()

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, model: nn.Module, _inputs: Any) -> None:
        if not (self._has_delivered and model.training and torch.is_grad_enabled()):
            return
        found = {parameter: parameter.grad for parameter in self._names if parameter.grad is not None}
        # Zeros are what zero_grad(set_to_none=False) leaves: nothing to set aside.
        if any(bool(local_part(grad).any()) for grad in found.values()):
            for parameter, grad in found.items():
                # A view of DDP's bucket will be overwritten by the coming backward.
                self.earlier[self._names[parameter]] = grad.clone() if self._is_bucket_view else grad
                parameter.grad = None
        self._has_delivered = False

    def _before_update(self, _optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare_gradients()
            return None

        def closure_and_check() -> Any:  # the step runs the backward pass itself
            result = closure()
            self._prepare_gradients()
            return result

        return args[:1], {**kwargs, "closure": closure_and_check}

    def _prepare_gradients(self) -> None:
        """Bring .grad into the state that the optimizer is to see."""
        for parameter, name in self._names.items():
            if self.skip_update:
                parameter.grad = None
            elif name in self.earlier and parameter.grad is None:  # a forward without a backward came between
                parameter.grad = self.earlier[name]
        self.earlier = {}

    def _after_update(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self.skip_update = False
        self.forget_delivery()
