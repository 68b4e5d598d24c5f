"""Let plain SGD touch only the entries that a sparse step delivered.

After a sparse exchange nearly all of `.grad` is zero, and `parameter -= lr * gradient` over all of it is a pass of 12
bytes an element that changes next to nothing: a third of all the memory traffic of a compressed step. So while
the optimizer steps, those gradients are taken out of its sight, and afterwards the same sum is done for the delivered
entries alone, bit for bit what SGD would have written.

That is only right while `.grad` is what the exchange left there. Whoever changes a gradient in between (clipping,
unscaling, noise) changes its version counter and gets the optimizer's own pass; writing through `.data`, which counts
nothing, shows in a sample of the entries that ought to be zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgcomp.memory import flat_view

SAMPLED_ENTRIES = 64  # per tensor; additive changes through .data (noise, weight decay) show in the first few


@dataclass(frozen=True)
class _Delivery:
    """What one parameter's gradient was when the backward pass ended."""

    positions: Tensor
    gradient: Tensor
    version: int

    def is_untouched(self, parameter: Tensor) -> bool:
        gradient = parameter.grad
        if gradient is None or gradient.data_ptr() != self.gradient.data_ptr() or gradient._version != self.version:
            return False
        flat = flat_view(gradient)
        stride = max(1, flat.numel() // SAMPLED_ENTRIES)
        nonzero = flat[::stride].nonzero().flatten() * stride
        return bool(torch.isin(nonzero, self.positions).all()) if nonzero.numel() else True


class SparseStep:
    """Watches the steps of a torch.optim.SGD that has neither momentum nor weight decay left."""

    def __init__(self, optimizer: torch.optim.SGD):
        self._optimizer = optimizer
        self._deliveries: dict[Tensor, _Delivery] = {}
        self._hidden: dict[Tensor, Tensor] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]

    def expect(self, positions: Mapping[Tensor, Tensor]) -> None:
        """Announce, from inside a backward pass, where the coming gradients will not be zero (flat, by parameter)."""
        self._deliveries = {}
        engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
        # Twice: DDP queues its own end of the pass, which hands out the gradients, after the hook of the last bucket.
        engine.queue_callback(lambda: engine.queue_callback(lambda: self._note(positions)))

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _note(self, positions: Mapping[Tensor, Tensor]) -> None:
        for parameter, where in positions.items():
            gradient = parameter.grad
            if gradient is not None and gradient.stride() == parameter.stride():
                self._deliveries[parameter] = _Delivery(where, gradient, gradient._version)

    def _before_update(self, _optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            return  # a closure makes new gradients inside the step
        for group in self._optimizer.param_groups:
            is_plain = not (group["momentum"] or group["weight_decay"] or group["maximize"])
            for parameter in group["params"] if is_plain else ():
                delivery = self._deliveries.get(parameter)
                if delivery is not None and delivery.is_untouched(parameter):
                    self._hidden[parameter] = delivery.gradient
                    parameter.grad = None

    @torch.no_grad()
    def _after_update(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                gradient = self._hidden.get(parameter)
                if gradient is None:
                    continue
                positions = self._deliveries[parameter].positions
                flat = flat_view(parameter.detach())
                flat[positions] = flat[positions].add_(flat_view(gradient)[positions], alpha=-float(group["lr"]))
                parameter.grad = gradient
        self._hidden = {}
