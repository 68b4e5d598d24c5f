"""DeepSpeed: one call after `deepspeed.initialize`, at ZeRO stages 0 and 1.

DeepSpeed has no hook for gradients. What is replaced, on this engine alone, is `engine.allreduce_gradients`, which it
calls after every backward: at the boundary of a gradient accumulation all gradients of the step are there, and the
update takes their place. It is handed over in fp32 even where parameters and gradients are fp16: an entry that has
been gathered over many steps and multiplied by the loss scale would overflow there.

At stage 1 the optimizer's state stays partitioned; u and v are whole on every rank, since each rank has residuals of
its own for every parameter.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgcomp.compressor import Compressor
from dgcomp.config import DGCConfig
from dgcomp.errors import complaint_of, raise_together
from dgcomp.integrations.files import load_own, save_own
from dgcomp.memory import flat_like, shaped_like
from dgcomp.reduce import is_used
from dgcomp.takeover import OptimizerGroup, check_modules

FOLDER = "dgcomp"


def attach(engine: Any, config: DGCConfig | None = None) -> "DeepSpeedState":
    """Compress the gradient exchange of a DeepSpeed engine; collective: call it on every rank.

    Call it right after `deepspeed.initialize`, before load_checkpoint. Gradient accumulation, fp16 with loss scaling
    and bf16 work as before. save_checkpoint writes the residuals into the folder `dgcomp` of the checkpoint, one file
    for each rank, and load_checkpoint reads them.

    Parameters
    ----------
    engine : DeepSpeedEngine at ZeRO stage 0 or 1
    config : DGCConfig, optional

    Raises
    ------
    ValueError
        On every rank alike, with the setting to change: ZeRO stages 2 and 3, offloading, pipelines, experts,
        tensor parallelism, overlap_comm, gradient_clipping, or bf16 with accumulation in fp32.
    """
    config = config or DGCConfig()
    complaint = complaint_of(lambda: _check(engine))
    raise_together(complaint, group=engine.data_parallel_group, device=engine.device)
    state = DeepSpeedState.attached(
        engine.module.named_parameters(),
        engine.basic_optimizer,
        config,
        group=engine.data_parallel_group,
        groups=lambda: _groups(engine),
        grad_scaler=_scaler(engine),
        engine=engine,
    )
    state.replace_reduction()
    return state


class DeepSpeedState(Compressor):
    """The compressor of one engine."""

    def __init__(self, parameters: Any, config: DGCConfig | None = None, *, engine: Any, **options: Any):
        super().__init__(parameters, config, **options)
        self._engine = engine
        self._zero = engine.optimizer if engine.zero_optimization_stage() == 1 else None
        self._skips_update = False

    def replace_reduction(self) -> None:
        """Put this exchange in the place of the engine's, and the residuals into its checkpoints."""
        engine = self._engine
        save, load = engine.save_checkpoint, engine.load_checkpoint

        def save_checkpoint(save_dir: Any, tag: Any = None, *args: Any, **options: Any) -> Any:
            tag = str(tag or f"global_step{engine.global_steps}")
            save_own(self, Path(save_dir) / tag / FOLDER)  # first: DeepSpeed's last act makes the checkpoint `latest`
            return save(save_dir, tag, *args, **options)

        def load_checkpoint(load_dir: Any, *args: Any, **options: Any) -> Any:
            loaded = load(load_dir, *args, **options)
            if loaded[0] is not None and not options.get("load_module_only"):
                load_own(self, Path(loaded[0]).parent / FOLDER)
            return loaded

        engine.save_checkpoint, engine.load_checkpoint = save_checkpoint, load_checkpoint
        engine.allreduce_gradients = self.exchange
        if self._zero is not None:
            # Leaves the gradients where they are until the boundary, as in engine.coalesce_grad_reduction().
            self._zero._coalesce_grad_reduction = True
            self._zero.check_grad_overflow = True  # how a non-finite step is skipped, with bf16 and fp32 as well
        if engine.optimizer is engine.basic_optimizer:
            engine.optimizer.register_step_pre_hook(self._drop_update)
        else:
            self._follow_scale(engine.optimizer)

    def _follow_scale(self, optimizer: Any) -> None:
        """Keep DeepSpeed from dividing by a loss scale that it has just raised, which would halve this update."""
        update_scale = optimizer._update_scale

        def update_and_rescale(has_overflow: bool = False) -> None:
            before = optimizer.loss_scale
            update_scale(has_overflow)
            if not has_overflow and optimizer.loss_scale != before:
                for gradient in self._unscaled_gradients():
                    gradient.mul_(optimizer.loss_scale / before)

        optimizer._update_scale = update_and_rescale

    def _unscaled_gradients(self) -> Iterator[Tensor]:
        """The fp32 gradients that the engine's optimizer is about to divide by the loss scale."""
        if self._zero is not None:
            for parts in self._zero.averaged_gradients.values():
                yield from parts or ()
            return
        for members in self._engine.optimizer.fp32_groups:
            yield from (parameter.grad for parameter in members if parameter.grad is not None)

    @torch.no_grad()
    def exchange(self, bucket_size: int = 0) -> None:
        """What the engine calls in place of its own `allreduce_gradients`."""
        engine, zero = self._engine, self._zero
        is_boundary = engine.is_gradient_accumulation_boundary()
        if zero is not None:
            zero.set_gradient_accumulation_boundary(is_boundary)
            if zero.use_grad_accum_attribute:
                zero.fill_grad_accum_attribute()
        if not is_boundary:
            return
        gradients = {}
        for parameter, name in self._names.items():
            gradient = parameter.grad if zero is None else zero.get_gradient_for_reduction(parameter)
            # A parameter that this rank did not use has none.
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            gradients[name] = flat_like(gradient, parameter).float()
        self._skips_update = not self.reduce(gradients)
        self._deliver(gradients)

    def _deliver(self, update: Mapping[str, Tensor]) -> None:
        """Give the optimizer its gradients (flat fp32, by name)."""
        if self._zero is not None:
            self._deliver_to_zero(update)
            return
        for parameter, name in self._names.items():
            if parameter.grad is None and not is_used(update[name]):
                continue
            if parameter.dtype != torch.float32:
                parameter.grad = None
                parameter.grad_dtype = None  # any: the update stays in fp32
            parameter.grad = shaped_like(update[name], parameter)

    def _deliver_to_zero(self, update: Mapping[str, Tensor]) -> None:
        """Fill in this rank's part of each group, as the optimizer's own epilogue leaves it."""
        zero: Any = self._zero
        for index, members in enumerate(zero.params_in_partition):
            zero.all_grad_tensors[index] = [shaped_like(update[self._names[p]], p) for p in members]
            zero.averaged_gradients[index] = zero.get_flat_partition(
                members,
                zero.first_offset[index],
                zero.partition_size[index],
                dtype=torch.float32,
                device=self._device,
                param_group_idx=index,
                return_tensor_list=True,
            )
            zero.all_grad_tensors[index] = None
        for parameter in self._names:
            zero.clear_grad_attribute(parameter)

    def _drop_update(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        """Leave out a step whose gradients were not finite; the engine then counts it as an overflow."""
        optimizer.overflow = self._skips_update
        if self._skips_update:
            for parameter in self._names:
                parameter.grad = None

    def _apply(self, update: Mapping[str, Tensor]) -> None:
        """Apply what flush() takes out through the engine's optimizer, which holds the fp32 parameters."""
        scale = self.grad_scaler.get_scale() if self.grad_scaler is not None else 1.0
        rates = self._rates()
        kept = {slot.name: rate for slot, rate in zip(self.memory.sparse, self.memory.learning_rates, strict=True)}
        delivered = {}
        for parameter, name in self._names.items():
            rate = rates.get(parameter, 0.0)
            is_kept = self._applies_updates and kept.get(name) and rate
            factor = kept[name] / rate if is_kept else 1.0
            delivered[name] = flat_like(update[name], parameter).float() * (scale * factor)
        self._skips_update = False
        self._deliver(delivered)
        self._engine.optimizer.step()
        self._engine.optimizer.zero_grad()


class _EngineScaler:
    """An engine's loss scale, read as that of a torch GradScaler; a scale of 1 marks steps that are to be skipped."""

    def __init__(self, engine: Any):
        self._engine = engine

    def get_scale(self) -> float:
        return float(getattr(self._engine.optimizer, "loss_scale", 1.0))

    def is_enabled(self) -> bool:
        return True


def _scaler(engine: Any) -> Any:
    """Whoever skips the step when it sees an infinity; None for a plain torch optimizer, which skips nothing."""
    if engine.torch_autocast_z0_gradscaler is not None:
        return engine.torch_autocast_z0_gradscaler
    return None if engine.optimizer is engine.basic_optimizer else _EngineScaler(engine)


def _groups(engine: Any) -> Sequence[OptimizerGroup]:
    """The model's parameters with the options of their groups; the optimizer's own groups hold fp32 copies."""
    optimizer, plain = engine.optimizer, engine.basic_optimizer
    members = getattr(optimizer, "bit16_groups", None) or getattr(optimizer, "fp16_groups", None)
    members = members or [group["params"] for group in plain.param_groups]
    return [OptimizerGroup(list(own), group) for own, group in zip(members, plain.param_groups, strict=True)]


def _check(engine: Any) -> None:
    """Raise ValueError for what cannot be served, with the setting to change."""
    stage = int(engine.zero_optimization_stage())
    if stage > 1:
        raise ValueError(
            f'"zero_optimization": {{"stage": {stage}}} partitions gradients while backward runs, so that no rank ever '
            "has the gradient that DGC accumulates; use stage 0 or 1, or FSDP2 with dgcomp.integrations.fsdp"
        )
    kind = type(engine.optimizer).__name__
    unsupported = {
        '"zero_optimization": {"offload_optimizer"}': engine.zero_offload_optimizer() is not None,
        '"zero_optimization": {"overlap_comm": true}': stage == 1 and bool(engine.zero_overlap_comm()),
        '"gradient_clipping" above 0.0, its default, (use DGCConfig(clip_norm=...))': engine.gradient_clipping() > 0.0,
        "pipeline parallelism": bool(engine.pipeline_parallelism),
        "mixture of experts": bool(engine.has_moe_layers),
        "tensor parallelism": engine.mp_world_size > 1,
        'bf16 with "data_types": {"grad_accum_dtype": "fp32"} (use "bf16")': kind == "BF16_Optimizer",
        "the fused fp16 optimizer of stage 0 (use ZeRO stage 1)": kind == "FP16_Optimizer",
    }
    for setting, is_on in unsupported.items():
        if is_on:
            raise ValueError(f"DGC does not work with {setting}; switch it off")
    if stage == 1 and not hasattr(engine.optimizer, "_coalesce_grad_reduction"):
        raise ValueError(f"this DeepSpeed's {kind} is too old or too new; dgcomp was tested with 0.19.8")
    check_modules(engine.module)
    is_half = any(p.dtype != torch.float32 for p in engine.module.parameters())
    if stage == 0 and is_half and not hasattr(nn.Parameter, "grad_dtype"):
        raise ValueError("fp16 and bf16 at ZeRO stage 0 need torch 2.10 or newer; use stage 1")
