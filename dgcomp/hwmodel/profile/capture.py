"""See every matrix product of a training step: a dispatch mode that is active for sampled steps only.

Below autograd a TorchDispatchMode sees the operators that really run, forward and backward, after torch.autocast's
casts and inside custom autograd functions, checkpoint recomputation and DDP. What torch.compile has compiled would hide
its operators, so it runs eagerly in sampled steps; the other steps do not know of the profiler at all.

Which layer an operator belongs to is told by module hooks in the forward pass. In the backward pass the current
autograd node is asked for the sequence number it got when the forward operator made it.
"""

import sys
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from dgcomp.hwmodel.operation import Operation, Phase, Precision, joined
from dgcomp.hwmodel.profile.lower import HANDLERS, WINOGRAD_MODULE, Site
from dgcomp.hwmodel.profile.sampling import Sampler

__all__ = ["Capture"]

# Operators with one of these in their name multiply matrices; without a handler they are reported as unknown.
PRODUCT_NAMES = ("mm", "conv", "attention", "rnn", "lstm", "gru", "bilinear")

OUTSIDE = "(outside of modules)"


class Capture(TorchDispatchMode):
    """Collects the `Operation`s of the code that runs inside, and counts all other operators."""

    def __init__(self, model: nn.Module, sampler: Sampler) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.unknown: Counter[str] = Counter()
        """Calls of operators that multiply matrices but have no handler, by name."""
        self.other_calls = 0
        self.other_elements = 0
        """Elements that all other operators wrote."""
        self._names = {module: _clean(name) for name, module in model.named_modules()}
        self._storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}
        self._sampler = sampler
        self._winograd: dict[tuple[str, Phase], int] = {}
        self._stack: list[nn.Module] = []
        self._forward: dict[int, tuple[str, Precision | None, set[int], str]] = {}
        self._hooks: list[RemovableHandle] = []
        self._stance: Any = None

    def __enter__(self) -> "Capture":
        # Not the hooks for all modules at once: torch.compile warns of them whenever a compiled module is called.
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._enter_module))
            self._hooks.append(module.register_forward_hook(self._leave_module, always_call=True))
        # A frame that dynamo first sees under a mode is skipped for good; told to stay eager, it forgets nothing. Where
        # dynamo has not been imported nothing can be compiled, and importing it would take seconds.
        if "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stack.clear()

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        # A module that raised in another hook may have left no trace; pop down to the one that ends.
        while self._stack and self._stack.pop() is not module:
            pass

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        handler = HANDLERS.get(packet)
        if handler is not None:
            site = self._site()
            captured = handler(site, args, out)
            for operation in captured:
                self._keep(site, operation)
            if not site.is_backward:
                self._remember(site, args)
            if captured:
                return out
        if handler is None and any(part in packet.__name__ for part in PRODUCT_NAMES):
            self.unknown[str(packet)] += 1
        else:
            self.other_calls += 1
            if isinstance(out, torch.Tensor):
                self.other_elements += out.numel()
        return out

    def _keep(self, site: Site, operation: Operation) -> None:
        """Note an operation; a Winograd layer makes each of its products block by block of images, which is one."""
        if site.module == WINOGRAD_MODULE:
            index = self._winograd.setdefault((operation.layer, operation.phase), len(self.operations))
            if index < len(self.operations):
                self.operations[index] = joined(self.operations[index], operation)
                return
        self.operations.append(operation)

    def _site(self) -> Site:
        node = torch._C._current_autograd_node()
        if node is not None and not self._stack:
            found = self._forward.get(node._sequence_nr())
            layer, precision, storages, kind = found or (OUTSIDE, None, set(), "")
            return Site(layer, "backward", precision, storages, set(), self._sampler, kind)
        phase: Phase = "forward" if node is None else "recompute"
        module = self._stack[-1] if self._stack else None
        shapes = set()
        for parameter in module.parameters(recurse=False) if module is not None else ():
            if parameter.ndim > 1:
                shapes |= {tuple(parameter.shape), tuple(parameter.shape[::-1])}
        kind = type(module).__name__
        return Site(self._layer_name(), phase, _precision(module), self._storages, shapes, self._sampler, kind)

    def _layer_name(self) -> str:
        """Name of the innermost module that is running."""
        if not self._stack:
            return OUTSIDE
        return self._names[self._stack[-1]] or type(self._stack[-1]).__name__

    def _remember(self, site: Site, args: tuple[Any, ...]) -> None:
        """Note which layer, and which weights, the backward of the operator just run belongs to."""
        weights = {
            operand.untyped_storage().data_ptr()
            for operand in args
            if isinstance(operand, torch.Tensor) and operand.ndim > 1 and site.holds_weight(operand)
        }
        sequence = torch.autograd._get_sequence_nr() - 1
        self._forward[sequence] = (site.layer, site.precision, weights, site.module)


def _clean(name: str) -> str:
    """A layer's name without the wrappers of DDP and torch.compile."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _precision(module: nn.Module | None) -> Precision | None:
    """Bits that quant.autocast gives the layer's operands; None outside of it.

    A context can only be active if its module has been imported, so the profiler need not import it.
    """
    quant = sys.modules.get("dgcomp.quant.autocast")
    recipe = quant.current_recipe(getattr(module, "weight", None)) if quant is not None else None
    if recipe is None:
        return None
    return Precision(
        recipe.weights or 32, recipe.activations or 32, recipe.weight_scale_bits, recipe.activation_scale_bits
    )
