"""What an accuracy experiment is, and the contexts that experiments compare."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dgcomp import quant

__all__ = ["FP32", "Context", "Experiment", "quantized"]

Context = Callable[[nn.Module], contextlib.AbstractContextManager[Any]]
"""Makes, for a model, the context around its forward passes."""


@dataclass(frozen=True)
class Experiment:
    """One table of results: methods that share everything but the context around the forward pass."""

    title: str
    metric: str
    methods: Mapping[str, Context]
    measure: Callable[[Context, int], float]
    """The score of a method with a seed."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Stored with every row: data, schedule."""


def quantized(*args: Any, **options: Any) -> Context:
    """`quant.autocast` with these arguments, on whatever model."""
    return lambda model: quant.autocast(*args, model=model, **options)


def FP32(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """No quantization."""
    return contextlib.nullcontext()
