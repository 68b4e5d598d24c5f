"""Measure the sparsity of live activations: zero values, and tokens (rows) that are all zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from dgcomp.sparse.pruner import prunable_layers

__all__ = ["Activity", "ActivityMeter"]


@dataclass
class Activity:
    """What one layer has read so far."""

    values: int = 0
    nonzeros: int = 0
    tokens: int = 0
    active_tokens: int = 0

    @property
    def density(self) -> float:
        """Share of the input values that are not zero."""
        return self.nonzeros / max(self.values, 1)

    @property
    def token_density(self) -> float:
        """Share of the tokens with any value that is not zero."""
        return self.active_tokens / max(self.tokens, 1)


class ActivityMeter:
    """Context that counts zeros in the inputs of a model's convolutions and linear layers.

    A token is a vector along the last dimension of a linear layer's input, or all channels of one pixel. Counts add up
    over forward passes; `layers` names what to watch (default: all).

    Examples
    --------
    >>> with ActivityMeter(model) as meter:  # doctest: +SKIP
    ...     model(x)
    >>> meter["fc1"].density  # doctest: +SKIP
    0.35
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None) -> None:
        found = prunable_layers(model)
        if unknown := [name for name in layers or () if name not in found]:
            raise ValueError(f"layers must name convolutions or linear layers of the model, got {unknown}")
        self._modules = {name: found[name] for name in (found if layers is None else layers)}
        self._activity = {name: Activity() for name in self._modules}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "ActivityMeter":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._counting(self._activity[name])))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getitem__(self, layer: str) -> Activity:
        return self._activity[layer]

    def densities(self) -> dict[str, float]:
        """Density of every watched layer's input."""
        return {name: activity.density for name, activity in self._activity.items()}

    @staticmethod
    def _counting(activity: Activity) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonzero = inputs[0].detach() != 0
            tokens = nonzero.any(dim=-1 if isinstance(module, nn.Linear) else 1)
            activity.values += nonzero.numel()
            activity.nonzeros += int(nonzero.sum())
            activity.tokens += tokens.numel()
            activity.active_tokens += int(tokens.sum())

        return hook
