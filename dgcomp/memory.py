"""What a rank remembers between steps: momentum u and residual v of every parameter.

Two kinds of parameters are kept apart. *Sparse* ones (two or more dimensions) send a few entries a step; their u and
v differ between ranks, and what is conserved is the mean over the ranks. *Leftovers* (biases, norms, scalars) are sent
whole in every step; their u is the same on all ranks and v holds only the rounding error of the wire.

Each kind lives in one flat fp32 tensor in model order, so that a position in the flat tensor names one entry of one
parameter. Checkpoints are keyed by parameter name: DDP's buckets, which it rebuilds after the first step, never
appear here.
"""

import contextlib
import mmap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# u and v are walked through in every step, and their sent entries picked at random: with pages of 4 KiB a good part of
# that time goes into address translation (measured: 15 % of a step).
HUGE_PAGES_MIN_NUMEL = 1 << 20


@dataclass(frozen=True)
class ParameterSettings:
    """Momentum, Nesterov form and weight decay of one parameter, as its optimizer group gave them."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Slot:
    """Place of one parameter in the flat tensor of its kind."""

    name: str
    parameter: Tensor
    settings: ParameterSettings
    offset: int

    @property
    def local(self) -> Tensor:
        """What this rank holds of the parameter: all of it, or its shard."""
        return local_part(self.parameter)

    @cached_property
    def numel(self) -> int:
        """Number of elements that this rank holds."""
        return self.local.numel()

    @property
    def flat_parameter(self) -> Tensor:
        """The parameter's values as a flat view in memory order, the order in which DDP lays out its gradient."""
        return flat_view(self.local)

    def view(self, flat: Tensor) -> Tensor:
        """This parameter's part of a flat tensor."""
        return flat[self.offset : self.offset + self.numel]


class GradientMemory:
    """Momentum u, residual v and selection thresholds of all trainable parameters of a model.

    Attributes
    ----------
    sparse, leftover : tuples of Slot, in model order
    momentum, residual : Tensor fp32, shape (elements of the sparse slots,)
        `momentum` is None when no parameter has any (plain SGD, error feedback).
    leftover_momentum, leftover_residual : the same for the leftovers
    thresholds : list of float, one for each sparse slot
        Magnitude at which the next selection starts its search; a hint, never a result.
    learning_rates : list of float, one for each sparse slot
        Learning rate that v is expressed in: v times it is what the parameters have still to move. 0 while unknown.
    replicated : bool
        True while u is known to be the same on all ranks and v to be zero or a rounding error.
    residual_in_gradient : bool
        True while v of the sparse slots holds the rounding error of a dense stage, which belongs to the next
        gradient (before the momentum) and not to the next update.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], settings: Mapping[str, ParameterSettings]):
        named = list(parameters)
        device = named[0][1].device if named else torch.device("cpu")
        self.sparse = _lay_out([(n, p) for n, p in named if p.dim() >= 2], settings)
        self.leftover = _lay_out([(n, p) for n, p in named if p.dim() < 2], settings)
        has_momentum = any(slot.settings.momentum for slot in self.slots)
        self.momentum = _zeros(self.sparse, device) if has_momentum else None
        self.residual = _zeros(self.sparse, device)
        self.leftover_momentum = _zeros(self.leftover, device) if has_momentum else None
        self.leftover_residual = _zeros(self.leftover, device)
        self.thresholds = [float("inf")] * len(self.sparse)
        self.learning_rates = [0.0] * len(self.sparse)
        self.replicated = True
        self.residual_in_gradient = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, sparse ones first."""
        return self.sparse + self.leftover

    @cached_property
    def layout_tag(self) -> int:
        """32-bit mark of the parameters' names and shapes, the same on all ranks that train the same model."""
        layout = [(slot.name, tuple(slot.local.shape)) for slot in self.slots]
        return zlib.crc32(repr(layout).encode())

    @property
    def sparse_numel(self) -> int:
        """Elements of all sparse parameters: the position space of a message."""
        return self.residual.numel()

    @property
    def leftover_numel(self) -> int:
        """Elements of all leftovers."""
        return self.leftover_residual.numel()

    def momentum_of(self, slot: Slot) -> Tensor | None:
        """u of one parameter, a flat view, or None where the model has no momentum."""
        flat = self.momentum if slot.parameter.dim() >= 2 else self.leftover_momentum
        return None if flat is None else slot.view(flat)

    def residual_of(self, slot: Slot) -> Tensor:
        """v of one parameter, a flat view."""
        return slot.view(self.residual if slot.parameter.dim() >= 2 else self.leftover_residual)

    def follow(self, learning_rates: Sequence[float]) -> None:
        """Express v in new learning rates, one for each sparse slot, so that their product stays what it was.

        A rate of 0 leaves a slot as it is: nothing can be delivered in such a step.
        """
        for index, (slot, new) in enumerate(zip(self.sparse, learning_rates, strict=True)):
            old = self.learning_rates[index]
            if new > 0.0 and old != new:
                if old > 0.0:
                    self.residual_of(slot).mul_(old / new)
                    self.thresholds[index] *= old / new
                self.learning_rates[index] = new

    def average(self, group: dist.ProcessGroup | None) -> None:
        """Give every rank the mean u and v of the sparse slots; the means themselves stay. Collective."""
        world_size = dist.get_world_size(group)
        for flat in (self.momentum, self.residual):
            if flat is not None:
                dist.all_reduce(flat, group=group)
                flat.div_(world_size)

    def state_dict(self, group: dist.ProcessGroup | None) -> dict[str, Any]:
        """Own u and v and their means over the ranks, by parameter name. Collective: all ranks must call it."""
        own = {key: self._by_name(flat, key) for key, flat in self._flat_tensors().items()}
        mean = {}
        world_size = dist.get_world_size(group)
        for key, flat in self._flat_tensors().items():
            total = flat.clone()
            dist.all_reduce(total, group=group)
            mean[key] = self._by_name(total.div_(world_size), key)
        return {
            "own": own,
            "mean": mean,
            "thresholds": {slot.name: value for slot, value in zip(self.sparse, self.thresholds, strict=True)},
            "learning_rates": {slot.name: value for slot, value in zip(self.sparse, self.learning_rates, strict=True)},
            "replicated": self.replicated,
            "residual_in_gradient": self.residual_in_gradient,
        }

    def load_state_dict(self, saved: Mapping[str, Any], *, exact: bool) -> None:
        """Take u and v from a checkpoint: this rank's own ones if `exact`, otherwise the means of all ranks.

        The checkpoint must have passed `complaint`.
        """
        tensors = saved["own" if exact else "mean"]
        for key, flat in self._flat_tensors().items():
            for slot in self._slots_of(key):
                shaped_like(slot.view(flat), slot.local).copy_(tensors[key][slot.name])
        self.thresholds = [float(saved["thresholds"][slot.name]) for slot in self.sparse]
        self.learning_rates = [float(saved["learning_rates"][slot.name]) for slot in self.sparse]
        self.replicated = bool(saved["replicated"])
        self.residual_in_gradient = bool(saved["residual_in_gradient"])

    def complaint(self, saved: Mapping[str, Any]) -> str | None:
        """One sentence on what keeps a checkpoint from being loaded into this memory, or None."""
        for tensors in (saved["own"], saved["mean"]):
            own = self._flat_tensors()
            if tensors.keys() != own.keys():
                return (
                    f"the checkpoint holds {sorted(tensors)} but this state keeps {sorted(own)}; "
                    "give attach an optimizer with the same kind of momentum as the saved run's"
                )
            for key in own:
                if misfit := self._misfit(key, tensors[key]):
                    return misfit
        return None

    def take_residual(self, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
        """Mean residual over the ranks by parameter name; v is zero afterwards. Collective."""
        for flat in (self.residual, self.leftover_residual):
            dist.all_reduce(flat, group=group)
            flat.div_(dist.get_world_size(group))
        taken = self._by_name(self.residual, "residual") | self._by_name(self.leftover_residual, "leftover_residual")
        self.residual.zero_()
        self.leftover_residual.zero_()
        self.residual_in_gradient = False
        return taken

    def _flat_tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the memory, by the names that checkpoints use."""
        named = {
            "momentum": self.momentum,
            "residual": self.residual,
            "leftover_momentum": self.leftover_momentum,
            "leftover_residual": self.leftover_residual,
        }
        return {key: flat for key, flat in named.items() if flat is not None}

    def _slots_of(self, key: str) -> tuple[Slot, ...]:
        return self.leftover if key.startswith("leftover") else self.sparse

    def _by_name(self, flat: Tensor, key: str) -> dict[str, Tensor]:
        return {s.name: shaped_like(s.view(flat), s.local).clone().contiguous() for s in self._slots_of(key)}

    def _misfit(self, key: str, tensors: Mapping[str, Tensor]) -> str | None:
        expected = {slot.name: tuple(slot.local.shape) for slot in self._slots_of(key)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if not different:
            return None
        name = different[0]
        return (
            f"the checkpoint is of another model: parameter {name!r} has shape {found.get(name, 'none')} there and "
            f"{expected.get(name, 'none')} here ({len(different)} parameters differ); load this model's own"
        )


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor (DTensor), sharing its memory, or the tensor itself; detached."""
    to_local = getattr(tensor, "to_local", None)
    return tensor.detach() if to_local is None else to_local().detach()


def flat_view(tensor: Tensor) -> Tensor:
    """View of a dense tensor as one dimension in memory order, whatever its memory format."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def flat_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor` as one dimension in the memory order of `parameter`; a copy where its own order is another."""
    if tensor.stride() != parameter.stride():
        tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    return flat_view(tensor)


def shaped_like(flat: Tensor, parameter: Tensor) -> Tensor:
    """View of a flat tensor with the shape and the memory order of `parameter`."""
    return flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset())


def check_parameters(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError, naming the parameter, for complex or integer ones, gaps in memory, several devices."""
    device = None
    for name, parameter in parameters:
        device = device or parameter.device
        local = local_part(parameter)
        if parameter.device != device:
            raise ValueError(f"parameter {name!r} is on {parameter.device}, others on {device}; put them on one device")
        if not parameter.is_floating_point():
            raise ValueError(
                f"parameter {name!r} has dtype {parameter.dtype}; only real floating-point ones are served"
            )
        if torch.empty_like(local, memory_format=torch.preserve_format).stride() != local.stride():
            raise ValueError(f"parameter {name!r} has gaps or overlaps in memory; make it contiguous")


def _lay_out(named: list[tuple[str, Tensor]], settings: Mapping[str, ParameterSettings]) -> tuple[Slot, ...]:
    slots, offset = [], 0
    for name, parameter in named:
        slots.append(Slot(name, parameter, settings[name], offset))
        offset += slots[-1].numel
    return tuple(slots)


def _zeros(slots: tuple[Slot, ...], device: torch.device) -> Tensor:
    numel = sum(slot.numel for slot in slots)
    if device.type != "cpu" or numel < HUGE_PAGES_MIN_NUMEL or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(numel, dtype=torch.float32, device=device)
    memory = mmap.mmap(-1, 4 * numel, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: slower, not wrong
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)
