"""Quantized versions of a functional call: quantize the operands, then run PyTorch's own operator on them.

The operator and its backward stay PyTorch's. In bfloat16 (parameters or torch.autocast) a dequantized value would be
rounded off its grid, up to 0.3 steps at 8 bits; integer codes up to 256 are exact there, so the operator runs on codes
and the two steps multiply its result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgcomp.quant.cache import WeightCache
from dgcomp.quant.estimators import Estimated, quantize_values
from dgcomp.quant.octav import code_range, octav_scale, scale_code
from dgcomp.quant.packed import can_pack, mark_recomputable, pack_activation, packed_save
from dgcomp.quant.recipe import Recipe
from dgcomp.quant.vector import StraightThrough, fake_per_vector

__all__ = ["LINEAR", "Layout", "quantize_activation", "quantize_weight", "quantized_call", "quantized_product"]

Quantized = tuple[Tensor, "Tensor | None"]  # value in the input's dtype or float32, and its step (None for vectors)


@dataclass(frozen=True)
class Layout:
    """Which dimension an operator reduces, and where its output channels are."""

    input_reduction: int
    weight_reduction: int
    weight_channel: int
    output_channel: int


LINEAR = Layout(input_reduction=-1, weight_reduction=1, weight_channel=0, output_channel=-1)


def quantized_call(
    operator: Callable[..., Tensor],
    layout: Layout,
    recipe: Recipe,
    cache: WeightCache | None,
    pack: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """operator(x, weight, bias, *args, **kwargs) with both operands quantized as the recipe says."""
    low_precision = _low_precision(x)
    if pack and low_precision is None and _packs(x, recipe):
        return _packed_call(operator, layout, recipe, x, weight, bias, *args, **kwargs)
    w_value, w_step = quantize_weight(weight, recipe, layout, cache)
    x_value, x_step = quantize_activation(x, recipe, layout.input_reduction)
    if low_precision is None:
        return operator(x_value.to(x.dtype), w_value.to(weight.dtype), bias, *args, **kwargs)
    return _on_codes(operator, layout, low_precision, (x_value, x_step), (w_value, w_step), bias, *args, **kwargs)


def _packs(x: Tensor, recipe: Recipe) -> bool:
    """Whether the input can be saved as 4-bit codes: other estimators need the values themselves."""
    return (
        recipe.activations is not None
        and recipe.activations <= 4
        and recipe.activation_scale_bits is None
        and recipe.activation_estimator in ("ste", "pwl")
        and can_pack(x)
    )


def _packed_call(
    operator: Callable[..., Tensor],
    layout: Layout,
    recipe: Recipe,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The call, saving the input as codes and the quantized weight not at all: it is quantized again in backward."""
    scale, low, high, unit = activation_grid(x, recipe, recipe.activations or 4)
    if layout is LINEAR:
        x = x.contiguous()  # else the operator would copy it, and save the copy
    x_value, codes = pack_activation(x, scale, int(low), int(high), int(unit), recipe.activation_estimator)
    w_value, w_step = quantize_weight(weight, recipe, layout)
    replacements = [(x_value, codes.unpack)]
    if w_step is not None and recipe.weights is not None:
        lowest, highest = code_range(recipe.weights)

        def requantize(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
            value = quantize_values(weight.detach(), w_step, lowest, highest)
            return value.as_strided(shape, stride)

        replacements.append((w_value, requantize))
    with packed_save(*replacements):
        output = operator(x_value, w_value, bias, *args, **kwargs)
    if len(replacements) > 1 and output.requires_grad:
        shapes = [(t.shape, t.stride()) for t in (x_value, w_value)]

        def recompute(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
            with torch.no_grad():
                operands = [rebuild(*form) for (_, rebuild), form in zip(replacements, shapes, strict=True)]
                return operator(*operands, bias, *args, **kwargs).as_strided(shape, stride)

        # not a replacement itself, which would keep the operands that it rebuilds
        replacements = [(x_value.new_empty(0), rebuild) for _, rebuild in replacements]
        mark_recomputable(output, recompute)
    return output


def quantized_product(
    operator: Callable[..., Tensor], recipe: Recipe, pack: bool, operands: list[Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """operator(*operands, *args, **kwargs) with every operand, an activation, quantized as the recipe says."""
    values, replacements = [], []
    for x in operands:
        if pack and _packs(x, recipe):
            scale, low, high, unit = activation_grid(x, recipe, recipe.activations or 4)
            value, codes = pack_activation(x, scale, int(low), int(high), int(unit), recipe.activation_estimator)
            replacements.append((value, codes.unpack))
        else:
            value = quantize_activation(x, recipe)[0].to(x.dtype)
        values.append(value)
    if not replacements:
        return operator(*values, *args, **kwargs)
    forms = [(value.shape, value.stride()) for value in values]

    def recompute(shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            operands = [rebuild(*form) for rebuild, form in zip(rebuilds, forms, strict=True)]
            return operator(*operands, *args, **kwargs).as_strided(shape, stride)

    rebuilds = [rebuild for _, rebuild in replacements]
    # attention also saves its output, which is computed again: the same operator on the same numbers
    dropout = args[1] if len(args) > 1 else kwargs.get("dropout_p", 0.0)
    repeats = len(rebuilds) == len(values) == 3 and dropout == 0.0
    with packed_save(*replacements, output=(values[0].shape, recompute) if repeats else None):
        return operator(*values, *args, **kwargs)


def _low_precision(x: Tensor) -> torch.dtype | None:
    """The half-width dtype that the operator would compute in, if any."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def _on_codes(
    operator: Callable[..., Tensor],
    layout: Layout,
    dtype: torch.dtype,
    x: Quantized,
    w: Quantized,
    bias: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    (x_value, x_step), (w_value, w_step) = x, w
    device = x_value.device.type
    if x_step is None or w_step is None or dtype == torch.float16:  # sums of codes overflow float16
        with torch.autocast(device, enabled=False):
            bias = None if bias is None else bias.float()
            return operator(x_value.float(), w_value.float(), bias, *args, **kwargs).to(dtype)
    with torch.autocast(device, enabled=False):
        product = operator(
            (x_value * _inverse(x_step)).to(dtype), (w_value * _inverse(w_step)).to(dtype), None, *args, **kwargs
        )
        shape = [1] * product.ndim
        shape[layout.output_channel] = -1
        output_step = (x_step * w_step).reshape(shape if w_step.numel() > 1 else ())
        result = product * output_step
        if bias is not None:
            result = result + bias.float().reshape(shape)
        return result.to(dtype)


def _inverse(step: Tensor) -> Tensor:
    return torch.where(step > 0, 1.0 / torch.where(step > 0, step, 1.0), 0.0)


# --- one operand ------------------------------------------------------------------------------------------------------


def quantize_activation(x: Tensor, recipe: Recipe, reduction: int = -1) -> Quantized:
    """Fake-quantized activation in float32 (x itself where the recipe leaves it alone), and its step."""
    bits = recipe.activations
    if bits is None:
        return x, None
    x = x.float()
    if recipe.activation_scale_bits is not None:
        arguments = (bits, recipe.activation_scale_bits, min(recipe.vector, x.shape[reduction]), reduction)
        operator = torch.ops.dgcomp.vector_value if torch.compiler.is_compiling() else _vector_value
        value = operator(x.detach(), *arguments, recipe.rounding, recipe.unsigned)
        return StraightThrough.apply(x, value), None
    _check_learned(recipe.activation_estimator, recipe.activation_scale, "activation")
    scale, low, high, unit = activation_grid(x, recipe, bits)
    step = scale.detach() / unit
    value = quantize_values(x.detach(), step, low, high)
    return Estimated.apply(x, scale, value, low, high, unit, recipe.activation_estimator, 1e-3), step


def activation_grid(x: Tensor, recipe: Recipe, bits: int) -> tuple[Tensor, int | Tensor, int | Tensor, int | Tensor]:
    """Scale, lowest and highest code, and the code that the scale stands for.

    Under torch.compile the sign of the data is only known when the graph runs: the codes are then 0-d tensors.
    """
    if torch.compiler.is_compiling():
        return _traced_grid(x, recipe, bits)
    signed = _is_signed(x) if recipe.unsigned is None else not recipe.unsigned
    if isinstance(recipe.activation_scale, Tensor):
        scale = recipe.activation_scale
    elif recipe.activation_scale is not None:
        scale = torch.tensor(recipe.activation_scale, dtype=torch.float32, device=x.device)
    else:
        scale = _tensor_scale(x, bits, signed, recipe.method, recipe.grid)
    low, high = code_range(bits, signed)
    return scale, low, high, scale_code(bits, signed)


def _traced_grid(x: Tensor, recipe: Recipe, bits: int) -> tuple[Tensor, int | Tensor, int | Tensor, int | Tensor]:
    if recipe.unsigned is None and not isinstance(recipe.activation_scale, Tensor):
        grid = torch.ops.dgcomp.activation_grid(x.detach(), bits, recipe.method, recipe.grid, recipe.activation_scale)
        return grid[0], grid[1], grid[2], grid[2]
    signed = not recipe.unsigned
    low, high = code_range(bits, signed)
    if isinstance(recipe.activation_scale, Tensor):
        return recipe.activation_scale, low, high, high
    if recipe.activation_scale is not None:
        return torch.full((), recipe.activation_scale, device=x.device), low, high, high
    return torch.ops.dgcomp.scale(x.detach(), bits, signed, None, recipe.method, recipe.grid), low, high, high


def quantize_weight(
    weight: Tensor, recipe: Recipe, layout: Layout = LINEAR, cache: WeightCache | None = None
) -> Quantized:
    """Fake-quantized weight in float32 (itself where the recipe leaves it alone), and its step per output channel."""
    bits = recipe.weights
    if bits is None:
        return weight, None
    tracing = torch.compiler.is_compiling()
    found = None if cache is None or tracing else cache.get(weight, recipe)
    w = weight.float()
    if found is None:
        found = (
            _vector_weight(w, recipe, layout, bits) if recipe.weight_scale_bits else _weight(w, recipe, layout, bits)
        )
        if cache is not None and not tracing:
            cache.put(weight, recipe, found)
    scale, value = found
    if recipe.weight_scale_bits is not None:
        return StraightThrough.apply(w, value), None
    low, high = code_range(bits)
    return Estimated.apply(w, scale, value, low, high, high, recipe.weight_estimator, 1e-3), scale.detach() / high


def _check_learned(estimator: str, scale: float | Tensor | None, role: str) -> None:
    if estimator == "lsq" and not isinstance(scale, Tensor):
        raise ValueError(
            f'{role}_estimator="lsq" learns scales, and this layer has none: make the context with quant.learn_scales'
        )


def _weight(w: Tensor, recipe: Recipe, layout: Layout, bits: int) -> tuple[Tensor, Tensor]:
    """Scale per output channel (detached unless it is learned), and the quantized value."""
    _check_learned(recipe.weight_estimator, recipe.weight_scale, "weight")
    w = w.detach()
    low, high = code_range(bits)
    if recipe.weight_scale is not None:
        return recipe.weight_scale, quantize_values(w, recipe.weight_scale.detach() / high, low, high)
    dims = [d for d in range(w.ndim) if d != layout.weight_channel]
    scale_of = torch.ops.dgcomp.scale if torch.compiler.is_compiling() else _channel_scale
    scale = scale_of(w, bits, True, dims, recipe.method, recipe.grid)
    return scale, quantize_values(w, scale / high, low, high)


def _vector_weight(w: Tensor, recipe: Recipe, layout: Layout, bits: int) -> tuple[Tensor, Tensor]:
    """The quantized value of a weight with a scale per vector, in both places."""
    value = fake_per_vector(
        w.detach(),
        bits,
        recipe.weight_scale_bits,
        min(recipe.vector, w.shape[layout.weight_reduction]),
        layout.weight_reduction,
        recipe.rounding,
        channel=layout.weight_channel,
    )
    return value, value


# --- scales, as plain functions and as operators that torch.compile does not look into --------------------------------

# Without this tag inductor copies an input that it keeps in channels_last back to the layout of eager mode.
_ANY_LAYOUT = (torch.Tag.flexible_layout,)


def _is_signed(x: Tensor) -> bool:
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel():
        from dgcomp.quant import cpu_scale  # numba takes a second to import
        from dgcomp.quant.octav import dense_flat

        return bool(cpu_scale.has_negative(dense_flat(x.detach()).contiguous().numpy()))
    return bool((x < 0).any())


def _tensor_scale(x: Tensor, bits: int, signed: bool, method: str, grid: str) -> Tensor:
    return _channel_scale(x, bits, signed, None, method, grid)


def _channel_scale(x: Tensor, bits: int, signed: bool, dims: list[int] | None, method: str, grid: str) -> Tensor:
    """Clipping scalar over `dims` (None: the whole tensor), as `octav_scale` shapes it."""
    x = x.detach()
    if method == "octav":
        return octav_scale(x, bits, signed, dims, grid)  # type: ignore[arg-type]
    if x.numel() == 0:
        return octav_scale(x, bits, signed, dims)
    magnitudes = x.abs() if signed else x.clamp(min=0)
    return magnitudes.amax().float() if dims is None else magnitudes.amax(dims, keepdim=True).float()


@torch.library.custom_op("dgcomp::scale", mutates_args=(), tags=_ANY_LAYOUT)
def _scale_operator(x: Tensor, bits: int, signed: bool, dims: list[int] | None, method: str, grid: str) -> Tensor:
    return _channel_scale(x, bits, signed, dims, method, grid).clone()


@_scale_operator.register_fake
def _(x: Tensor, bits: int, signed: bool, dims: list[int] | None, method: str, grid: str) -> Tensor:
    shape = [] if dims is None else [1 if d in dims else x.shape[d] for d in range(x.ndim)]
    return x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("dgcomp::activation_grid", mutates_args=(), tags=_ANY_LAYOUT)
def _grid_operator(x: Tensor, bits: int, method: str, grid: str, static: float | None) -> Tensor:
    """Scale, lowest and highest code of an activation whose sign is unknown, as one tensor (3,)."""
    signed = _is_signed(x)
    scale = _tensor_scale(x, bits, signed, method, grid) if static is None else torch.tensor(static)
    return torch.stack(
        [scale.to(x.device), *(torch.tensor(float(q), device=x.device) for q in code_range(bits, signed))]
    )


@_grid_operator.register_fake
def _(x: Tensor, bits: int, method: str, grid: str, static: float | None) -> Tensor:
    return x.new_empty(3, dtype=torch.float32)


def _vector_value(
    x: Tensor, bits: int, scale_bits: int, vector: int, dim: int, rounding: str, unsigned: bool | None
) -> Tensor:
    """Dequantized activation with a scale per vector; unsigned codes where nothing is negative, unless told."""
    signed = _is_signed(x) if unsigned is None else not unsigned
    return fake_per_vector(x, bits, scale_bits, vector, dim, rounding, signed=signed)  # type: ignore[arg-type]


@torch.library.custom_op("dgcomp::vector_value", mutates_args=(), tags=_ANY_LAYOUT)
def _vector_operator(
    x: Tensor, bits: int, scale_bits: int, vector: int, dim: int, rounding: str, unsigned: bool | None
) -> Tensor:
    return _vector_value(x, bits, scale_bits, vector, dim, rounding, unsigned).clone()


@_vector_operator.register_fake
def _(x: Tensor, bits: int, scale_bits: int, vector: int, dim: int, rounding: str, unsigned: bool | None) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
