"""What to quantize and how: one validated, immutable `Recipe`, also from VS-Quant's notation W/A/ws/as."""

import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Tensor, nn

from dgcomp.quant.estimators import Estimator
from dgcomp.quant.octav import Grid, code_range
from dgcomp.quant.vector import Rounding

__all__ = ["Method", "Recipe", "layer_recipes", "name_weights", "named_layers", "parse_notation", "quantizable_layers"]

Method = Literal["octav", "max"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Bits, scales and gradients of the quantized operations; `replace` from dataclasses makes variants."""

    weights: int | None = 4
    """Bits of weights, 2 to 8; None leaves them in floating point."""
    activations: int | None = 4
    """Bits of activations, 2 to 8; None leaves them in floating point."""
    method: Method = "octav"
    """Scale where no vectors are asked for: OCTAV's minimum-error clip, or the maximum magnitude."""
    grid: Grid = "exact"
    """Which recursion finds OCTAV's scale, see `octav_scale`."""
    weight_estimator: Estimator = "mad"
    activation_estimator: Estimator = "pwl"
    """Gradients; together the defaults are the paper's MPH. "lsq" needs `learn_scales`."""
    unsigned: bool | None = None
    """Grid of activations: True for 0..2**B - 1, False for symmetric, None for unsigned where none is negative."""
    weight_scale_bits: int | None = None
    """Bits of the integer scale per vector of a weight; None for one float scale per output channel."""
    activation_scale_bits: int | None = None
    """Bits of the integer scale per vector of an activation; None for one float scale per tensor."""
    vector: int = 16
    """Elements of the reduction dimension that share an integer scale."""
    rounding: Rounding = "consistent"
    """How two-level scales are rounded, see `per_vector`."""
    activation_scale: float | Tensor | None = field(default=None, compare=False)
    """Clipping scalar of the activations, from `calibrate` or `learn_scales`; None computes it from every tensor."""
    weight_scale: Tensor | None = field(default=None, compare=False)
    """Clipping scalars per output channel, from `learn_scales`; None computes them from the weight."""

    def __post_init__(self) -> None:
        for name, bits in (("weights", self.weights), ("activations", self.activations)):
            if bits is not None:
                try:
                    code_range(bits)
                except ValueError:
                    raise ValueError(f"{name} must be None or an integer from 2 to 8, got {bits!r}") from None
        for name, bits in (
            ("weight_scale_bits", self.weight_scale_bits),
            ("activation_scale_bits", self.activation_scale_bits),
        ):
            if bits is not None and not 2 <= bits <= 16:
                raise ValueError(f"{name} must be None or from 2 to 16, got {bits!r}")
        for name, value, allowed in (
            ("method", self.method, get_args(Method)),
            ("grid", self.grid, get_args(Grid)),
            ("rounding", self.rounding, get_args(Rounding)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, estimator in (
            ("weight_estimator", self.weight_estimator),
            ("activation_estimator", self.activation_estimator),
        ):
            if estimator not in get_args(Estimator):
                raise ValueError(f"{name} must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
        if self.vector < 1:
            raise ValueError(f"vector must be at least 1, got {self.vector}")

    @property
    def active(self) -> bool:
        """Whether anything is quantized at all."""
        return self.weights is not None or self.activations is not None


_NOTATION = re.compile(r"(?:(\d+)|-)/(?:(\d+)(U?)|-)(?:/(?:(\d+)|-)/(?:(\d+)|-))?")


def parse_notation(text: str, **options: object) -> Recipe:
    """Recipe of a VS-Quant notation W/A/ws/as, such as "4/8/6/10", "4/4U/-/-" or "8/8".

    W and A are the bits of weights and activations, "-" for floating point, with a U for unsigned activations; ws and
    as the bits of their integer scales per vector, "-" (or left out) for one float scale per output channel of a
    weight or per activation. `options` are further fields of `Recipe`. Raises ValueError where the text is malformed.
    """
    match = _NOTATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'notation must read W/A or W/A/ws/as with numbers or "-", such as "4/8/6/10", got {text!r}')
    weights, activations, unsigned, weight_scale, activation_scale = match.groups()
    fields: dict[str, object] = {
        "weights": int(weights) if weights else None,
        "activations": int(activations) if activations else None,
        "weight_scale_bits": int(weight_scale) if weight_scale else None,
        "activation_scale_bits": int(activation_scale) if activation_scale else None,
    }
    if unsigned:
        fields["unsigned"] = True
    try:
        return Recipe(**{**fields, **options})  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"notation {text!r}: {error}") from None


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that own a weight matrix or kernel, by name, in registration order; a shared module appears once."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantizable layers and the embeddings, whose table an output layer may share: what a rule can name."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.Embedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def name_weights(model: nn.Module) -> None:
    """Tell every weight the name of its layer: functions see the weight only."""
    for name, module in named_layers(model).items():
        for weight in (getattr(module, "weight", None), getattr(module, "in_proj_weight", None)):
            if isinstance(weight, Tensor):
                weight._dgcomp_layer = name  # type: ignore[attr-defined]


def layer_recipes(
    model: nn.Module, recipe: Recipe, first_last: int | None, rules: "dict[str, str | int | None | Recipe]"
) -> dict[str, Recipe]:
    """Recipes of the layers that differ from `recipe`: the first and last, and those whose name matches a rule.

    A rule is a shell pattern on the module's name; its value a notation, a number of bits for both operands, a
    `Recipe`, or None for floating point. Later rules win over earlier ones, and rules over the first/last default.
    An embedding counts as neither first nor last; a rule with its name also governs the output layer that shares it.
    Raises ValueError for a rule that matches no layer.
    """
    layers, names = list(quantizable_layers(model)), list(named_layers(model))
    chosen: dict[str, Recipe] = {}
    if first_last is not None and layers:
        for name in (layers[0], layers[-1]):
            chosen[name] = _with_bits(recipe, first_last)
    for pattern, rule in rules.items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"rule {pattern!r} matches no layer; the layers are {', '.join(names)}")
        for name in matched:
            chosen[name] = _from_rule(recipe, rule)
    return chosen


def _with_bits(recipe: Recipe, bits: int | None) -> Recipe:
    """`recipe` with other bits for the operands that it quantizes, and single float scales."""
    return replace(
        recipe,
        weights=None if recipe.weights is None else bits,
        activations=None if recipe.activations is None else bits,
        weight_scale_bits=None,
        activation_scale_bits=None,
    )


def _from_rule(recipe: Recipe, rule: "str | int | None | Recipe") -> Recipe:
    if isinstance(rule, Recipe):
        return rule
    if isinstance(rule, str):
        parsed = parse_notation(rule)
        names = ("weights", "activations", "weight_scale_bits", "activation_scale_bits")
        return replace(recipe, **{name: getattr(parsed, name) for name in names})
    return _with_bits(recipe, rule)
