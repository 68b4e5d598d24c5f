"""Activations saved for the backward pass as 4-bit codes and one bit per element instead of 32.

The backward of a quantized operator needs the quantized input, which its codes give back to the bit, and the
estimator needs to know which elements were clipped. `packed_save` replaces the tensor that the operator itself saves,
so that its own backward runs on identical numbers. A ReLU needs one bit per element as well, and the input of a batch
norm behind a quantized convolution nothing: the convolution runs again on the codes.
CPU and float32 only; elsewhere, and under torch.compile (whose partitioner decides what is saved), nothing is packed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgcomp.quant.estimators import dense
from dgcomp.quant.octav import memory_order

__all__ = [
    "PackedCodes",
    "can_pack",
    "mark_recomputable",
    "pack_activation",
    "packed_batch_norm",
    "packed_relu",
    "packed_save",
]


@dataclass(frozen=True)
class PackedCodes:
    """4-bit codes of a flat tensor in memory order, two to a byte, and the step that they multiply."""

    codes: Tensor
    step: float
    low: int
    numel: int

    def unpack(self, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
        """The quantized float32 tensor, as a view of the given shape and strides."""
        from dgcomp.quant import cpu_quantize  # numba takes a second to import

        flat = torch.empty(self.numel, dtype=torch.float32)
        cpu_quantize.unpack_codes(self.codes.numpy(), flat.numpy(), np.float32(self.step), np.float32(self.low))
        return flat.as_strided(shape, stride)


def can_pack(x: Tensor) -> bool:
    """Whether this tensor can be saved packed: float32 on the CPU, outside torch.compile."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def pack_activation(
    x: Tensor, scale: Tensor, low: int, high: int, unit: int, estimator: str
) -> tuple[Tensor, PackedCodes]:
    """Fake-quantized x with the gradient of "ste" or "pwl", and its codes; saves one bit per element (pwl) or none."""
    from dgcomp.quant import cpu_quantize

    x = dense(x)
    value = torch.empty_like(x)
    codes = torch.empty((x.numel() + 1) // 2, dtype=torch.uint8)
    inside = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)
    edge, step = np.float32(scale), np.float32(scale / unit)
    lower = -edge if low < 0 else np.float32(0)
    cpu_quantize.quantize_packed(
        _flat(x), _flat(value), codes.numpy(), inside.numpy(), step, np.float32(low), np.float32(high), lower, edge
    )
    result: Tensor = _Masked.apply(x, value, inside if estimator == "pwl" else None)
    return result, PackedCodes(codes, float(step), low, x.numel())


Rebuild = Callable[[torch.Size, tuple[int, ...]], Tensor]


@contextmanager
def packed_save(
    *replacements: tuple[Tensor, Rebuild], output: tuple[torch.Size, Rebuild] | None = None
) -> Iterator[None]:
    """Let operators in the block save, instead of each given tensor, the function that rebuilds it by shape and stride.

    A tensor is recognized by its memory. A function may hold what is alive anyway, such as a parameter and its scale.
    `output` rebuilds what the operator makes and saves itself, recognized by its shape.
    """
    rebuilds = {value.data_ptr(): (value.numel(), rebuild) for value, rebuild in replacements}

    def pack(saved: Tensor) -> Any:
        numel, rebuild = rebuilds.get(saved.data_ptr(), (-1, None))
        if saved.numel() == numel and saved.dtype == torch.float32:
            return rebuild, saved.shape, saved.stride()
        if output is not None and saved.shape == output[0] and saved.dtype == torch.float32:
            return output[1], saved.shape, saved.stride()
        return saved

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, tuple):
            return packed  # type: ignore[no-any-return]
        rebuild, shape, stride = packed
        return rebuild(shape, stride)  # type: ignore[no-any-return]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def mark_recomputable(output: Tensor, recompute: Rebuild) -> None:
    """Let `packed_batch_norm` save how `output` was made in place of its values."""
    output._dgcomp_recompute = (output._version, recompute)  # type: ignore[attr-defined]


def packed_batch_norm(operator: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """operator(x, ...), computing x again in the backward pass where a quantized operator made it."""
    version, recompute = getattr(x, "_dgcomp_recompute", (None, None))
    if recompute is None or x._version != version:
        return operator(x, *args, **kwargs)
    with packed_save((x, recompute)):
        return operator(x, *args, **kwargs)


def packed_relu(x: Tensor, inplace: bool = False) -> Tensor:
    """relu(x), saving one bit per element for the backward pass."""
    if inplace and dense(x) is x:
        in_place: Tensor = _InPlaceRelu.apply(x)
        return in_place
    x = dense(x)
    value = x.detach().clamp(min=0)
    result: Tensor = _Masked.apply(x, value, _positive(value))
    return result


def _positive(value: Tensor) -> Tensor:
    from dgcomp.quant import cpu_quantize  # numba takes a second to import

    positive = torch.empty((value.numel() + 7) // 8, dtype=torch.uint8)
    cpu_quantize.pack_positive(_flat(value), positive.numpy())
    return positive


class _Masked(torch.autograd.Function):
    """A value computed from x, whose gradient passes where a bit is set (everywhere without bits)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, bits: Tensor | None) -> Tensor:
        ctx.stride = x.stride()
        ctx.bits = bits
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient if ctx.bits is None else _mask(gradient, ctx.stride, ctx.bits), None, None


class _InPlaceRelu(torch.autograd.Function):
    """relu_(x) with one bit per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_(min=0)
        ctx.stride, ctx.bits = x.stride(), _positive(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _mask(gradient, ctx.stride, ctx.bits)


def _mask(gradient: Tensor, stride: tuple[int, ...], bits: Tensor) -> Tensor:
    """The gradient where a bit is set, in the memory order of the strides that the bits were made with."""
    from dgcomp.quant import cpu_quantize

    out = torch.empty_strided(gradient.shape, stride)
    aligned = gradient if gradient.stride() == stride else torch.empty_like(out).copy_(gradient)
    cpu_quantize.mask_gradient(_flat(aligned), _flat(out), bits.numpy())
    return out


def _flat(x: Tensor) -> Any:
    return x.detach().permute(memory_order(x)).view(-1).numpy()
