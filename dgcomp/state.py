"""DGCState: what the hook keeps of a model between steps, and the life of one step.

DDP hands over its gradients bucket by bucket. Dense stages start to travel at once, as without the hook. A sparse
step waits for the last bucket and then handles all tensors together, for three reasons: a non-finite gradient
anywhere must keep every rank from accumulating anything; clipping needs the norm over all tensors; and one packed
message costs one latency where one for each bucket would cost many. What waits is a few kilobytes, so that there is
next to nothing to hide behind the backward pass.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgcomp import kernels
from dgcomp.config import DGCConfig
from dgcomp.errors import meet, raise_if_different, raise_together
from dgcomp.exchange import NodeGroups, Regions, node_groups
from dgcomp.exchange.auto import AutoExchange
from dgcomp.memory import GradientMemory, ParameterSettings, check_parameters, flat_view
from dgcomp.passes import Passes
from dgcomp.reduce import Report, Step, reduce_sparse
from dgcomp.reduce_dense import DensePart, finish_dense, ring_bytes, start_dense
from dgcomp.replicas import check_replicas
from dgcomp.schedule import density_at
from dgcomp.sparse_step import SparseStep
from dgcomp.telemetry import Counters

STATE_VERSION = 1
STATE_KEYS = {"version", "memory", "step", "rank", "world_size", "regions"}


class DGCState:
    """State of the compressor for one DDP model; `dgcomp.attach` makes one and registers the hook.

    By hand: `state = DGCState(ddp_model, config)`, then `ddp_model.register_comm_hook(state, dgcomp.dgc_hook)`, with
    an optimizer that has neither momentum nor weight decay of its own.

    Parameters
    ----------
    model : DistributedDataParallel
    config : DGCConfig, optional
    settings : mapping from parameter name to ParameterSettings, optional
        Momentum, Nesterov form and weight decay by parameter; by default the config's for all.
    optimizer : torch.optim.Optimizer, optional
        Lets the state skip an update whose gradients were not finite, tell several backward passes of one step from
        several steps, and apply what flush() delivers.
    grad_scaler : torch.amp.GradScaler, optional
        The scaler that multiplies the loss; u and v stay in true units while its scale moves.

    Raises
    ------
    ValueError
        On every rank alike, if a parameter cannot be served or config or parameters differ between the ranks.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        config: DGCConfig | None = None,
        *,
        settings: Mapping[str, ParameterSettings] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        grad_scaler: Any = None,
    ):
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(f"model must be a DistributedDataParallel, got {type(model).__name__}; wrap it first")
        self.config = config or DGCConfig()
        self.group: dist.ProcessGroup | None = model.process_group
        self.grad_scaler = grad_scaler
        self.optimizer = optimizer
        self._applies_updates = type(optimizer) is torch.optim.SGD and self.config.mode != "error_feedback"
        self.changes: list[str] = []
        self.counters = Counters()

        named = trainable_parameters(model)
        check_parameters(named)
        default = ParameterSettings(
            self.config.momentum or 0.0, bool(self.config.nesterov), self.config.weight_decay or 0.0
        )
        self.memory = GradientMemory(named, settings or {name: default for name, _ in named})
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named}
        self._may_skip = bool(model.find_unused_parameters or getattr(model, "static_graph", False))
        self._step: Step | None = None
        self._buffers: list[Tensor] = []
        self._futures: list[torch.futures.Future[Tensor]] = []
        self._gradients: dict[str, Tensor] = {}
        self._dense_parts: list[DensePart] = []
        self._node_sums: list[Any] = []
        self._is_finite = True
        self._regions = Regions()
        self._nodes = self._make_nodes()

        raise_if_different(_digest(self.config.to_dict()), "the DGCConfigs", group=self.group, device=self._device)
        raise_if_different(self.memory.layout_tag, "parameter names or shapes", group=self.group, device=self._device)
        check_replicas(self.memory.slots, self.group)
        self._auto = self._make_auto() if self.config.exchange == "auto" else None
        self._passes = Passes(model, self._names, optimizer, is_bucket_view=bool(model.gradient_as_bucket_view))
        # After Passes: what that leaves out or puts back decides what this finds. CPU: on a GPU the optimizer's pass is
        # cheap and looking at samples would wait for the device.
        is_served = type(optimizer) is torch.optim.SGD and self._applies_updates and self._device.type == "cpu"
        self._sparse_step = SparseStep(optimizer) if is_served else None

    @property
    def step(self) -> int:
        """Optimizer steps that have been exchanged; drives the warm-up, and a skipped step does not count."""
        return self.counters.steps

    @property
    def world_size(self) -> int:
        """Ranks that exchange gradients."""
        return dist.get_world_size(self.group)

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
        counters, memory = self.counters, self.memory
        return {
            "steps": counters.steps,
            "nonfinite_steps": counters.nonfinite_steps,
            "exchange": "two_level" if self._nodes else counters.last_exchange,
            "density": counters.last.get("density", self.config.density),
            "bytes_sent": counters.bytes_sent,
            "bytes_received": counters.network_bytes_received,
            "bytes_dense": counters.bytes_dense,
            "network_bytes_sent": counters.network_bytes_sent,
            "network_bytes_dense": counters.network_bytes_dense,
            "sparse_bytes_sent": counters.sparse_bytes_sent,
            "sparse_bytes_dense": counters.sparse_bytes_dense,
            "leftover_bytes_sent": counters.leftover_bytes_sent,
            "messages": counters.messages,
            "last_step": dict(counters.last),
            "residual_norm": float(torch.linalg.vector_norm(memory.residual)),
            "momentum_norm": 0.0 if memory.momentum is None else float(torch.linalg.vector_norm(memory.momentum)),
            "milliseconds": {name: value / max(1, counters.exchanges) for name, value in counters.milliseconds.items()},
        }

    def close(self) -> None:
        """Take the state's hooks off the model and the optimizer; a communication hook stays where it is."""
        self._passes.close()
        if self._sparse_step is not None:
            self._sparse_step.close()

    def add_bucket(self, bucket: dist.GradBucket, future: torch.futures.Future[Tensor]) -> None:
        """Take one bucket of the current backward pass; the last one completes the step and all futures."""
        if self._step is None:
            self._begin_step()
        assert self._step is not None
        buffer = bucket.buffer()
        gradients = {
            self._names[parameter]: flat_view(gradient)
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True)
        }
        self._buffers.append(buffer)
        self._futures.append(future)
        self._gradients |= gradients
        if self._step.is_dense:
            self._dense_parts.append(start_dense(self.memory, gradients, buffer, self._step, self.group))
        else:
            # Here, while the bucket is still in the processor's cache, and not in a pass of its own at the end.
            self._is_finite = self._is_finite and kernels.is_finite(buffer)
        if self._nodes and not self._step.is_dense:
            self._node_sums.append(dist.all_reduce(buffer, group=self._nodes.intra, async_op=True))
        if bucket.is_last():
            self._finish_step()

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
            raise ValueError(f"ranks_per_node={ranks_per_node} needs a model on the default process group")
        return node_groups(ranks_per_node)

    def _begin_step(self) -> None:
        self._check_optimizer()
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
            may_skip_parameters=self._may_skip,
        )

    def _learning_rates(self) -> tuple[float, ...] | None:
        """The rate of each sparse slot, where the optimizer is SGD and applies the hook's update as it is."""
        if not self._applies_updates or not self.config.keep_learning_rate:
            return None
        assert self.optimizer is not None
        rates = {p: float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        return tuple(rates.get(slot.parameter, 0.0) for slot in self.memory.sparse)

    def _exchange_at(self, step: int, density: float) -> str:
        if step < self.config.warmup_steps and self.config.warmup == "dense":
            return "dense_bf16"
        if self._auto is None:
            return self.config.exchange
        method = self._auto.name if density == self.config.density else self._auto.name_at(density)
        return "dense" if method == "dense_fp32" else method

    def _finish_step(self) -> None:
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
        if self._sparse_step is not None:
            self._sparse_step.expect({} if self._passes.earlier else self._by_parameter(report.delivered))
        if report.is_finite:
            self._passes.add_earlier(self._gradients)
        else:
            self._discard(step)
        self._count(step, report)
        if self._auto and step.density == self.config.density < 1.0:
            self._auto.observe(sum(report.milliseconds.values()) * 1e-3)
        for future, buffer in zip(self._futures, self._buffers, strict=True):
            future.set_result(buffer)
        self._step = None
        self._passes.note_delivery()
        self._buffers, self._futures, self._gradients = [], [], {}
        self._dense_parts, self._node_sums, self._is_finite = [], [], True

    def _by_parameter(self, by_name: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
        return {slot.parameter: by_name[slot.name] for slot in self.memory.slots if slot.name in by_name}

    def _discard(self, step: Step) -> None:
        """Answer a non-finite step: the scaler must see it and skip; without one the update is left out."""
        is_scaled = self.grad_scaler is not None and self.grad_scaler.is_enabled()
        for buffer in self._buffers:
            buffer.fill_(float("inf") if is_scaled else 0.0)
        earlier = self._passes.earlier
        if earlier and is_scaled:
            # The scaler will drop what earlier passes of this step delivered: keep it for the next one.
            for slot in self.memory.slots:
                if slot.name in earlier:
                    self.memory.residual_of(slot).add_(flat_view(earlier[slot.name]), alpha=1.0 / step.loss_scale)
            self._passes.earlier = {}
        elif earlier:
            self._passes.add_earlier(self._gradients)
        else:
            self._passes.skip_update = not is_scaled

    def _count(self, step: Step, report: Report) -> None:
        counters, memory = self.counters, self.memory
        counters.messages += report.messages
        counters.exchanges += 1
        counters.add_phases(report.milliseconds)
        counters.last_exchange = step.exchange
        if not report.is_finite:
            counters.nonfinite_steps += 1
            return
        counters.steps += not step.is_additional
        dense = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)
        sparse_dense = sum(slot.numel * slot.parameter.element_size() for slot in memory.sparse)
        counters.bytes_dense += dense
        counters.sparse_bytes_dense += sparse_dense
        counters.sparse_bytes_sent += report.sparse_bytes_sent
        counters.leftover_bytes_sent += report.leftover_bytes_sent
        counters.bytes_sent += report.sparse_bytes_sent + report.leftover_bytes_sent
        counters.network_bytes_sent += report.network_bytes_sent
        counters.network_bytes_received += report.network_bytes_received
        counters.network_bytes_dense += ring_bytes(dense, self.world_size)
        counters.last = {
            "density": report.sent_entries / max(1, memory.sparse_numel),
            "bytes_sent": report.sparse_bytes_sent + report.leftover_bytes_sent,
            "bytes_dense": dense,
            "sparse_bytes_sent": report.sparse_bytes_sent,
            "sparse_bytes_dense": sparse_dense,
            "messages": report.messages,
        }

    def _check_optimizer(self) -> None:
        """Refuse an optimizer that got momentum or weight decay back, which would then be applied twice."""
        if self.optimizer is None or all(slot.settings == ParameterSettings() for slot in self.memory.slots):
            return
        for index, group in enumerate(self.optimizer.param_groups):
            if any(parameter in self._names for parameter in group["params"]) and (
                group.get("momentum") or group.get("weight_decay")
            ):
                raise RuntimeError(
                    f"optimizer group {index} has momentum {group.get('momentum')} and weight decay "
                    f"{group.get('weight_decay')} again, which the hook already applies; leave both at 0 after attach "
                    "(a scheduler such as OneCycleLR needs cycle_momentum=False)"
                )

    @torch.no_grad()
    def _apply(self, update: Mapping[str, Tensor]) -> None:
        """Apply what flush() takes out: at its own learning rate for SGD, as a gradient for other optimizers."""
        assert self.optimizer is not None
        if self._applies_updates:
            rates = {p: float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
            kept = {slot.name: rate for slot, rate in zip(self.memory.sparse, self.memory.learning_rates, strict=True)}
            for parameter, name in self._names.items():
                rate = kept.get(name) or rates.get(parameter, 0.0)
                parameter.sub_(update[name].to(parameter.dtype), alpha=rate)
            return
        before = {parameter: parameter.grad for parameter in self._names}
        for parameter, name in self._names.items():
            parameter.grad = update[name].to(parameter.dtype)
        self.optimizer.step()
        for parameter, grad in before.items():
            parameter.grad = grad

    def _complaint(self, state: Any) -> str | None:
        """What is wrong with a state that is to be loaded, or None."""
        if not isinstance(state, Mapping) or not state.keys() >= STATE_KEYS:
            return "state must be what DGCState.state_dict() returned; load the file that holds it"
        if state["version"] != STATE_VERSION:
            return f"the state has version {state['version']}, this dgcomp reads version {STATE_VERSION}"
        return self.memory.complaint(state["memory"])


def trainable_parameters(model: DistributedDataParallel) -> list[tuple[str, nn.Parameter]]:
    """Names (without DDP's prefix) and parameters that DDP puts into its buckets; tied ones appear once."""
    ignored = set(getattr(model, "parameters_to_ignore", ()))
    named: Iterable[tuple[str, nn.Parameter]] = model.module.named_parameters()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad and name not in ignored]


def _digest(value: Any) -> int:
    return zlib.crc32(repr(value).encode())
