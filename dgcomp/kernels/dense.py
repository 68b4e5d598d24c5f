"""The momentum step of dense stages: a mean gradient becomes torch.optim.SGD's update in one pass over memory."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dgcomp.kernels.threads import run, split


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
    gradient : Tensor of float32, bfloat16 or float16, shape (N,), contiguous
        Overwritten with the update times `output_scale`.
    momentum : Tensor of float32, shape (N,), or None
        u, updated in place.
    parameter : Tensor, shape (N,), read only if `weight_decay` is not 0.
    """
    # Written so that one loop serves all cases: the update is kept * u_old + share * g, and u moves by the same.
    #   first pass:       u = m*u + g  or  m*u + m*g      update = u (+ g)
    #   additional pass:  u = u + g    or  u + m*g        update = what was added to u (+ g)
    kept = 1.0 if is_additional else momentum_factor
    share = momentum_factor if nesterov else 1.0
    decay = weight_decay if parameter is not None else 0.0
    tensors = (gradient, momentum, parameter if decay else None)
    numbers = (gradient_scale, decay, kept, share, output_scale)
    is_compiled = gradient.device.type == "cpu" and all(t is None or t.dtype == torch.float32 for t in tensors)
    if is_compiled:
        arguments: list[Any] = [None if t is None else t.detach().view(-1).numpy() for t in tensors]
        arguments += [*map(np.float32, numbers), nesterov, is_additional]

        def work(first: int, last: int) -> None:
            _loop(*[*arguments, first, last])

        run(work, split(gradient.numel()))
    else:
        _in_torch(*tensors, *numbers, nesterov, is_additional)


@torch.no_grad()
def _in_torch(
    gradient: Tensor,
    momentum: Tensor | None,
    parameter: Tensor | None,
    scale: float,
    decay: float,
    kept: float,
    share: float,
    output_scale: float,
    nesterov: bool,
    is_additional: bool,
) -> None:
    g = gradient.float() * scale
    if parameter is not None:
        g += parameter.float() * decay
    if momentum is None:
        update = g
    else:
        part = g * share
        momentum.mul_(kept).add_(part)
        update = part if is_additional else momentum
        update = update + g if nesterov else update
    gradient.copy_(update * output_scale)


@njit(cache=True, nogil=True)
def _loop(
    gradient: Any,
    momentum: Any,
    parameter: Any,
    scale: Any,
    decay: Any,
    kept: Any,
    share: Any,
    output_scale: Any,
    nesterov: bool,
    is_additional: bool,
    first: int,
    last: int,
) -> None:
    """The same formulas in one pass; a missing array is None, whose branches are compiled away."""
    own = np.float32(1.0) if nesterov else np.float32(0.0)
    old = np.float32(0.0) if is_additional else np.float32(1.0)
    for i in range(first, last):
        g = gradient[i] * scale
        if parameter is not None:
            g += parameter[i] * decay
        if momentum is None:
            gradient[i] = g * output_scale
        else:
            part = g * share
            before = momentum[i] * kept
            momentum[i] = before + part
            gradient[i] = ((old * before + part) + own * g) * output_scale
