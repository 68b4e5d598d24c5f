"""A calibrated model as ONNX with QuantizeLinear / DequantizeLinear pairs, which runtimes fuse into integer kernels.

QDQ nodes of the opsets that torch exports have 8-bit codes. A narrower grid is written as a Clip to its outermost
codes before an 8-bit pair of the same step: the values are the same.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp.quant.autocast import autocast
from dgcomp.quant.calibrate import QuantizedLayer, convert
from dgcomp.quant.octav import code_range

__all__ = ["export_onnx"]


def export_onnx(
    model: nn.Module, context: autocast, inputs: tuple[Any, ...], path: str | Path, *, opset: int = 19
) -> None:
    """Write `model`, quantized as in `context`, to an ONNX file with one QDQ pair per weight and activation.

    `context` must have static activation scales (`quant.calibrate`) and one scale per channel or tensor: ONNX has no
    two-level scales. Raises ValueError where it does not, ModuleNotFoundError without `onnx` and `onnxscript`.
    """
    if not (find_spec("onnx") and find_spec("onnxscript")):  # the exporter says it less clearly
        raise ModuleNotFoundError("ONNX export needs two packages: pip install onnx onnxscript")
    converted = convert(model, context)
    for name, layer in list(converted.named_modules()):
        if isinstance(layer, QuantizedLayer):
            pair = _QDQLayer(name, layer)
            if not name:
                converted = pair
            else:
                setattr(converted.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that knows these operators is deprecated, and still the only one
        torch.onnx.export(converted, inputs, str(path), dynamo=False, opset_version=opset)


class _QDQLayer(nn.Module):
    """A layer in the operators that the exporter writes as QDQ pairs."""

    weight: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, name: str, layer: QuantizedLayer) -> None:
        super().__init__()
        recipe = layer.recipe
        if recipe.weight_scale_bits is not None or recipe.activation_scale_bits is not None:
            raise ValueError(f"layer {name!r} has scales per vector, which ONNX QDQ cannot express; use W/A/-/-")
        if recipe.activations is not None and recipe.activation_scale is None:
            raise ValueError(f"layer {name!r} has no static activation scale; make the context with quant.calibrate")
        self.kind, self.options, self.bias = layer.kind, layer.options, layer.bias
        self.register_buffer("weight", layer.weight_value())
        self.register_buffer("step", layer.step.flatten().clamp(min=1e-30))
        self.register_buffer("zero", torch.zeros(self.step.numel(), dtype=torch.int32))
        self.scale = None if recipe.activation_scale is None else float(recipe.activation_scale)
        self.signed = not recipe.unsigned
        self.high = code_range(recipe.activations, self.signed)[1] if recipe.activations else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is not None and self.high:
            x = x.clamp(-self.scale if self.signed else 0.0, self.scale)
            low, high = (-128, 127) if self.signed else (0, 255)
            x = torch.fake_quantize_per_tensor_affine(x, self.scale / self.high, 0, low, high)
        weight = torch.fake_quantize_per_channel_affine(self.weight, self.step, self.zero, 0, -128, 127)
        result: Tensor = getattr(F, self.kind)(x, weight, self.bias, **self.options)
        return result
