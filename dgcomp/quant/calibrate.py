"""Static activation scales from a few batches, and conversion to a model with packed integer weights."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp.quant.autocast import LAYOUTS, Observer, autocast, disabled, observed
from dgcomp.quant.histogram import BitHistogram
from dgcomp.quant.operators import LINEAR, Layout, quantize_activation, quantize_weight
from dgcomp.quant.recipe import Recipe, name_weights, quantizable_layers
from dgcomp.quant.vector import QuantizedVectors, pack_codes, per_vector, unpack_codes

__all__ = ["Calibrator", "QuantizedLayer", "calibrate", "convert", "evaluating", "run_observed"]

Calibrator = Literal["octav", "max", "percentile", "entropy", "mse"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    context: autocast,
    method: Calibrator = "octav",
    *,
    percentile: float = 99.99,
    group: Any = None,
) -> autocast:
    """A context like `context` whose activation scales are fixed, found from the inputs of every layer in `batches`.

    Every batch (a tensor, or a tuple of arguments) runs through the model in floating point and in evaluation mode;
    one histogram per layer collects its inputs. `method` is OCTAV's scale, the maximum, a percentile of the
    magnitudes, the threshold of least KL divergence (entropy), or the best of 100 by squared error. Activations get
    an unsigned grid where no batch was negative. `group` sums the histograms over a process group's ranks.
    Raises ValueError for an unknown method or when no layer ran.
    """
    if method not in get_args(Calibrator):
        raise ValueError(f"method must be one of {', '.join(get_args(Calibrator))}, got {method!r}")
    histograms: dict[str, BitHistogram] = {}

    def observe(name: str, recipe: Recipe, x: Tensor, weight: Tensor | None, layout: Layout) -> None:
        layer = getattr(weight, "_dgcomp_layer", None)
        if layer is not None:
            histograms.setdefault(layer, BitHistogram()).add(x)

    run_observed(model, batches, observe)
    if not histograms:
        raise ValueError("no layer of the model ran; batches must hold at least one batch")
    layers = {}
    for name, histogram in histograms.items():
        if group is not None:
            histogram.all_reduce(group)
        recipe = context.recipe_of(name)
        if recipe.activations is not None and recipe.activation_scale_bits is None:
            signed = histogram.has_negative if recipe.unsigned is None else not recipe.unsigned
            scale = _scale(histogram, recipe.activations, signed, method, percentile)
            recipe = replace(recipe, activation_scale=scale, unsigned=not signed)
        layers[name] = recipe
    return context.with_layers(layers)


def run_observed(model: nn.Module, batches: Iterable[Any], observe: Observer) -> None:
    """Run every batch in floating point and evaluation mode, showing `observe` the operands of every layer."""
    name_weights(model)
    passive = autocast("-/-", cache=False)
    with evaluating(model), torch.no_grad(), passive, observed(observe):
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and each of its modules back into its own mode at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _scale(histogram: BitHistogram, bits: int, signed: bool, method: str, percentile: float) -> float:
    if method == "octav":
        return histogram.octav_scale(bits, signed)
    if method == "max":
        return histogram.quantile(1.0, signed=signed)
    if method == "percentile":
        return histogram.quantile(percentile / 100, signed=signed)
    if method == "mse":
        return histogram.mse_scale(bits, signed)
    return _entropy_scale(histogram, bits, signed)


def _entropy_scale(histogram: BitHistogram, bits: int, signed: bool, num_bins: int = 1024) -> float:
    """Threshold whose clipped and quantized distribution has the least KL divergence from the clipped one."""
    edges, counts = histogram.linear(num_bins, signed=signed)
    if counts.sum() == 0:
        return 0.0
    num_levels = 2 ** (bits - 1) if signed else 2**bits
    best, least = float(edges[-1]), np.inf
    for kept in range(num_levels, num_bins + 1, max(num_bins // 128, 1)):
        reference = counts[:kept].copy()
        reference[-1] += counts[kept:].sum()
        groups = np.minimum(np.arange(kept) * num_levels // kept, num_levels - 1)
        occupied = counts[:kept] > 0
        sums = np.bincount(groups, counts[:kept], num_levels)
        members = np.bincount(groups, occupied, num_levels)
        spread = np.where(occupied, (sums / np.maximum(members, 1))[groups], 0.0)
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
        both = (p > 0) & (q > 0)
        # Mass of the reference where the quantized one has none is an infinite divergence: bounded by a tiny q.
        divergence = float((p[both] * np.log(p[both] / q[both])).sum() - (p[(p > 0) & (q == 0)] * np.log(1e-9)).sum())
        if divergence < least:
            best, least = float(edges[kept]), divergence
    return best


def convert(model: nn.Module, context: autocast) -> nn.Module:
    """A copy of the model in evaluation mode whose linear and convolution layers hold packed integer weights.

    Every layer behaves as in `context` (static scales where it came from `calibrate`), without any context around it:
    outputs are equal to the bit. Layers that the context leaves in floating point, and attention, stay as they are.
    """
    result = copy.deepcopy(model).eval()
    for name, layer in quantizable_layers(result).items():
        recipe = context.recipe_of(name)
        kind = _functional_name(layer)
        if kind is None or recipe.weights is None:
            continue
        parent = result.get_submodule(name.rpartition(".")[0])
        packed = QuantizedLayer(layer, kind, recipe)
        if parent is layer:  # the model is itself a layer
            return packed
        setattr(parent, name.rpartition(".")[2], packed)
    return result


def _functional_name(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed and layer.padding_mode == "zeros":
        return f"conv{layer.weight.ndim - 2}d"
    return None


class QuantizedLayer(nn.Module):
    """A linear or convolution layer for inference: integer weights packed two to a byte (4 bits and less) or one.

    Buffers: `codes` uint8 and `step` float32 per output channel; with scales per vector `codes`, `scale_codes`, `gamma`
    as in `QuantizedVectors`.
    """

    codes: Tensor
    step: Tensor
    scale_codes: Tensor

    def __init__(self, layer: nn.Module, kind: str, recipe: Recipe) -> None:
        super().__init__()
        self.kind, self.recipe = kind, recipe
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.shape = tuple(weight.shape)
        self.bias = layer.bias
        self.options: dict[str, Any] = {}
        if kind != "linear":
            self.options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        bits = recipe.weights or 8
        if recipe.weight_scale_bits is not None:
            vector = min(recipe.vector, weight.shape[1])
            q = per_vector(weight, bits, recipe.weight_scale_bits, vector, 1, recipe.rounding, channel=0)
            self._vectors: QuantizedVectors | None = q
            self.register_buffer("codes", q.packed)
            self.register_buffer("scale_codes", q.scale_codes)
            self.register_buffer("step", q.gamma)
        else:
            value, step = quantize_weight(weight.detach(), recipe, LINEAR)
            assert step is not None  # only vectors have none
            codes = torch.where(step > 0, value / torch.where(step > 0, step, 1.0), 0.0).round()
            self._vectors = None
            self.register_buffer("codes", pack_codes(codes.flatten(1)[:, None], bits))
            self.register_buffer("step", step)

    def weight_value(self) -> Tensor:
        """The float32 weight that the codes stand for."""
        if self._vectors is not None:
            # The buffers are what load_state_dict and .to() change.
            stored = replace(self._vectors, packed=self.codes, scale_codes=self.scale_codes, gamma=self.step)
            return stored.dequantize()
        row_size = int(np.prod(self.shape[1:]))
        codes = unpack_codes(self.codes, self.recipe.weights or 8, True, row_size)
        return codes.reshape(self.shape).float() * self.step

    def forward(self, x: Tensor) -> Tensor:
        value, _ = quantize_activation(x, self.recipe, LAYOUTS[self.kind].input_reduction)
        operator: Callable[..., Tensor] = getattr(F, self.kind)
        with disabled():
            return operator(value, self.weight_value(), self.bias, **self.options)

    def extra_repr(self) -> str:
        return f"{self.kind}, weights={self.recipe.weights}, activations={self.recipe.activations}, shape={self.shape}"
