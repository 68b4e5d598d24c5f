"""The command-line flag: every form of it, and errors that say what is wrong."""

import contextlib

import pytest
from torch import nn

from dgcomp import quant

MODEL = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))


def test_no_flag_is_no_context() -> None:
    for flag in (None, ""):
        with quant.context_from_flag(flag, MODEL):
            assert quant.current_recipe() is None
    assert isinstance(quant.context_from_flag(None, MODEL), contextlib.nullcontext)


def test_notation_and_settings() -> None:
    with quant.context_from_flag("4/8/6/-,rounding=paper, vector=32,pack=true,first_last=none", MODEL):
        recipe = quant.current_recipe(MODEL[0].weight)
    assert recipe is not None
    assert (recipe.weights, recipe.activations, recipe.weight_scale_bits, recipe.vector) == (4, 8, 6, 32)
    assert recipe.rounding == "paper"
    with quant.context_from_flag("4/4,method=max,activation_estimator=ste", MODEL):
        first, middle = quant.current_recipe(MODEL[0].weight), quant.current_recipe(MODEL[1].weight)
    assert first is not None
    assert middle is not None
    assert (first.weights, middle.weights, middle.method, middle.activation_estimator) == (8, 4, "max", "ste")


def test_exceptions_by_layer_name() -> None:
    context = quant.context_from_flag("4/4,first_last=none,1:8/6,2:-/-", MODEL)
    assert isinstance(context, quant.autocast)
    bits = [(r.weights, r.activations) for r in (context.recipe_of(name) for name in "012")]
    assert bits == [(4, 4), (8, 6), (None, None)]


def test_without_a_model_the_flag_is_only_checked() -> None:
    quant.context_from_flag("4/4,no.such.layer:8/8", None)
    with pytest.raises(ValueError, match="matches no layer"):
        quant.context_from_flag("4/4,no.such.layer:8/8", MODEL)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("four", "notation must read"),
        ("4/4,pack", "must read name=value"),
        ("4/4,0:eight", "notation must read"),
        ("4/4,pack=yes", "pack must be true or false"),
        ("4/4,vector=x", "vector must be a number"),
        ("4/4,speed=11", "unknown setting"),
        ("4/4,method=kmeans", "method must be one of"),
    ],
)
def test_errors(flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quant.context_from_flag(flag, MODEL)
