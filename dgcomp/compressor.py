"""Compressor: what is kept of a model between steps, and the life of one step, for any trainer.

Whoever has all gradients of a step hands them to `reduce`. DDP hands them over one bucket after another, through
`DGCState` (state.py); dense stages then start to travel at once, as without the hook. A sparse step waits for the last
gradient and then handles all tensors together, for three reasons: a non-finite gradient anywhere must keep every rank
from accumulating anything; clipping needs the norm over all tensors; and one packed message costs one latency where
one for each bucket would cost many. What waits is a few kilobytes, so that there is next to nothing to hide behind the
backward pass.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp import kernels, takeover
from dgcomp.config import DGCConfig
from dgcomp.errors import complaint_of, meet, raise_if_different, raise_together
from dgcomp.exchange import NodeGroups, Regions, node_groups
from dgcomp.exchange.auto import AutoExchange
from dgcomp.memory import (
    GradientMemory,
    ParameterSettings,
    check_parameters,
    flat_like,
    local_part,
    shaped_like,
)
from dgcomp.passes import Passes
from dgcomp.reduce import Step, is_used, reduce_sparse
from dgcomp.reduce_dense import DensePart, finish_dense, pack, start_dense
from dgcomp.replicas import check_replicas
from dgcomp.schedule import density_at
from dgcomp.sparse_step import SparseStep
from dgcomp.stats import count_step, stats_of
from dgcomp.takeover import Named, OptimizerGroup
from dgcomp.telemetry import Counters

STATE_VERSION = 1
STATE_KEYS = {"version", "memory", "step", "rank", "world_size", "regions"}

C = TypeVar("C", bound="Compressor")


class Compressor:
    """Deep Gradient Compression of one model's gradients over one group of ranks.

    Parameters
    ----------
    parameters : sequence of (name, parameter)
        The trainable ones, each once; of a DTensor this rank's shard is served.
    config : DGCConfig, optional
    group : ProcessGroup, optional
        Ranks that exchange gradients; by default all. Every one of them holds the same parameters.
    settings : mapping from parameter name to ParameterSettings, optional
        Momentum, Nesterov form and weight decay by parameter; by default the config's for all.
    optimizer : torch.optim.Optimizer, optional
        Tells how its updates are made, and applies what flush() delivers.
    groups : function that returns a list of OptimizerGroup, optional
        Where the optimizer updates copies of the parameters: whose options belong to which parameters.
    grad_scaler : torch.amp.GradScaler, or what has its get_scale() and is_enabled(), optional
        The scaler that multiplies the loss; u and v stay in true units while its scale moves.
    shards : ProcessGroup, optional
        The ranks that hold the other shards of the parameters, where they are sharded.

    Raises
    ------
    ValueError
        On every rank alike, if a parameter cannot be served or config or parameters differ between the ranks.
    """

    def __init__(
        self,
        parameters: Named,
        config: DGCConfig | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        settings: Mapping[str, ParameterSettings] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        groups: Callable[[], Sequence[OptimizerGroup]] | None = None,
        grad_scaler: Any = None,
        shards: dist.ProcessGroup | None = None,
    ):
        self.config = config or DGCConfig()
        self.group = group
        self.shards = shards
        self.grad_scaler = grad_scaler
        self.optimizer = optimizer
        self.changes: list[str] = []
        self.counters = Counters()
        self._groups = groups or partial(takeover.groups_of, optimizer)
        self._applies_updates = takeover.uses_momentum_correction(optimizer, self.config)

        check_parameters(parameters)
        default = ParameterSettings(
            self.config.momentum or 0.0, bool(self.config.nesterov), self.config.weight_decay or 0.0
        )
        self.memory = GradientMemory(parameters, settings or {name: default for name, _ in parameters})
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in parameters}
        self._may_skip = True
        self._step: Step | None = None
        self._buffers: list[Tensor] = []
        self._gradients: dict[str, Tensor] = {}
        self._dense_parts: list[DensePart] = []
        self._node_sums: list[Any] = []
        self._is_finite = True
        self._regions = Regions()
        self._nodes = self._make_nodes()
        self._passes = Passes(None, self._names, None)
        self._sparse_step: SparseStep | None = None

        digest = zlib.crc32(repr(self.config.to_dict()).encode())
        raise_if_different(digest, "the DGCConfigs", group=self.group, device=self._device)
        raise_if_different(self.memory.layout_tag, "parameter names or shapes", group=self.group, device=self._device)
        check_replicas(self.memory.slots, self.group)
        self._auto = self._make_auto() if self.config.exchange == "auto" else None

    @classmethod
    def attached(
        cls: type[C],
        named: Iterable[tuple[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        config: DGCConfig | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        groups: Callable[[], Sequence[OptimizerGroup]] | None = None,
        **options: Any,
    ) -> C:
        """A compressor that has taken over an optimizer's momentum and weight decay, as `dgcomp.attach` does for DDP.

        `named` are a model's parameters (frozen ones are left out), `options` those of the constructor. Collective;
        raises ValueError on every rank of the group alike, before anything is changed.
        """
        config = config or DGCConfig()
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        groups = groups or partial(takeover.groups_of, optimizer)
        complaint = complaint_of(lambda: takeover.check(trained, optimizer, groups(), config))
        device = trained[0][1].device if trained else torch.device("cpu")
        raise_together(complaint, group=group, device=device)
        settings = takeover.settings_of(trained, optimizer, groups(), config)
        made = cls(trained, config, group=group, settings=settings, optimizer=optimizer, groups=groups, **options)
        made.changes += takeover.take_over(made.memory, optimizer, groups(), config)
        takeover.log_changes(made.changes, group)
        return made

    @property
    def step(self) -> int:
        """Optimizer steps that have been exchanged; drives the warm-up, and a skipped step does not count."""
        return self.counters.steps

    @property
    def world_size(self) -> int:
        """Ranks that exchange gradients."""
        return dist.get_world_size(self.group)

    def reduce(self, gradients: Mapping[str, Tensor]) -> bool:
        """Replace the gradients of one optimizer step by the shared update, in place; collective.

        gradients: of all parameters, by name, flat in the parameter's memory order (`dgcomp.memory.flat_like`),
        float32, bfloat16 or float16; zeros stand for a parameter that this rank did not use. Returns False if a
        gradient of any rank was not finite: then nothing is accumulated, all gradients are infinite where a
        grad_scaler is at work, else zero, and the optimizer's step must be left out.
        """
        self._begin_step()
        assert self._step is not None
        if not self._step.is_dense:
            for name, gradient in gradients.items():
                self._take({name: gradient}, gradient)
            return self._finish_step()
        packed = pack(gradients)
        for views, buffer in packed:
            self._take(views, buffer)
        is_finite = self._finish_step()
        for views, _ in packed:
            for name, view in views.items():
                gradients[name].copy_(view)
        return is_finite

    @torch.no_grad()
    def reduce_parameter_gradients(self) -> bool:
        """`reduce` for what stands in `.grad`; a parameter that no rank used keeps None there."""
        unused, gradients = [], {}
        for parameter, name in self._names.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                unused.append(parameter)
            gradients[name] = flat_like(local_part(parameter.grad), local_part(parameter))
        is_finite = self.reduce(gradients)
        for parameter, name in self._names.items():
            assert parameter.grad is not None
            local = local_part(parameter.grad)
            if local.stride() != local_part(parameter).stride():  # what was reduced is a copy
                local.copy_(shaped_like(gradients[name], local_part(parameter)))
        for parameter in unused:
            if not is_used(gradients[self._names[parameter]]):
                parameter.grad = None
        return is_finite

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain tensors and numbers. Collective: call it on every rank.

        Every rank gets its own exact u and v, and the means over the ranks. Save one file for each rank to resume
        exactly on as many ranks; any single one of the files resumes a run on another number of ranks, in which each
        new rank starts from the means: these are what the algorithm conserves.
        """
        meet("state_dict()", self.group)
        return {
            "version": STATE_VERSION,
            "world_size": self.world_size,
            "rank": dist.get_rank(self.group),
            "step": self.step,
            "config": self.config.to_dict(),
            "regions": self._regions.state_dict(),
            "memory": self.memory.state_dict(self.group),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict; collective: call it on every rank.

        Exact if every rank brings its own state of a run on as many ranks; otherwise all start from the means, which
        any one of the saved states holds. Raises ValueError on every rank alike if the state of any rank is of another
        model, of another version, or no state at all.
        """
        meet("load_state_dict()", self.group)
        complaint = self._complaint(state)
        raise_together(complaint, group=self.group, device=self._device)
        is_own = state["world_size"] == self.world_size and state["rank"] == dist.get_rank(self.group)
        agreed = torch.tensor([is_own], dtype=torch.uint8, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=self.group)
        self.memory.load_state_dict(state["memory"], exact=bool(agreed))
        self._regions.load_state_dict(state["regions"])
        self.counters.steps = int(state["step"])

    def flush(self) -> dict[str, Tensor]:
        """Send everything that is still held back, densely, and clear it; collective.

        Use it before evaluating, exporting or changing the method. With an attached optimizer the mean residual is
        applied to the parameters, without a new momentum step; in any case it is returned by parameter name, in the
        units of `.grad`.
        """
        meet("flush()", self.group)
        undelivered = self.memory.take_residual(self.group)
        self.counters.sparse_bytes_sent += 4 * self.memory.sparse_numel
        self.counters.leftover_bytes_sent += 4 * self.memory.leftover_numel
        self.counters.bytes_sent += 4 * (self.memory.sparse_numel + self.memory.leftover_numel)
        if self.optimizer is not None:
            self._apply(undelivered)
        return undelivered

    def stats(self) -> dict[str, Any]:
        """Counts since the start of the run (bytes of this rank) and figures of the last step.

        `bytes_sent` is what this rank contributed to the exchanges, `bytes_dense` the size of the gradients that dense
        DDP would have contributed: their quotient is the paper's compression ratio (section 3.1). `sparse_` counts
        tensors of two or more dimensions alone, `leftover_` the rest. `network_bytes_sent` and `_received` include
        what the collective passes on for others, `network_bytes_dense` what a dense ring all-reduce would have sent.
        """
        return stats_of(self.counters, self.memory, self.config.density, is_two_level=self._nodes is not None)

    def close(self) -> None:
        """Take the hooks off the model and the optimizer that watch the passes of a step."""
        self._passes.close()
        if self._sparse_step is not None:
            self._sparse_step.close()

    @property
    def _device(self) -> torch.device:
        return self.memory.residual.device

    def _make_auto(self) -> AutoExchange:
        value_format = self.config.codec.split("+")[0]
        return AutoExchange(
            max(1, self.memory.sparse_numel),
            self.config.density,
            self.group,
            codec="fp32" if value_format == "auto" else value_format,
            leftover_numel=self.memory.leftover_numel,
            leftover_codec=self.config.leftover_codec,
        )

    def _make_nodes(self) -> NodeGroups | None:
        ranks_per_node = self.config.ranks_per_node
        if ranks_per_node == 1:
            return None
        if self.world_size != dist.get_world_size():
            raise ValueError(f"ranks_per_node={ranks_per_node} needs the default process group")
        return node_groups(ranks_per_node)

    def _begin_step(self) -> None:
        if any(slot.settings != ParameterSettings() for slot in self.memory.slots):
            takeover.check_still_plain(self._groups(), self._names)
        if self.config.check_every and self.step % self.config.check_every == 0:
            check_replicas(self.memory.slots, self.group)
        scaler = self.grad_scaler
        density = density_at(self.step, self.config)
        self._step = Step(
            number=self.step,
            density=density,
            exchange=self._exchange_at(self.step, density),
            loss_scale=float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0,
            is_additional=self._passes.is_additional,
            learning_rates=self._learning_rates(),
            regions=self._regions,
            nodes=self._nodes,
            shards=self.shards,
            may_skip_parameters=self._may_skip,
        )

    def _take(self, gradients: Mapping[str, Tensor], buffer: Tensor) -> None:
        """Take gradients that are views of `buffer`: send them off in a dense step, else note them."""
        assert self._step is not None
        self._buffers.append(buffer)
        self._gradients |= gradients
        if self._step.is_dense:
            self._dense_parts.append(start_dense(self.memory, gradients, buffer, self._step, self.group))
            return
        # Here, while the buffer is still in the processor's cache, and not in a pass of its own at the end.
        self._is_finite = self._is_finite and kernels.is_finite(buffer)
        if self._nodes:
            self._node_sums.append(dist.all_reduce(buffer, group=self._nodes.intra, async_op=True))

    def _finish_step(self) -> bool:
        """Complete the step when all gradients are there, and tell whether they were finite."""
        step = self._step
        assert step is not None
        if step.is_dense:
            report = finish_dense(self.memory, self._dense_parts, step, self.config, self.group)
        else:
            for work, buffer in zip(self._node_sums, self._buffers, strict=False):
                work.wait()
                buffer.div_(self.config.ranks_per_node)
            report = reduce_sparse(
                self.memory, self._gradients, step, self.config, self.group, is_finite=self._is_finite
            )
        self._passes.note_delivery()
        if self._sparse_step is not None:
            self._sparse_step.expect({} if self._passes.earlier else self._by_parameter(report.delivered))
        if report.is_finite:
            self._passes.add_earlier(self._gradients)
        else:
            self._discard(step)
        dense_bytes = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)
        count_step(self.counters, self.memory, step, report, dense_bytes, self.world_size)
        if self._auto and step.density == self.config.density < 1.0:
            self._auto.observe(sum(report.milliseconds.values()) * 1e-3)
        self._forget_step()
        return report.is_finite

    def _forget_step(self) -> None:
        """Drop what was taken for a step, complete or not."""
        self._step = None
        self._buffers, self._gradients = [], {}
        self._dense_parts, self._node_sums, self._is_finite = [], [], True

    def _by_parameter(self, by_name: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
        return {slot.parameter: by_name[slot.name] for slot in self.memory.slots if slot.name in by_name}

    def _discard(self, step: Step) -> None:
        """Answer a non-finite step: the scaler must see it and skip; without one the update is left out."""
        is_scaled = self.grad_scaler is not None and self.grad_scaler.is_enabled()
        for buffer in self._buffers:
            buffer.fill_(float("inf") if is_scaled else 0.0)
        if is_scaled:
            self._passes.keep_earlier(self.memory, step.loss_scale)
        elif self._passes.earlier:
            self._passes.add_earlier(self._gradients)
        else:
            self._passes.skip_update = True

    def _rates(self) -> dict[Tensor, float]:
        return {p: float(group.options["lr"]) for group in self._groups() for p in group.parameters}

    def _learning_rates(self) -> tuple[float, ...] | None:
        """The rate of each sparse slot, where the optimizer is SGD and applies the hook's update as it is."""
        if not self._applies_updates or not self.config.keep_learning_rate:
            return None
        rates = self._rates()
        return tuple(rates.get(slot.parameter, 0.0) for slot in self.memory.sparse)

    def _exchange_at(self, step: int, density: float) -> str:
        if step < self.config.warmup_steps and self.config.warmup == "dense":
            return "dense_bf16"
        if self._auto is None:
            return self.config.exchange
        method = self._auto.name if density == self.config.density else self._auto.name_at(density)
        return "dense" if method == "dense_fp32" else method

    def _apply(self, update: Mapping[str, Tensor]) -> None:
        """Apply what flush() takes out: at its own learning rate for SGD, as a gradient for other optimizers."""
        assert self.optimizer is not None
        if self._applies_updates:
            takeover.apply_at_kept_rates(self.memory, update, self._rates())
        else:
            takeover.apply_as_gradient(self.optimizer, self.memory, update)

    def _complaint(self, state: Any) -> str | None:
        """What is wrong with a state that is to be loaded, or None."""
        if not isinstance(state, Mapping) or not state.keys() >= STATE_KEYS:
            return "state must be what DGCState.state_dict() returned; load the file that holds it"
        if state["version"] != STATE_VERSION:
            return f"the state has version {state['version']}, this dgcomp reads version {STATE_VERSION}"
        return self.memory.complaint(state["memory"])
