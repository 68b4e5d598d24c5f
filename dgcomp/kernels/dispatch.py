"""The kernels that a user calls: contracts, checks, and the choice of engine by the tensor's device.

Engines: `torch` is the reference and runs on every device, `numba` runs on the CPU, `triton` on GPUs.
All give the same bits, because each fp32 operation is rounded once and in the same order (kernels/rules.py).
"""

import functools
import importlib
import importlib.util
from ctypes import c_float
from types import ModuleType

import torch
from torch import Tensor

from dgcomp.kernels.rules import Rule

ENGINES = ("torch", "numba", "triton")
GRADIENT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accumulate_select(
    gradient: Tensor,
    momentum: Tensor | None,
    residual: Tensor,
    *,
    threshold: float,
    parameter: Tensor | None = None,
    gradient_scale: float = 1.0,
    momentum_factor: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    engine: str | None = None,
) -> Tensor:
    """Add a gradient to momentum and residual, zero it, and find the entries that are large enough to send.

    With `g = gradient * gradient_scale + weight_decay * parameter` this does in one pass over memory
    `u = m*u + g, v += u` (Nesterov: `u = m*(u + g), v += u + g`; without momentum: `v += g`)
    and collects where `|v| >= threshold`. Source: Lin et al., ICLR 2018, eq. (7); rounding order in kernels/rules.py.

    Parameters
    ----------
    gradient : Tensor of float32, bfloat16 or float16, shape (N,), contiguous
        Overwritten with zeros: it becomes the buffer that the averaged gradient is added into.
    momentum : Tensor of float32, shape (N,), or None
        u, updated in place; None for error feedback alone.
    residual : Tensor of float32, shape (N,)
        v, updated in place.
    threshold : float, 0 <= threshold <= inf
        Compared after rounding to float32. NaN and infinity count as above every threshold.
    parameter : Tensor of the gradient's dtype or float32, shape (N,)
        Read only if `weight_decay` is not 0.
    engine : "torch", "numba" or "triton"
        Default: numba on the CPU, triton on a GPU that has it, torch elsewhere.

    Returns
    -------
    Tensor of int64
        The positions where `|v| >= threshold`, ascending.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes, layouts or devices do not match, or the threshold is negative or NaN.
    """
    rule = Rule.FEEDBACK if momentum is None else Rule.NESTEROV if nesterov else Rule.MOMENTUM
    return _update(
        rule, gradient, momentum, residual, parameter, gradient_scale, momentum_factor, weight_decay, threshold, engine
    )


def accumulate_additional(
    gradient: Tensor,
    momentum: Tensor | None,
    residual: Tensor,
    *,
    threshold: float,
    parameter: Tensor | None = None,
    gradient_scale: float = 1.0,
    momentum_factor: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    engine: str | None = None,
) -> Tensor:
    """Add a further gradient of the same optimizer step, for which u has already decayed once.

    `u += g, v += g` (Nesterov: `u += m*g, v += m*g + g`; without momentum: `v += g`), so that two synchronized
    backwards leave u and v as one backward of the summed gradient does, up to rounding and to what was sent in between.
    Weight decay belongs to the first call only. Arguments, result and errors are those of `accumulate_select`.
    """
    additional = Rule.ADDITIONAL_NESTEROV if nesterov else Rule.ADDITIONAL_MOMENTUM
    rule = Rule.FEEDBACK if momentum is None else additional
    return _update(
        rule, gradient, momentum, residual, parameter, gradient_scale, momentum_factor, weight_decay, threshold, engine
    )


def find_at_least(residual: Tensor, threshold: float, *, engine: str | None = None) -> Tensor:
    """Positions (int64, ascending) of a flat float32 tensor where `|residual| >= threshold`; nothing is changed."""
    _check_state("residual", residual, residual)
    found: Tensor = _engine(engine, residual).find_at_least(residual, _checked_threshold(threshold))
    return found


def keep_largest(residual: Tensor, positions: Tensor, k: int, *, engine: str | None = None) -> Tensor:
    """Of the candidates at `positions`, those that are not zero and not smaller than the k-th largest magnitude.

    The result is int64 and ascending if `positions` is. It is longer than k only when several candidates share the
    k-th magnitude, and shorter only when fewer than k candidates are not zero.
    """
    _check_state("residual", residual, residual)
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    if k == 0 or positions.numel() == 0:
        return positions[:0]
    kept: Tensor = _engine(engine, residual).keep_largest(residual, positions, int(k))
    return kept


def is_finite(tensor: Tensor, *, engine: str | None = None) -> bool:
    """Whether a contiguous float32, bfloat16 or float16 tensor has no NaN and no infinity; one pass that only reads."""
    _check_gradient(tensor)
    return bool(_engine(engine, tensor).is_finite(tensor))


def mask(positions: Tensor, momentum: Tensor | None, residual: Tensor, *, engine: str | None = None) -> None:
    """Zero u and v where entries are sent (momentum factor masking; Lin et al., ICLR 2018, sec. 3.3).

    What quantization loses of an entry is added back to `residual` afterwards, with `scatter_add`.
    """
    _check_state("residual", residual, residual)
    if momentum is not None:
        _check_state("momentum", momentum, residual)
    _engine(engine, residual).mask(positions, momentum, residual)


def scatter_add(
    output: Tensor, positions: Tensor, values: Tensor, scale: float = 1.0, *, engine: str | None = None
) -> None:
    """Add one message to a flat tensor: `output[positions] += values * scale`, rounded to output's dtype at the end.

    Called once per message in rank order, this gives every rank the same bits.

    Parameters
    ----------
    output : Tensor of float32, bfloat16 or float16, shape (N,), contiguous
        Changed in place.
    positions : Tensor of int64, shape (K,)
        Unique within the call, 0 <= position < N; numba raises IndexError before it writes anything outside.
    values : Tensor of float32, shape (K,)
    """
    _check_gradient(output)
    if values.shape != positions.shape or values.dtype != torch.float32:
        raise ValueError(
            f"values must be float32 and as many as positions {tuple(positions.shape)}, "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    _engine(engine, output).scatter_add(output, positions, values, float(scale))


def _update(
    rule: Rule,
    gradient: Tensor,
    momentum: Tensor | None,
    residual: Tensor,
    parameter: Tensor | None,
    gradient_scale: float,
    momentum_factor: float,
    weight_decay: float,
    threshold: float,
    engine: str | None,
) -> Tensor:
    _check_gradient(gradient)
    _check_state("residual", residual, gradient)
    if momentum is not None:
        _check_state("momentum", momentum, gradient)
    if weight_decay == 0.0:
        parameter = None
    else:
        parameter = _checked_parameter(parameter, gradient)
    positions: Tensor = _engine(engine, gradient).accumulate_select(
        rule,
        gradient,
        momentum,
        residual,
        parameter,
        float(gradient_scale),
        float(momentum_factor),
        float(weight_decay),
        _checked_threshold(threshold),
    )
    return positions


def _engine(name: str | None, tensor: Tensor) -> ModuleType:
    if name is None:
        name = "numba" if tensor.is_cpu else _device_engine(tensor.device.type)
    elif name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    elif name == "numba" and not tensor.is_cpu:
        raise ValueError(f"engine 'numba' needs tensors on the CPU, got one on {tensor.device}; leave engine unset")
    return _load(name)


@functools.cache
def _device_engine(device_type: str) -> str:
    return "triton" if device_type == "cuda" and importlib.util.find_spec("triton") else "torch"


@functools.cache
def _load(name: str) -> ModuleType:
    """Import an engine on first use: numba and triton are slow to import, and triton is optional."""
    try:
        return importlib.import_module(f"dgcomp.kernels.{name}_engine")
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"engine {name!r} needs the package {name}: pip install {name}", name=name) from error


def _checked_threshold(threshold: float) -> float:
    if not threshold >= 0.0:
        raise ValueError(f"threshold must be >= 0 (infinity selects nothing), got {threshold}")
    return c_float(threshold).value


def _check_gradient(gradient: Tensor) -> None:
    if gradient.dtype not in GRADIENT_DTYPES:
        raise TypeError(f"gradient must be float32, bfloat16 or float16, got {gradient.dtype}")
    if gradient.dim() != 1 or not gradient.is_contiguous():
        raise ValueError(
            f"gradient must be flat and contiguous, got shape {tuple(gradient.shape)}, strides {gradient.stride()}; "
            "pass a flat view in memory order"
        )


def _check_like(name: str, tensor: Tensor, gradient: Tensor) -> None:
    if tensor.shape != gradient.shape or not tensor.is_contiguous() or tensor.device != gradient.device:
        raise ValueError(
            f"{name} must be flat and contiguous, with shape {tuple(gradient.shape)} on {gradient.device}, "
            f"got shape {tuple(tensor.shape)}, strides {tensor.stride()} on {tensor.device}"
        )


def _check_state(name: str, state: Tensor, gradient: Tensor) -> None:
    if state.dtype != torch.float32:
        raise TypeError(f"{name} must be float32 whatever the gradient's dtype, got {state.dtype}")
    if state.dim() != 1:
        raise ValueError(f"{name} must be flat, got shape {tuple(state.shape)}; pass a flat view in memory order")
    _check_like(name, state, gradient)


def _checked_parameter(parameter: Tensor | None, gradient: Tensor) -> Tensor:
    if parameter is None:
        raise ValueError("parameter must be given when weight_decay is not 0, got None")
    if parameter.dtype not in (torch.float32, gradient.dtype):
        raise TypeError(f"parameter must be float32 or the gradient's {gradient.dtype}, got {parameter.dtype}")
    _check_like("parameter", parameter, gradient)
    return parameter.detach()
