"""Adam's direction in the gradient's place, on each rank by itself, before DDP and its hook see it.

Ours, not the paper's: DGC's residual is made for updates that add up, which SGD's are. Adam's are not: an entry that
is sent once in T steps reaches an Adam behind the exchange as one spike, and Adam divides it by a second moment that
the spike itself has just raised. Here the order is turned round. Every rank keeps the two moments of its own gradient
(Kingma & Ba 2015, algorithm 1), and what is accumulated, exchanged and added up is the direction; the optimizer behind
is plain SGD with Adam's learning rate, and its weight decay, decoupled as AdamW's, goes through the residual as well.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dgcomp import kernels
from dgcomp.memory import flat_like

__all__ = ["LocalAdam"]


class LocalAdam:
    """Moments of every parameter's local gradient; from its creation on, `backward` delivers directions.

    For torch.optim.SGD without momentum behind it, at Adam's learning rate, and a DGCConfig without `clip_norm`: a
    direction has no size to clip. A direction is made of every backward pass: with several in one
    optimizer step the moments run as many times as fast. A loss scale has to be constant. A gradient that is not
    finite goes on as it is, for the hook to skip the step, and leaves this rank's moments alone.

    Parameters
    ----------
    parameters : iterable of (name, parameter)
        As `model.named_parameters()` gives them; those that need no gradient are left alone.
    betas, epsilon : numbers
        As in torch.optim.AdamW.

    Raises
    ------
    ValueError
        If one of the betas is not in [0, 1).
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
    ) -> None:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {betas}; Adam's are (0.9, 0.999)")
        self.betas, self.epsilon = betas, epsilon
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._steps: dict[str, int] = {}
        self._handles = []
        for name, parameter in parameters:
            if parameter.requires_grad:
                self._moments[name] = torch.zeros_like(parameter.detach()), torch.zeros_like(parameter.detach())
                self._steps[name] = 0
                # a tensor hook runs before the gradient is handed to DDP's reducer
                self._handles.append(
                    parameter.register_hook(  # type: ignore[no-untyped-call]
                        lambda gradient, name=name: self.direction(name, gradient)
                    )
                )

    def direction(self, name: str, gradient: Tensor) -> Tensor:
        """Take a parameter's gradient into its moments and return the step that Adam would make at learning rate 1."""
        first, second = self._moments[name]
        if not kernels.is_finite(flat_like(gradient, first)):
            return gradient
        self._steps[name] += 1
        beta1, beta2 = self.betas
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        corrected = (second / (1 - beta2 ** self._steps[name])).sqrt_().add_(self.epsilon)
        return first / (1 - beta1 ** self._steps[name]) / corrected

    def close(self) -> None:
        """Deliver plain gradients again."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor, int]]:
        """Both moments and the number of steps of every parameter of this rank."""
        return {name: (*moments, self._steps[name]) for name, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, tuple[Tensor, Tensor, int]]) -> None:
        """Go on from `state_dict`, this rank's or, on another number of ranks, any one's.

        Raises ValueError, and changes nothing, if the state is of other parameters.
        """
        shapes = {name: first.shape for name, (first, _) in self._moments.items()}
        found = {name: first.shape for name, (first, *_) in state.items()}
        if shapes != found:
            name = next(name for name in {**shapes, **found} if shapes.get(name) != found.get(name))
            raise ValueError(
                f"state is of another model: {name!r} is {found.get(name)} there and {shapes.get(name)} here; "
                "load what LocalAdam.state_dict() returned for this model"
            )
        for name, (first, second, steps) in state.items():
            self._moments[name][0].copy_(first)
            self._moments[name][1].copy_(second)
            self._steps[name] = steps
