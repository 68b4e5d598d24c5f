"""Magnitude pruning during training: a schedule of densities, a pattern, and masks that hold between steps.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (iterative magnitude
pruning); Zhu and Gupta, "To prune, or not to prune", 2017, equation 1 (cubic schedule).
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dgcomp.sparse.patterns import Pattern, Unstructured, keep_largest
from dgcomp.sparse.winograd import WinogradReLUConv2d

__all__ = ["Cubic", "Iterative", "OneShot", "Pruner", "prunable_layers"]

Schedule = Callable[[int], float]  # number of the step, from 1 -> density


@dataclass(frozen=True)
class OneShot:
    """`density` from step `at_step` on, 1 before."""

    density: float
    at_step: int = 1

    def __call__(self, step: int) -> float:
        return self.density if step >= self.at_step else 1.0


@dataclass(frozen=True)
class Iterative:
    """The densities one after the other, each for `steps_each` steps, the last one for good."""

    densities: Sequence[float]
    steps_each: int

    def __call__(self, step: int) -> float:
        return self.densities[min((step - 1) // self.steps_each, len(self.densities) - 1)]


@dataclass(frozen=True)
class Cubic:
    """From density 1 to `density` between steps `start` and `stop`, fast first; updated every `every` steps."""

    density: float
    start: int
    stop: int
    every: int = 100

    def __call__(self, step: int) -> float:
        if step < self.start:
            return 1.0
        step = min(self.stop, self.start + (step - self.start) // self.every * self.every) if step < self.stop else step
        left = 1 - min(1.0, (step - self.start) / max(1, self.stop - self.start))
        return self.density + (1 - self.density) * left**3


def prunable_layers(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, those named in `exclude` left out."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, WinogradReLUConv2d)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and n not in exclude}


class Pruner:
    """Prunes a model's layers while an optimizer trains it; call `step()` after every `optimizer.step()`.

    Parameters
    ----------
    model : nn.Module
        A module, or a DistributedDataParallel around one.
    schedule : callable
        Step number, counted from 1, to density in (0, 1]: `OneShot`, `Iterative`, `Cubic` or your own.
    pattern : callable, default `Unstructured()`
        Which weights stay at a density; see `dgcomp.sparse.patterns`.
    scope : {"layer", "global"}
        Every layer at the density, or one threshold over all layers (unstructured only).
    layers : names, optional
        What to prune; by default all convolutions and linear layers but the first convolution, as in the papers.

    A weight once pruned stays zero, and its gradient is zero from the backward pass on, so that gradient compression
    and clipping never spend anything on it; both hold as long as the pruner lives. In a distributed run rank 0's masks
    are broadcast whenever they change, so that all ranks have the same ones to the bit. Raises ValueError for NaN
    weights and for names that do not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        pattern: Pattern | None = None,
        scope: str = "layer",
        layers: Sequence[str] | None = None,
    ) -> None:
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        found = prunable_layers(model)
        if layers is None:
            first = next((n for n, m in found.items() if isinstance(m, nn.Conv2d)), None)
            layers = [name for name in found if name != first]
        if unknown := [name for name in layers if name not in found]:
            raise ValueError(f"layers must name convolutions or linear layers of the model, got {unknown}")
        if scope not in ("layer", "global"):
            raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
        if scope == "global" and pattern is not None and not isinstance(pattern, Unstructured):
            raise ValueError(f"pattern must be Unstructured() with scope 'global', got {pattern}")
        self.schedule, self.pattern, self.scope = schedule, pattern or Unstructured(), scope
        self.weights = {name: getattr(found[name], "weight") for name in layers}  # noqa: B009
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.num_steps = 0
        self.density = 1.0
        for name, weight in self.weights.items():
            if weight.requires_grad:
                weight.register_hook(partial(_mask_gradient, weakref.ref(self), name))

    def step(self) -> None:
        """Count a step, prune further where the schedule asks for it, and zero every pruned weight."""
        self.num_steps += 1
        density = self.schedule(self.num_steps)
        if not 0 < density <= 1:
            raise ValueError(f"schedule must return a density in (0, 1], got {density} at step {self.num_steps}")
        if density != self.density:
            self.density = density
            self._update_masks()
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the pruned weights."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    @torch.no_grad()
    def _update_masks(self) -> None:
        for name, weight in self.weights.items():
            if not torch.isfinite(weight).all():
                raise ValueError(f"weight of {name} must be finite to be pruned, got NaN or infinity")
        if self.scope == "global":
            scores = torch.cat([(w * self.masks[n]).abs().flatten() for n, w in self.weights.items()])
            kept = keep_largest(scores[None], round(self.density * scores.numel()))[0]
            parts = kept.split([w.numel() for w in self.weights.values()])
            new = {n: part.view(w.shape) for (n, w), part in zip(self.weights.items(), parts, strict=True)}
        else:
            new = {n: self.pattern(w * self.masks[n], self.density) for n, w in self.weights.items()}
        for name, mask in new.items():
            self.masks[name] &= mask
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                bits = self.masks[name].to(torch.uint8)
                dist.broadcast(bits, src=0)
                self.masks[name] = bits.bool()

    def densities(self) -> dict[str, float]:
        """Share of the weights that are kept, by layer."""
        return {name: float(mask.float().mean()) for name, mask in self.masks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Step, density and masks; the schedule and the pattern are configuration and stay with the caller."""
        masks: dict[str, Tensor] = {name: mask.clone() for name, mask in self.masks.items()}
        return {"num_steps": self.num_steps, "density": self.density, "masks": masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; raises ValueError where the layers differ."""
        shapes = {name: mask.shape for name, mask in state["masks"].items()}
        if shapes != {name: mask.shape for name, mask in self.masks.items()}:
            raise ValueError(
                f"state must hold masks of the layers {list(self.masks)}, got {list(shapes)} or other shapes"
            )
        self.num_steps, self.density = state["num_steps"], state["density"]
        self.masks = {name: state["masks"][name].to(mask.device) for name, mask in self.masks.items()}
        self.apply()


def _mask_gradient(pruner: "weakref.ref[Pruner]", name: str, grad: Tensor) -> Tensor:
    alive = pruner()
    # a weight that has been given a parametrization since, as by share_weights, is no longer what the mask was made for
    return grad if alive is None or grad.shape != alive.masks[name].shape else grad * alive.masks[name]
