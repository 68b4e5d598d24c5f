"""What a layer does, apart from what a chip charges for it: one matrix product, with samples of its operands.

Every matrix product, convolution and attention of a training step is lowered to

    y[rows, columns] = a[rows, inner] @ x[inner, columns],   `copies` times.

A linear layer: a is the weight, x the activations, one column per sample or token. A convolution: x holds one patch
per output position. The gradient of the input: a is the transposed weight, x the gradient of the output. The gradient
of the weight: a is the gradient of the output, x the input. Attention: a and x are both activations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from dgcomp.hwmodel.cost import Cost

__all__ = ["Accelerator", "Kind", "Operation", "Phase", "Precision", "joined", "mean_and_error"]

Kind = Literal["linear", "conv", "matmul", "attention"]
Phase = Literal["forward", "recompute", "input_grad", "weight_grad", "backward"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of weights and activations, and of their per-vector scales (None: one scale a channel or layer).

    In the gradient of an input the activation is the gradient of the output; in that of a weight, the weight is.
    """

    weight_bits: int = 32
    activation_bits: int = 32
    weight_scale_bits: int | None = None
    activation_scale_bits: int | None = None

    def __str__(self) -> str:
        scales = ("-" if bits is None else str(bits) for bits in (self.weight_scale_bits, self.activation_scale_bits))
        return "/".join([str(self.weight_bits), str(self.activation_bits), *scales])


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One matrix product of a step, as captured by `hwmodel.profile` or written by hand."""

    layer: str
    kind: Kind
    phase: Phase
    rows: int
    inner: int
    columns: int
    copies: int = 1
    a: Tensor | None = None
    """[rows, inner]: where `a` (of one copy) is not zero, or None where that was not captured. The gradient of a
    weight has a long inner dimension, of which `a` and `x` hold a sample."""
    x: Tensor | None = None
    """[sampled columns, inner]: where some columns of x, drawn at random, are not zero."""
    a_is_weight: bool = False
    a_density: float = 1.0
    x_density: float = 1.0
    x_density_error: float = 0.0
    """Standard error of `x_density`, which is measured on a sample."""
    precision: Precision = Precision()
    channels: int | None = None
    """Elements of `inner` at one position of a convolution's kernel; None where inner is a single run of channels."""
    filters: Tensor | None = None
    """[rows, channels, 3, 3]: weights of a 3x3 convolution with stride 1, dilation 1 and one group; None otherwise."""
    images: Tensor | None = None
    """[sampled images, channels, height, width]: inputs of such a convolution, padded."""
    winograd: tuple[Tensor, Tensor] | None = None
    """Of a layer whose weights live in the Winograd domain: where weights [16, inner, rows] and activations
    [16, sampled tiles, inner] are not zero. Its 16 products are the `copies`."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense product, all copies."""
        return self.rows * self.inner * self.columns * self.copies


def joined(first: Operation, second: Operation) -> Operation:
    """Two parts of one product as one: columns follow columns, in the gradient of a weight inner follows inner.

    Densities are weighted by the parts' sizes; the patterns are those of the first part.
    """
    total = first.macs + second.macs
    share, other = first.macs / total, second.macs / total
    along_inner = first.phase == "weight_grad"
    return replace(
        first,
        inner=first.inner + along_inner * second.inner,
        columns=first.columns + (not along_inner) * second.columns,
        a_density=share * first.a_density + other * second.a_density,
        x_density=share * first.x_density + other * second.x_density,
        x_density_error=math.hypot(share * first.x_density_error, other * second.x_density_error),
    )


@runtime_checkable
class Accelerator(Protocol):
    """A chip that can price operations. `price` returns None for what the chip's model does not cover."""

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    def price(self, operation: Operation) -> Cost | None:
        """Cost of one operation."""
        ...


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a sample and the standard error of that mean (0 for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
