"""What a context really quantized: every operation with its error, and every product that escaped."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgcomp.quant.autocast import autocast, current_recipe, inside_gate, observed
from dgcomp.quant.operators import Layout, quantize_activation, quantize_weight
from dgcomp.quant.recipe import Recipe, name_weights

__all__ = ["Audit", "AuditRow", "EscapedMatmulError", "audit"]

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution"}


class EscapedMatmulError(RuntimeError):
    """A product ran on operands that were not quantized."""


@dataclass(frozen=True)
class AuditRow:
    """One quantized operation. Bits are None for an operand left in floating point, its figures then NaN."""

    layer: str
    operator: str
    weight_bits: int | None
    activation_bits: int | None
    weight_sqnr_db: float
    activation_sqnr_db: float
    weight_clipped: float
    activation_clipped: float


@dataclass
class Audit:
    """Result of `audit`: `quantized` rows in order of execution, `escaped` as (layer, operator, output shape)."""

    quantized: list[AuditRow] = field(default_factory=list)
    escaped: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    def table(self) -> str:
        """A table for people: signal-to-noise ratios in dB, clipped fractions in percent."""
        lines = [
            f"{'layer':<28} {'operator':<18} {'W':>2} {'A':>2} {'W dB':>6} {'A dB':>6} {'W clip':>7} {'A clip':>7}"
        ]
        for r in self.quantized:
            lines.append(
                f"{r.layer:<28} {r.operator:<18} {r.weight_bits or '-':>2} {r.activation_bits or '-':>2} "
                f"{r.weight_sqnr_db:6.1f} {r.activation_sqnr_db:6.1f} "
                f"{100 * r.weight_clipped:6.2f}% {100 * r.activation_clipped:6.2f}%"
            )
        lines += [f"{layer:<28} {name:<18} escaped: {list(shape)}" for layer, name, shape in self.escaped]
        return "\n".join(lines)


def audit(model: nn.Module, *inputs: Any, context: autocast | None = None, strict: bool = False) -> Audit:
    """Run `model(*inputs)` once, without gradients, and report every product in it.

    `context` is the context to judge; by default the one that is active, or else `autocast(model=model)`.
    A product that no gate saw (an activation-activation matmul without `matmul=True`, a function taken from
    torch.nn.functional before the first context) is listed as escaped; with `strict` it raises EscapedMatmulError.
    Eager mode only: a compiled model is audited before it is compiled. Batch-norm statistics are left alone.
    """
    result = Audit()
    name_weights(model)
    training = [module for module in model.modules() if module.training]
    with ExitStack() as stack:
        if context is not None or current_recipe() is None:
            stack.enter_context(context or autocast(model=model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(observed(_recorder(result)))
        where = stack.enter_context(_module_names(model))
        stack.enter_context(_EscapeMode(result, where, strict))
        try:
            model.eval()
            model(*inputs)
        finally:
            for module in training:
                module.training = True
    return result


def _recorder(result: Audit) -> Callable[[str, Recipe, Tensor, Tensor | None, Layout], None]:
    def record(name: str, recipe: Recipe, x: Tensor, weight: Tensor | None, layout: Layout) -> None:
        with _unseen():
            activation = _judge(x, *quantize_activation(x, recipe, layout.input_reduction), recipe.activations)
            parameter = (math.nan, math.nan)
            if weight is not None:
                parameter = _judge(weight, *quantize_weight(weight, recipe, layout), recipe.weights)
        layer = getattr(weight, "_dgcomp_layer", "")
        bits = None if weight is None else recipe.weights
        result.quantized.append(
            AuditRow(layer, name, bits, recipe.activations, parameter[0], activation[0], parameter[1], activation[1])
        )

    return record


def _judge(x: Tensor, value: Tensor, step: Tensor | None, bits: int | None) -> tuple[float, float]:
    """Signal-to-quantization-noise ratio in dB, and the fraction that lies beyond the outermost code."""
    if bits is None or x.numel() == 0:
        return math.nan, math.nan
    x, value = x.detach().double(), value.detach().double()
    noise = float((x - value).square().sum())
    ratio = 10 * math.log10(float(x.square().sum()) / noise) if noise > 0 else math.inf
    if step is None:
        return ratio, 0.0  # the scale of a vector is its maximum
    return ratio, float(((x - value).abs() > 0.5001 * step.double()).double().mean())


@contextmanager
def _unseen() -> Iterator[None]:
    """Run without the audit's own mode."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@contextmanager
def _module_names(model: nn.Module) -> Iterator[list[str]]:
    """The stack of names of the modules that are running."""
    stack: list[str] = [""]
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: (stack.pop(), None)[1], always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _EscapeMode(TorchDispatchMode):
    """Notes products that run outside of every gate."""

    def __init__(self, result: Audit, where: list[str], strict: bool) -> None:
        super().__init__()
        self.result, self.where, self.strict = result, where, strict

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (name in _PRODUCTS or "scaled_dot_product" in name) and not inside_gate():
            first = output[0] if isinstance(output, tuple) else output
            self.result.escaped.append((self.where[-1], name, tuple(first.shape)))
            if self.strict:
                raise EscapedMatmulError(
                    f"{name} in layer {self.where[-1]!r} ran on operands that are not quantized; "
                    "matmul=True covers products of activations, a rule with None makes an exception official"
                )
        return output
