"""The ways to exchange gradients that launch/train.py can compare, behind one small class.

"Bytes sent" is what one rank hands to the exchange per step: the upload of one worker, as the paper counts it. A ring
all-reduce of n bytes moves 2 (N - 1) / N times as much over each rank's link, so the dense figures are not flattered.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import dgcomp
from dgcomp import LocalAdam
from launch.demo_like import DeMoLikeState, demo_like_hook
from launch.options import Options, UsageError

__all__ = ["Exchange", "build_exchange"]

ONE_BUCKET_MB = 1 << 20
"""a bucket that holds every model: torch's PowerSGD hook hangs on gloo with two or more, as it issues collectives
from callbacks, whose order differs between ranks; and our DeMo-like one knows only one"""


class Exchange:
    """A DDP-wrapped model with its exchange; this class itself is plain DDP or its fp16 hook.

    `warmup_steps` is the number of optimizer steps before the exchange reaches its steady state.
    """

    warmup_steps = 0
    clips_itself = False

    def __init__(self, ddp: DistributedDataParallel, bytes_per_value: int = 4) -> None:
        self.ddp = ddp
        self.num_values = sum(p.numel() for p in ddp.parameters() if p.requires_grad)
        self.num_matrix_values = sum(p.numel() for p in ddp.parameters() if p.requires_grad and p.ndim > 1)
        self._bytes_per_value = bytes_per_value
        self._num_steps = 0

    def count_step(self) -> None:
        """To be called once per optimizer step."""
        self._num_steps += 1

    def stats(self) -> dict[str, Any]:
        """Totals since the start: bytes_sent, bytes_dense, both also for tensors of two or more dimensions alone."""
        return {
            "bytes_sent": self._num_steps * self.num_values * self._bytes_per_value,
            "bytes_sent_matrices": self._num_steps * self.num_matrix_values * self._bytes_per_value,
            **self._dense(),
        }

    def _dense(self) -> dict[str, float]:
        return {
            "bytes_dense": self._num_steps * self.num_values * 4,
            "bytes_dense_matrices": self._num_steps * self.num_matrix_values * 4,
        }

    def flush(self) -> bool:
        """Apply what is still held back, on every rank; False where nothing ever is. Collective."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to go on; call it on every rank."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, or from another rank's where the number of ranks has changed."""


class PowerSGDExchange(Exchange):
    """torch's PowerSGD hook (Vogels et al., NeurIPS 2019): two dense steps, then low-rank factors of every matrix.

    After a resume the first two steps are dense again, because DDP lays its bucket out anew: not bit-exact.
    """

    warmup_steps = 2

    def __init__(self, ddp: DistributedDataParallel, rank: int) -> None:
        super().__init__(ddp)
        self._state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=rank, start_powerSGD_iter=self.warmup_steps
        )
        ddp.register_comm_hook(self._state, powerSGD_hook.powerSGD_hook)

    def stats(self) -> dict[str, Any]:
        num_dense_steps = min(self._num_steps, self.warmup_steps)
        compressed = 4 * self._state.total_numel_after_compression
        vectors = 4 * (self.num_values - self.num_matrix_values) * (self._num_steps - num_dense_steps)
        return {
            "bytes_sent": num_dense_steps * self.num_values * 4 + compressed,
            "bytes_sent_matrices": num_dense_steps * self.num_matrix_values * 4 + compressed - vectors,
            **self._dense(),
        }

    def state_dict(self) -> dict[str, Any]:
        names = ("error_dict", "p_memory_dict", "q_memory_dict")
        return {name: dict(getattr(self._state, name)) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, memory in state.items():
            setattr(self._state, name, memory)


class DeMoLikeExchange(Exchange):
    """Our reconstruction of DeMo; see `launch.demo_like`. A resumed run starts with an empty momentum."""

    clips_itself = True  # a sign has no norm to clip

    def __init__(self, ddp: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(ddp)
        if type(optimizer) is not torch.optim.SGD or any(group["momentum"] for group in optimizer.param_groups):
            raise UsageError("--compress demo-like takes the place of the momentum: give --model gpt --optimizer sgd")
        self._state = DeMoLikeState()
        ddp.register_comm_hook(self._state, demo_like_hook)

    def stats(self) -> dict[str, Any]:
        sent = self._state.bytes_sent
        share = self.num_matrix_values / self.num_values
        return {"bytes_sent": sent, "bytes_sent_matrices": sent * share, **self._dense()}


class DGCExchange(Exchange):
    """dgcomp's Deep Gradient Compression hook; SGD's momentum and weight decay move into it.

    With a LocalAdam it exchanges the directions of that, which nobody clips.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        optimizer: torch.optim.Optimizer,
        config: dgcomp.DGCConfig,
        local_adam: LocalAdam | None = None,
    ) -> None:
        super().__init__(ddp)
        self.clips_itself = config.clip_norm is not None or local_adam is not None
        self._local_adam = local_adam
        self.warmup_steps = config.warmup_steps
        self._state = dgcomp.attach(ddp, optimizer, config)

    def stats(self) -> dict[str, Any]:
        stats = self._state.stats()
        matrices = {
            "bytes_sent_matrices": stats.pop("sparse_bytes_sent"),
            "bytes_dense_matrices": stats.pop("sparse_bytes_dense"),
        }
        return {**stats, **matrices}

    def flush(self) -> bool:
        self._state.flush()
        return True

    def state_dict(self) -> dict[str, Any]:
        state = self._state.state_dict()
        return state if self._local_adam is None else {"dgc": state, "local_adam": self._local_adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._local_adam is None:
            self._state.load_state_dict(state)
        else:
            self._state.load_state_dict(state["dgc"])
            self._local_adam.load_state_dict(state["local_adam"])


def build_exchange(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Options,
    *,
    steps_per_epoch: int,
    clip_norm: float | None,
) -> Exchange:
    """Wrap the model in DDP with the exchange that the options name.

    Raises UsageError where the exchange refuses the optimizer or a value.
    """
    name = options.compress.compress
    device = next(model.parameters()).device
    ddp = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        bucket_cap_mb=ONE_BUCKET_MB if name in ("powersgd", "demo-like") else None,
        gradient_as_bucket_view=True,
    )
    if name == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return Exchange(ddp, bytes_per_value=2)
    if name == "powersgd":
        return PowerSGDExchange(ddp, options.compress.powersgd_rank)
    if name == "demo-like":
        return DeMoLikeExchange(ddp, optimizer)
    if name == "dgc":
        return _build_dgc(ddp, optimizer, options, steps_per_epoch, clip_norm)
    return Exchange(ddp)


def _build_dgc(
    ddp: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    options: Options,
    steps_per_epoch: int,
    clip_norm: float | None,
) -> Exchange:
    try:
        config = dgcomp.DGCConfig(
            density=options.compress.density,
            warmup_steps=round(options.compress.warmup_epochs * steps_per_epoch),
            warmup=options.compress.warmup,
            seed=options.train.seed,
            mode=options.compress.mode,
            momentum_masking=options.compress.masking == "on",
            keep_learning_rate=options.compress.late_rate == "keep",
            clip_norm=clip_norm if options.compress.clipping == "local" and not options.compress.local_adam else None,
            codec=options.compress.codec,
            leftover_codec=options.compress.leftover_codec,
            exchange=options.compress.exchange,
        )
        local_adam = LocalAdam(ddp.module.named_parameters()) if options.compress.local_adam else None
        return DGCExchange(ddp, optimizer, config, local_adam)
    except (TypeError, ValueError) as error:  # the config's or attach's own sentence
        raise UsageError(str(error)) from error
