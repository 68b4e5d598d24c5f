"""Fake quantization: the value of a quantized tensor in floating point, with a choice of gradients.

A gradient estimator says what the backward pass makes of a rounding (whose derivative is zero) and of a clip:

| name | gradient inside | gradient where clipped | source |
| --- | --- | --- | --- |
| ste | 1 | 1 | straight-through |
| pwl | 1 | 0 | piecewise linear, the clip's own derivative |
| mad | 1 | s / abs(x) | magnitude-aware differentiation, OCTAV section 4 |
| lsq | 1 | 0, and the scale learns | Esser et al., ICLR 2020, equation 3 |
| ewgs | 1 + delta sign(g) (x - x_q) / D | 0 | Lee et al., CVPR 2021, equation 5 |

The paper's MPH is a choice per role: "mad" for weights and "pwl" for activations; `quant.autocast` makes it.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dgcomp.quant.octav import code_range, has_triton, memory_order, scale_code

__all__ = ["Estimator", "fake_quantize"]

Estimator = Literal["ste", "pwl", "mad", "lsq", "ewgs"]
_TINY_STEP = 1e-37  # a smaller step counts as zero: its reciprocal overflows


def fake_quantize(
    x: Tensor,
    scale: Tensor | float,
    bits: int = 4,
    signed: bool = True,
    estimator: Estimator = "mad",
    *,
    narrow: bool = True,
    delta: float = 1e-3,
) -> Tensor:
    """Round `x` to the grid of `bits` with clipping scalar `scale`, in x's own dtype.

    Parameters
    ----------
    x : floating-point Tensor. NaN stays NaN, infinities clip to the outermost codes.
    scale : positive, broadcastable to x: what the outermost code stands for, as `octav_scale` returns it. The step is
        scale / (2**(bits-1) - 1), with `narrow=False` scale / 2**(bits-1), unsigned scale / (2**bits - 1).
        A scale of 0 quantizes to zeros. Gets a gradient from "lsq" only.
    estimator : gradient with respect to x, see the module's table. An unsigned grid clips negative x to 0, where pwl,
        mad, lsq and ewgs give no gradient.
    delta : strength of the "ewgs" correction.

    Raises ValueError for bits outside 2..8 or an unknown estimator, TypeError for integer tensors.
    """
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be a floating-point tensor to be quantized, got {x.dtype}; convert it with x.float()")
    if estimator not in get_args(Estimator):
        hint = '; "mph" is "mad" for weights and "pwl" for activations' if str(estimator) == "mph" else ""
        raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}{hint}")
    low, high = code_range(bits, signed, narrow)
    unit = scale_code(bits, signed, narrow)
    scale = torch.as_tensor(scale, dtype=torch.float32, device=x.device)
    value = quantize_values(x.detach(), scale.detach() / unit, low, high)
    result: Tensor = Estimated.apply(x, scale, value, low, high, unit, estimator, delta)
    return result


class Estimated(torch.autograd.Function):
    """A quantized value of x with an estimator's gradient.

    The grid is given as codes: low and high, and the code that the scale stands for. They may be 0-d tensors, for
    grids that depend on the data under torch.compile.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        value: Tensor,
        low: int | Tensor,
        high: int | Tensor,
        unit: int | Tensor,
        estimator: str,
        delta: float,
    ) -> Tensor:
        codes = (low, high, unit)
        ctx.codes = None if isinstance(low, Tensor) else codes
        ctx.estimator, ctx.delta = estimator, delta
        ctx.saves_input = torch.compiler.is_compiling() and x.device.type == "cpu"
        ctx.save_for_backward(x, scale, *(q for q in codes if isinstance(q, Tensor)))
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, *codes = ctx.saved_tensors
        low, high, unit = ctx.codes or codes
        x_gradient = scale_gradient = None
        if ctx.needs_input_grad[0] and ctx.saves_input and ctx.estimator == "pwl":
            lower, upper = torch.ops.dgcomp.clip_edges(gradient, x, scale, torch.as_tensor(low, device=x.device))
            x_gradient = torch.where((x <= upper) & (x >= lower), gradient, 0.0)
        elif ctx.needs_input_grad[0]:
            x_gradient = estimate_gradient(gradient, x, scale, low, high, unit, ctx.estimator, ctx.delta)
        if ctx.needs_input_grad[1] and ctx.estimator == "lsq":
            scale_gradient = _lsq_scale_gradient(gradient, x, scale, low, high, unit)
        return x_gradient, scale_gradient, None, None, None, None, None, None


def quantize_values(x: Tensor, step: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """step * clip(round(x / step), low, high), in x's dtype."""
    if _has_cpu_loop(x) and isinstance(low, int) and isinstance(high, int):
        layout = _channel_layout(x, step)
        if layout is not None:
            return _cpu_quantize(x, step, low, high, layout)
    if _has_gpu_kernel(x) and isinstance(low, int) and isinstance(high, int):
        layout = _channel_layout(x, step)
        if layout is not None:
            from dgcomp.quant import triton_quantize  # an optional package

            return triton_quantize.quantize(dense(x), step.detach().reshape(-1).contiguous(), low, high, layout)
    inverse, step = _reciprocal(step)
    codes = (x.float() * inverse).clamp(low, high).round()  # type: ignore[arg-type]
    return (codes * step).to(x.dtype)


def estimate_gradient(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    low: int | Tensor,
    high: int | Tensor,
    unit: int | Tensor,
    estimator: str,
    delta: float,
) -> Tensor:
    """Gradient with respect to x by an estimator's rule; edges are +-scale, or 0 and scale for an unsigned grid."""
    if estimator == "ste":
        return gradient
    if _has_cpu_loop(x) and isinstance(low, int) and estimator in ("pwl", "mad", "lsq"):
        layout = _channel_layout(x, scale)
        if layout is not None and gradient.dtype == torch.float32:
            return _cpu_gradient(gradient, x, scale, low, estimator == "mad", layout)
    if _has_gpu_kernel(x) and isinstance(low, int) and estimator in ("pwl", "mad", "lsq"):
        layout = _channel_layout(x, scale)
        if layout is not None and gradient.stride() == x.stride() == dense(x).stride():
            from dgcomp.quant import triton_quantize

            edges = scale.detach().reshape(-1).contiguous()
            return triton_quantize.clip_gradient(gradient, x, edges, low, estimator == "mad", layout)
    lower = _lower_edge(scale, low)
    inside = (x <= scale) & (x >= lower)
    if estimator == "mad":
        edge = torch.where(x > scale, scale, lower)
        return (gradient * torch.where(inside, 1.0, edge / torch.where(inside, 1.0, x))).to(gradient.dtype)
    kept = torch.where(inside, gradient, 0.0)
    if estimator == "ewgs":
        step = scale / unit
        rounding = (x - quantize_values(x, step, low, high)) * _reciprocal(step)[0]
        kept = (kept * (1 + delta * gradient.sign() * rounding)).to(gradient.dtype)
    return kept


@torch.library.custom_op("dgcomp::clip_edges", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def _clip_edges(gradient: Tensor, x: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """Lower and upper edge of the clip (2, *scale.shape); the gradient and x are not looked at.

    They are there for the partitioner of torch.compile: what needs the gradient runs in backward and x is saved for
    it. Otherwise the mask of the clip and that of a ReLU before it are made in forward and saved as bools, since they
    are smaller; on CPU inductor stores a bool at eight times the cost of a float, and some of them transposed.
    """
    return torch.stack([_lower_edge(scale, low), scale])


@_clip_edges.register_fake
def _(gradient: Tensor, x: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    return scale.new_empty((2, *scale.shape))


def _lower_edge(scale: Tensor, low: int | Tensor) -> Tensor:
    return torch.where(torch.as_tensor(low, device=scale.device) < 0, -scale, torch.zeros_like(scale))


def _lsq_scale_gradient(
    gradient: Tensor, x: Tensor, scale: Tensor, low: int | Tensor, high: int | Tensor, unit: int | Tensor
) -> Tensor:
    """Gradient of the scale: round(v) - v inside and the outermost code outside, v = x / step, times 1 / sqrt(N Q)."""
    inverse, _ = _reciprocal(scale / unit)
    v = x.float() * inverse
    codes = v.clamp(low, high).round()  # type: ignore[arg-type]
    per_element = gradient.float() * torch.where((v > low) & (v < high), codes - v, codes) / unit
    reduced = per_element.sum_to_size(scale.shape) if scale.ndim else per_element.sum()
    return reduced / math.sqrt(x.numel() / max(scale.numel(), 1) * float(high))


def _reciprocal(step: Tensor) -> tuple[Tensor, Tensor]:
    """1 / step and step, both 0 where the step is too small to divide by."""
    usable = step >= _TINY_STEP
    return torch.where(usable, 1.0 / torch.where(usable, step, 1.0), 0.0), torch.where(usable, step, 0.0)


def _has_gpu_kernel(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and has_triton(x) and x.numel() > 0 and x.dtype != torch.float64


# --- CPU loops: one pass instead of four, the same numbers ------------------------------------------------------------


def _has_cpu_loop(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _channel_layout(x: Tensor, scale: Tensor) -> tuple[int, int, int] | None:
    """(outer, channels, inner) when `scale` has at most one dimension larger than 1; None for anything richer."""
    if scale.numel() == 1:
        return (1, 1, x.numel())
    shape = (1,) * (x.ndim - scale.ndim) + tuple(scale.shape)
    channels = [d for d, size in enumerate(shape) if size > 1]
    if len(channels) != 1 or len(shape) != x.ndim:
        return None
    d = channels[0]
    if x.is_contiguous():
        return math.prod(x.shape[:d]), x.shape[d], math.prod(x.shape[d + 1 :])
    if memory_order(x)[0] == d and dense(x) is x:  # a convolution's weight in channels_last
        return 1, x.shape[d], x.numel() // x.shape[d]
    return None


def _as_channels(x: Tensor, layout: tuple[int, int, int]) -> Any:
    return x.detach().permute(memory_order(x)).view(layout).numpy()


def dense(x: Tensor) -> Tensor:
    """`x`, or a contiguous copy where its memory overlaps or has gaps."""
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def _cpu_quantize(x: Tensor, step: Tensor, low: int, high: int, layout: tuple[int, int, int]) -> Tensor:
    import numpy as np

    from dgcomp.quant import cpu_quantize  # numba takes a second to import

    x = dense(x.detach())
    out = torch.empty_like(x)
    steps = step.detach().reshape(-1).numpy()
    values, results = _as_channels(x, layout), _as_channels(out, layout)
    cpu_quantize.fake_quantize(values, results, steps, np.float32(low), np.float32(high))
    return out


def _cpu_gradient(
    gradient: Tensor, x: Tensor, scale: Tensor, low: int, keep_direction: bool, layout: tuple[int, int, int]
) -> Tensor:
    from dgcomp.quant import cpu_quantize

    x = dense(x.detach())
    if gradient.stride() != x.stride():
        gradient = torch.empty_like(x).copy_(gradient)
    out = torch.empty_like(x)
    high_edges = scale.detach().reshape(-1).numpy()
    low_edges = -high_edges if low < 0 else high_edges * 0
    gradients, values, results = (_as_channels(t, layout) for t in (gradient, x, out))
    cpu_quantize.clip_gradient(gradients, values, results, low_edges, high_edges, keep_direction)
    return out
