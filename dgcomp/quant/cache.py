"""Quantized weights of one context, kept until a weight may have changed.

Tensor versions alone do not show a change in torch 2.13: fused optimizers and `p.data` edits leave them as they are.
So everything is dropped on entry of a context, after every optimizer step of any optimizer, and by `invalidate()`;
version and memory address are checked on top.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dgcomp.quant.recipe import Recipe

__all__ = ["WeightCache", "invalidate"]

_caches: "weakref.WeakSet[WeightCache]" = weakref.WeakSet()


class WeightCache:
    """Scale and quantized value of weights, by weight and recipe."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, int, int, Recipe, tuple[Tensor, Tensor]]] = {}
        self.hits = 0
        _caches.add(self)

    def get(self, weight: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor] | None:
        """What `put` stored for this weight, unless the weight or the recipe is another by now."""
        entry = self._entries.get(id(weight))
        if entry is None:
            return None
        reference, version, address, stored_recipe, found = entry
        if reference() is not weight or address != weight.data_ptr() or _version(weight) != version:
            return None
        if stored_recipe != recipe:
            return None
        self.hits += 1
        return found

    def put(self, weight: Tensor, recipe: Recipe, found: tuple[Tensor, Tensor]) -> None:
        """Store the detached scale and value of a parameter; other tensors live too shortly to be worth it."""
        if isinstance(weight, torch.nn.Parameter):
            self._entries[id(weight)] = (weakref.ref(weight), _version(weight), weight.data_ptr(), recipe, found)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def invalidate() -> None:
    """Forget the quantized weights of every context: call it after editing `p.data` inside a context."""
    for cache in list(_caches):
        cache.clear()


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version


def _after_optimizer_step(*_: Any) -> None:
    invalidate()


register_optimizer_step_post_hook(_after_optimizer_step)
