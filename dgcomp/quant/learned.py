"""LSQ in a context: clipping scalars that are trained with the weights (Esser et al., ICLR 2020).

They start at OCTAV's scales, the least-error clip of the weights and of one batch of activations.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dgcomp.quant.autocast import autocast
from dgcomp.quant.calibrate import run_observed
from dgcomp.quant.octav import octav_scale
from dgcomp.quant.operators import Layout
from dgcomp.quant.recipe import Recipe

__all__ = ["learn_scales"]


def learn_scales(model: nn.Module, context: autocast, *inputs: Any) -> tuple[autocast, nn.ParameterDict]:
    """A context like `context` with a learned scale for every operand whose estimator is "lsq", and these scales.

    `model(*inputs)` runs once, in floating point and evaluation mode. The scales are named after their layers, such as
    "block/conv1/weight" (one per output channel) and "block/conv1/activation" (one); give them to the optimizer,
    without weight decay, and save them beside the model. Whether an activation is unsigned is settled here too.
    Raises ValueError when no layer that ran has an "lsq" operand with a float scale.
    """
    scales = nn.ParameterDict()
    layers: dict[str, Recipe] = {}

    def observe(name: str, passive: Recipe, x: Tensor, weight: Tensor | None, layout: Layout) -> None:
        layer = getattr(weight, "_dgcomp_layer", None)
        if layer is None or weight is None or layer in layers:
            return
        recipe, path = context.recipe_of(layer), layer.replace(".", "/")
        if _learns(recipe.weight_estimator, recipe.weights, recipe.weight_scale_bits):
            dims = [d for d in range(weight.ndim) if d != layout.weight_channel]
            scale = nn.Parameter(octav_scale(weight, recipe.weights or 4, dim=dims))
            scales[f"{path}/weight"] = scale
            recipe = replace(recipe, weight_scale=scale)
        if _learns(recipe.activation_estimator, recipe.activations, recipe.activation_scale_bits):
            signed = bool((x < 0).any()) if recipe.unsigned is None else not recipe.unsigned
            scale = nn.Parameter(octav_scale(x, recipe.activations or 4, signed))
            scales[f"{path}/activation"] = scale
            recipe = replace(recipe, activation_scale=scale, unsigned=not signed)
        layers[layer] = recipe

    with torch.no_grad():
        run_observed(model, [inputs], observe)
    if not len(scales):
        raise ValueError(
            'no layer that ran has a scale to learn: give the context weight_estimator="lsq" or '
            'activation_estimator="lsq", bits for that operand, and no scales per vector'
        )
    return context.with_layers(layers), scales


def _learns(estimator: str, bits: int | None, scale_bits: int | None) -> bool:
    return estimator == "lsq" and bits is not None and scale_bits is None
