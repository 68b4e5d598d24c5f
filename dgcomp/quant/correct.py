"""Correction of what quantization does to the means and variances inside a trained network, without labels.

Rounding and clipping errors are not zero on average: they move the mean of every output channel and stretch its
spread, and the shifts of many layers add up. Comparing a few batches in floating point and in a quantized context
measures both, and a network has parameters that absorb them exactly: the running statistics of its batch norms, and
elsewhere the biases. This is the bias correction of Nagel et al. (ICCV 2019, section 4.2) and Banner et al. (NeurIPS
2019, section 4.2), which also rescales; they correct weights, this corrects what the operators put out, whatever the
cause. Unlike estimating batch norms anew it leaves an unquantized network as it is.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgcomp.quant.autocast import autocast
from dgcomp.quant.calibrate import evaluating
from dgcomp.quant.recipe import name_weights, quantizable_layers

__all__ = ["correct_statistics"]

_MOST = 2.0  # a channel that quantization nearly emptied is not stretched by more, nor a noisy one shrunk


def correct_statistics(model: nn.Module, batches: Iterable[Any], context: autocast) -> nn.Module:
    """A copy of the model, in evaluation mode, whose layers have the means of the original when it runs in `context`.

    Every batch (a tensor, or a tuple of arguments) runs through the model in floating point and through the copy in
    `context`, where each layer sees the corrected output of those before it. The input of a batch norm gets its mean
    and variance per channel back through the running statistics, so that the names of the state dict stay the same;
    the output of a layer that no batch norm follows gets its mean back through its bias, made where it has none.
    Weights stay as they are. Some hundred samples suffice; they need no labels.
    The result is for this context, or for `convert` with it. Raises ValueError when no layer ran.
    """
    result = copy.deepcopy(model).eval()
    name_weights(result)
    totals: dict[str, Tensor] = {}
    with evaluating(model), torch.no_grad():
        for batch in batches:
            arguments = batch if isinstance(batch, tuple) else (batch,)
            wanted = _wanted_moments(model, arguments)
            with context, _watched(result, _aligner(wanted, totals)):
                result(*arguments)
    if not totals:
        raise ValueError("no layer of the model ran; batches must hold at least one batch")
    for name, sums in totals.items():
        _fold(result.get_submodule(name), *_alignment(result.get_submodule(name), sums))
    return result


Observer = Callable[[str, nn.Module, Tensor], Tensor]
"""Called with the name of a module, itself, and its output (a batch norm: its input); the result takes that place."""


@contextlib.contextmanager
def _watched(model: nn.Module, observe: Observer) -> Iterator[None]:
    """Show `observe` the input of every batch norm that keeps statistics and the output of every layer."""

    def watch_norm(name: str, norm: nn.Module) -> Any:
        return norm.register_forward_pre_hook(lambda module, inputs: (observe(name, module, inputs[0]), *inputs[1:]))

    def watch_layer(name: str, layer: nn.Module) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> Any:
            if isinstance(output, tuple):  # attention and its weights
                return observe(name, module, output[0]), *output[1:]
            return observe(name, module, output)

        return layer.register_forward_hook(hook)

    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    handles = [watch_norm(*item) for item in norms.items()]
    handles += [watch_layer(*item) for item in quantizable_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _wanted_moments(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, list[Tensor]]:
    """Moments in floating point by module, one for each time that it is called; layers before a norm are left out."""
    moments: dict[str, list[Tensor]] = {}
    layer_of: dict[int, tuple[str, Tensor]] = {}  # by the identity of the output, which is kept alive here

    def observe(name: str, module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, _BatchNorm):
            layer, _ = layer_of.get(id(x), ("", x))
            moments.pop(layer, None)
        else:
            layer_of[id(x)] = name, x
        moments.setdefault(name, []).append(_moments(module, x))
        return x

    with autocast("-/-", cache=False), _watched(model, observe):  # no fused path that would pass the layers by
        model(*arguments)
    return moments


def _aligner(wanted: dict[str, list[Tensor]], totals: dict[str, Tensor]) -> Observer:
    """Gives every output the wanted moments of this batch, and adds both kinds of moments to the totals (2, 3, C)."""

    def align(name: str, module: nn.Module, x: Tensor) -> Tensor:
        if name not in wanted:
            return x
        pair = torch.stack([wanted[name].pop(0), _moments(module, x)])
        totals[name] = totals.get(name, torch.zeros_like(pair)) + pair
        scale, shift = (t.to(x.dtype).reshape(_channel_shape(module, x)) for t in _alignment(module, pair))
        return x * scale + shift

    return align


def _channel_shape(module: nn.Module, x: Tensor) -> list[int]:
    """Shape that broadcasts one value per channel over x."""
    if isinstance(module, _BatchNorm):
        channel = 1
    elif isinstance(module, nn.modules.conv._ConvNd):
        channel = x.ndim + 1 - module.weight.ndim  # with or without a batch dimension
    else:
        channel = x.ndim - 1
    return [-1 if d == channel else 1 for d in range(x.ndim)]


def _moments(module: nn.Module, x: Tensor) -> Tensor:
    """Count, sum and sum of squares per channel, float64 (3, C): they add up over batches."""
    channels = x.detach().movedim(_channel_shape(module, x).index(-1), 0).flatten(1).float()
    count = channels.shape[1]
    variance, mean = (t.double() for t in torch.var_mean(channels, 1, correction=0))
    return torch.stack([torch.full_like(mean, count), count * mean, count * (variance + mean * mean)])


def _alignment(module: nn.Module, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that turn the found moments into the wanted ones; a scale of 1 but for norms."""
    means = sums[:, 1] / sums[:, 0]
    variances = (sums[:, 2] / sums[:, 0] - means * means).clamp(min=0)
    scale = torch.ones_like(means[0])
    if isinstance(module, _BatchNorm):
        usable = (variances > 0).all(0)
        ratio = variances[0] / torch.where(usable, variances[1], 1.0)
        scale = torch.where(usable, ratio.sqrt().clamp(1 / _MOST, _MOST), 1.0)
    return scale, means[0] - scale * means[1]


def _fold(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let the module itself do to its input (a batch norm) or output (a layer) what the alignment did."""
    with torch.no_grad():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None  # others are not watched
            assert module.running_var is not None
            module.running_mean.copy_((module.running_mean - shift) / scale)
            module.running_var.copy_(((module.running_var + module.eps) / scale**2 - module.eps).clamp(min=0))
            return
        layer: Any = module.out_proj if isinstance(module, nn.MultiheadAttention) else module
        bias = torch.zeros_like(shift) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter((bias + shift).to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
