"""`with quant.autocast(...)`: quantized training and inference of unmodified models, scoped like torch.autocast.

How it works: the functions of torch.nn.functional that hold the matmuls are replaced once, when the first context is
made, by functions that look for a *scope* in this thread and fall through to PyTorch's own where there is none. A
context only sets that scope. Why not a TorchFunctionMode, the obvious mechanism: on torch 2.13 checkpointed regions
recompute without it, silently; under torch.compile they lose it already in forward; and it does not see inside
multi-head attention. A checkpointed region captures the scope and enters it again when it recomputes.

Activation-activation products (matmul, bmm) have no such function to replace safely; for them, and for the operations
that `pack=True` treats in eager mode, a TorchFunctionMode is added, with its limits (see `autocast`).
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp.quant.cache import WeightCache
from dgcomp.quant.operators import LINEAR, Layout, quantize_weight, quantized_call, quantized_product
from dgcomp.quant.packed import can_pack, packed_batch_norm, packed_relu
from dgcomp.quant.recipe import Recipe, layer_recipes, name_weights, parse_notation

__all__ = ["autocast", "current_recipe", "disabled"]

_CONV = Layout(input_reduction=1, weight_reduction=1, weight_channel=0, output_channel=1)
_CONV_TRANSPOSED = Layout(input_reduction=1, weight_reduction=0, weight_channel=1, output_channel=1)
LAYOUTS = {
    "linear": LINEAR,
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _CONV_TRANSPOSED,
    "conv_transpose2d": _CONV_TRANSPOSED,
    "conv_transpose3d": _CONV_TRANSPOSED,
}


@dataclass(frozen=True)
class _Scope:
    """What a context sets: the recipe, its exceptions by layer name, and what else is on."""

    recipe: Recipe
    layers: Mapping[str, Recipe]
    embedding: bool
    matmul: bool
    pack: bool
    cache: WeightCache | None


class _Local(threading.local):
    """Per thread; set here, not as defaults of the class, whose first assignment torch.compile would trip over."""

    def __init__(self) -> None:
        self.scope: _Scope | None = None
        self.inside_gate = False  # an operator that a gate calls is seen by no other gate, mode or audit
        self.observer: Observer | None = None


Observer = Callable[[str, Recipe, Tensor, Tensor | None, Layout], None]
"""Called before every quantized operation with its name, recipe, input, weight (None for activations) and layout."""

_local = _Local()


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer` before every operation that is quantized in this thread, in eager mode."""
    previous, _local.observer = _local.observer, observer
    try:
        yield
    finally:
        _local.observer = previous


def inside_gate() -> bool:
    """Whether the running operator was called by a gate, that is on quantized operands."""
    return _local.inside_gate


class autocast:
    """Quantize the matmuls of a block: linear and (transposed) convolution layers of whatever runs inside.

    Parameters
    ----------
    weights, activations : bits, 2 to 8, or None for floating point; or, as the only positional argument, VS-Quant's
        notation "W/A/ws/as" (`parse_notation`) or a `Recipe`.
    method : "octav" (the least-error clip, found anew for every tensor) or "max".
    model : names the layers, which `first_last` and `rules` need.
    first_last : bits of the model's first and last layer (8, as in the paper); None treats them like the others.
        Without a model nothing is known to be first or last, and every layer gets the given bits.
    rules : exceptions by layer name, {shell pattern: bits, notation, Recipe, or None for floating point}.
    embedding : also quantize the weights of embeddings.
    matmul : also quantize both operands of matmul, @, bmm, baddbmm and scaled_dot_product_attention (its q, k and v).
        All but the last not under torch.compile with checkpointing, where PyTorch loses the mode that they need.
    pack : save quantized inputs of at most 4 bits as packed codes, ReLU outputs as bits, and nothing for a batch norm
        behind a quantized convolution, which runs again in the backward pass; gradients stay equal to the bit. Eager
        mode on CPU.
    cache : reuse quantized weights within the context until an optimizer step; after an edit of `p.data` inside a
        context call `quant.invalidate()`.
    options : further fields of `Recipe`, such as activation_estimator="ste".

    A context can be entered again, also inside another one, where the innermost wins, and restores what was before it
    when it is left by an exception. It holds for the thread that entered it. `disabled()` is the way out inside.
    """

    def __init__(
        self,
        weights: int | str | Recipe | None = 4,
        activations: int | None = 4,
        method: str = "octav",
        *,
        model: nn.Module | None = None,
        first_last: int | None = 8,
        rules: Mapping[str, "str | int | None | Recipe"] | None = None,
        embedding: bool = False,
        matmul: bool = False,
        pack: bool = False,
        cache: bool = True,
        **options: Any,
    ) -> None:
        _install()
        if isinstance(weights, Recipe):
            recipe = replace(weights, **options)
        elif isinstance(weights, str):
            recipe = parse_notation(weights, method=method, **options)
        else:
            recipe = Recipe(weights=weights, activations=activations, method=method, **options)  # type: ignore[arg-type]
        if matmul and recipe.activation_estimator == "lsq":
            raise ValueError('matmul=True has no layers to learn scales for: it does not go with "lsq" activations')
        if rules and model is None:
            raise ValueError("rules go by layer names, which only a model can tell: pass model=...")
        layers = {} if model is None else layer_recipes(model, recipe, first_last, dict(rules or {}))
        if model is not None:
            name_weights(model)
        self._scope = _Scope(recipe, layers, embedding, matmul, pack, WeightCache() if cache else None)
        self._exits = _Exits()

    @property
    def recipe(self) -> Recipe:
        """The recipe of every layer without an exception of its own."""
        return self._scope.recipe

    def recipe_of(self, layer: str) -> Recipe:
        """The recipe of the layer with this name."""
        return self._scope.layers.get(layer, self._scope.recipe)

    def with_layers(self, layers: Mapping[str, Recipe]) -> "autocast":
        """A context like this one with other recipes for some layers, by name."""
        result = autocast(self.recipe)
        scope = replace(self._scope, layers={**self._scope.layers, **layers})
        result._scope = replace(scope, cache=None if scope.cache is None else WeightCache())
        return result

    def __enter__(self) -> "autocast":
        if self._scope.cache is not None and not torch.compiler.is_compiling():
            self._scope.cache.clear()
        self._exits.stack.append(_enter(self._scope))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        _leave(self._exits.stack.pop())

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: run `function` in this context; the way to open a context inside a torch.compile'd function."""
        scope = self._scope

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            if scope.cache is not None and not torch.compiler.is_compiling():
                scope.cache.clear()
            token = _enter(scope)
            try:
                return function(*args, **kwargs)
            finally:
                _leave(token)

        return inside


class _Exits(threading.local):
    """Per thread, what to restore when a context is left: one entry for each time it was entered."""

    def __init__(self) -> None:
        self.stack: list[tuple[_Scope | None, _Mode | None]] = []


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Run a block in floating point inside an `autocast` block."""
    token = _enter(None)
    try:
        yield
    finally:
        _leave(token)


def current_recipe(weight: Tensor | None = None) -> Recipe | None:
    """Recipe of the innermost context in this thread, for a named weight its own; None outside of every context."""
    scope = _local.scope
    return None if scope is None else _recipe_of(scope, weight)


def _enter(scope: _Scope | None) -> "tuple[_Scope | None, _Mode | None]":
    previous = _local.scope
    _local.scope = scope
    if scope is None or not (scope.matmul or scope.pack):
        return previous, None
    mode = _Mode()
    mode.__enter__()
    return previous, mode


def _leave(token: "tuple[_Scope | None, _Mode | None]") -> None:
    previous, mode = token
    if mode is not None:
        mode.__exit__(None, None, None)
    _local.scope = previous


def _recipe_of(scope: _Scope, weight: Tensor | None) -> Recipe:
    if not scope.layers or weight is None:
        return scope.recipe
    return scope.layers.get(getattr(weight, "_dgcomp_layer", ""), scope.recipe)


# --- the functions that are replaced ----------------------------------------------------------------------------------

_install_lock = threading.Lock()
_originals: dict[str, Callable[..., Any]] = {}


def _install() -> None:
    """Put the gates in place, once per process."""
    if torch.compiler.is_compiling():
        if not _originals:
            raise RuntimeError(
                "make the first quant.autocast outside of the compiled function; it may be entered inside"
            )
        return
    with _install_lock:
        if _originals:
            return
        for name, layout in LAYOUTS.items():
            _replace(F, name, _gate(name, getattr(F, name), layout))
        _replace(F, "embedding", _embedding_gate(F.embedding))
        _replace(F, "scaled_dot_product_attention", _attention_gate(F.scaled_dot_product_attention))
        _replace(torch.backends.mha, "get_fastpath_enabled", _fast_path_gate(torch.backends.mha.get_fastpath_enabled))
        _capture_checkpoints()


def _replace(owner: Any, name: str, gate: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    _originals[name] = original
    functools.update_wrapper(gate, original)
    builtin = torch.jit._builtins._find_builtin(original)
    if builtin is not None:  # so that torch.jit.script still knows the function
        torch.jit._builtins._register_builtin(gate, builtin)
    else:
        setattr(gate, "__script_if_tracing_wrapper", True)
        setattr(gate, "__original_fn", original)
    setattr(owner, name, gate)


def _gate(name: str, original: Callable[..., Tensor], layout: Layout) -> Callable[..., Tensor]:
    def quantized(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        scope = _local.scope
        if scope is None:
            return original(input, weight, bias, *args, **kwargs)
        recipe = _recipe_of(scope, weight)
        if _local.observer is not None:
            _local.observer(name, recipe, input, weight, layout)
        if not recipe.active:
            return original(input, weight, bias, *args, **kwargs)
        previous, _local.inside_gate = _local.inside_gate, True
        try:
            return quantized_call(
                original, layout, recipe, scope.cache, scope.pack, input, weight, bias, *args, **kwargs
            )
        finally:
            _local.inside_gate = previous

    return quantized


def _embedding_gate(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = _local.scope
        if scope is None or not scope.embedding:
            return original(input, weight, *args, **kwargs)
        value, _ = quantize_weight(weight, _recipe_of(scope, weight), LINEAR, scope.cache)
        return original(input, value.to(weight.dtype), *args, **kwargs)

    return embedding


def _attention_gate(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Products of activations too, but multi-head attention calls them where no mode can see it."""

    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scope = _local.scope
        if scope is None or not scope.matmul:
            return original(query, key, value, *args, **kwargs)
        return _product("scaled_dot_product_attention", original, scope, [query, key, value], *args, **kwargs)

    return scaled_dot_product_attention


def _fast_path_gate(original: Callable[[], bool]) -> Callable[[], bool]:
    def get_fastpath_enabled() -> bool:
        """In a quantized scope False: the fused inference kernels of attention would bypass it."""
        return _local.scope is None and original()

    return get_fastpath_enabled


def _capture_checkpoints() -> None:
    """Let activation checkpoints recompute in the scope in which they ran forward."""
    module: Any = torch.utils.checkpoint
    generator, function = module._checkpoint_without_reentrant_generator, module.CheckpointFunction

    @functools.wraps(generator)
    def capturing_generator(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return generator(_in_current_scope(run), *args, **kwargs)

    class CapturingFunction(function):  # type: ignore[misc, valid-type]
        @classmethod
        def apply(cls, run: Callable[..., Any], *args: Any) -> Any:
            return function.apply(_in_current_scope(run), *args)

    _originals["_checkpoint_without_reentrant_generator"] = generator
    module._checkpoint_without_reentrant_generator = capturing_generator
    module.CheckpointFunction = CapturingFunction


def _in_current_scope(run: Callable[..., Any]) -> Callable[..., Any]:
    scope = _local.scope  # also None is a scope: a plain region stays plain when its backward runs inside a context

    def inside(*args: Any, **kwargs: Any) -> Any:
        token = _enter(scope)
        try:
            return run(*args, **kwargs)
        finally:
            _leave(token)

    return inside


# --- what no gate can be put before: products of activations, and the operations that `pack` saves less for -----------


def _product(
    name: str, operator: Callable[..., Tensor], scope: _Scope, operands: list[Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    if _local.observer is not None:
        for operand in operands:
            _local.observer(name, scope.recipe, operand, None, LINEAR)
    previous, _local.inside_gate = _local.inside_gate, True
    try:
        return quantized_product(operator, scope.recipe, scope.pack, operands, *args, **kwargs)
    finally:
        _local.inside_gate = previous


class _Mode(torch.overrides.TorchFunctionMode):
    """Quantizes both operands of matmuls and saves less for ReLU and batch norm; what a gate runs is left to it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        scope = _local.scope
        if scope is None or _local.inside_gate:
            return func(*args, **kwargs)
        if func in _PRODUCTS and scope.matmul:
            return _product(func.__name__, func, scope, list(args[:2]), *args[2:], **kwargs)
        if func is torch.baddbmm and scope.matmul:
            return _product(func.__name__, functools.partial(func, args[0]), scope, list(args[1:3]), **kwargs)
        if scope.pack and args and isinstance(args[0], Tensor) and can_pack(args[0]):
            if func in _RELUS:
                return packed_relu(*args, **kwargs)
            if func is F.batch_norm:
                return packed_batch_norm(func, *args, **kwargs)
        return func(*args, **kwargs)


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_RELUS = {F.relu, torch.relu, Tensor.relu}
