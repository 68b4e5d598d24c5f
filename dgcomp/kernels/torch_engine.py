"""The kernels in plain torch: the reference for the other engines, and the fallback on every device.

Each line is one rounding. `add(alpha=...)` and `addcmul` are avoided, since they may fuse a product and a sum.
"""

import torch
from torch import Tensor

from dgcomp.kernels.rules import Rule


@torch.no_grad()
def accumulate_select(
    rule: Rule,
    gradient: Tensor,
    momentum: Tensor | None,
    residual: Tensor,
    parameter: Tensor | None,
    gradient_scale: float,
    momentum_factor: float,
    weight_decay: float,
    threshold: float,
) -> Tensor:
    scaled = gradient.float() * gradient_scale
    if parameter is not None:
        scaled += parameter.float() * weight_decay
    _accumulate(rule, scaled, momentum, residual, momentum_factor)
    gradient.zero_()
    return find_at_least(residual, threshold)


def _accumulate(rule: Rule, g: Tensor, momentum: Tensor | None, residual: Tensor, momentum_factor: float) -> None:
    if momentum is None:
        residual += g
    elif rule == Rule.MOMENTUM:
        momentum.mul_(momentum_factor).add_(g)
        residual += momentum
    elif rule == Rule.NESTEROV:
        momentum.add_(g).mul_(momentum_factor)
        residual.add_(momentum).add_(g)
    elif rule == Rule.ADDITIONAL_MOMENTUM:
        momentum += g
        residual += g
    else:
        decayed = g * momentum_factor
        momentum += decayed
        residual.add_(decayed).add_(g)


def find_at_least(residual: Tensor, threshold: float) -> Tensor:
    # "not below" instead of "at least", so that NaN is found as well
    return (residual.abs() < threshold).logical_not_().nonzero().flatten()


def keep_largest(residual: Tensor, positions: Tensor, k: int) -> Tensor:
    # the bits of a magnitude, read as an integer, sort as the magnitude does, with infinity and NaN at the top
    magnitudes = residual[positions].view(torch.int32) & 0x7FFFFFFF
    kth = magnitudes.topk(min(k, magnitudes.numel()), sorted=False).values.min().clamp_(min=1)
    return positions[magnitudes >= kth]


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@torch.no_grad()
def mask(positions: Tensor, momentum: Tensor | None, residual: Tensor) -> None:
    residual[positions] = 0.0
    if momentum is not None:
        momentum[positions] = 0.0


@torch.no_grad()
def scatter_add(output: Tensor, positions: Tensor, values: Tensor, scale: float) -> None:
    output[positions] = (output[positions].float() + values * scale).to(output.dtype)
