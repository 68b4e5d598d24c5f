"""The momentum step of dense stages: a mean gradient becomes torch.optim.SGD's update in one pass over memory."""

import torch
from torch import Tensor


def update_dense(
    gradient: Tensor,
    momentum: Tensor | None,
    *,
    parameter: Tensor | None = None,
    gradient_scale: float = 1.0,
    output_scale: float = 1.0,
    momentum_factor: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    is_additional: bool = False,
) -> None:
    """Replace a summed gradient by the update that plain SGD is to apply, and advance the momentum.

    With `g = gradient * gradient_scale + weight_decay * parameter`: `u = m*u + g`, update `u`; Nesterov:
    `u = m*(u + g)`, update `u + g`; without momentum the update is `g`. `is_additional` is for a further gradient
    of the same optimizer step: the update is then what `g` adds, and u does not decay again.

    Parameters
    ----------
    gradient : Tensor of float32, bfloat16 or float16, shape (N,)
        Overwritten with the update times `output_scale`.
    momentum : Tensor of float32, shape (N,), or None
        u, updated in place.
    parameter : Tensor, shape (N,), read only if `weight_decay` is not 0.
    """
    with torch.no_grad():
        g = gradient.float() * gradient_scale
        if parameter is not None and weight_decay:
            g.add_(parameter.float(), alpha=weight_decay)
        if momentum is None:
            update = g
        elif is_additional:
            part = g * momentum_factor if nesterov else g
            momentum.add_(part)
            update = part + g if nesterov else g
        elif nesterov:
            momentum.add_(g).mul_(momentum_factor)
            update = momentum + g
        else:
            momentum.mul_(momentum_factor).add_(g)
            update = momentum
        gradient.copy_(update * output_scale if output_scale != 1.0 else update)
