"""The gradient exchanges that are compared: each takes a model and returns it wrapped, with its optimizer.

Peers are torch's own hooks where torch has them. `topk_pairs` is the textbook sparsifier as people write it:
torch.topk over each bucket with error feedback, 32-bit values and 32-bit indices, one all-gather.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

Wrapped = tuple[DistributedDataParallel, torch.optim.Optimizer]

MOMENTUM = 0.9
DENSITY = 0.001
ONE_BUCKET_MB = 4096


def wrap(model: nn.Module, bucket_cap_mb: int | None) -> DistributedDataParallel:
    # Views: without them DDP copies every gradient once more, for every method alike. No first broadcast: the ranks
    # start alike, and on a slow link it takes longer than the measurement.
    return DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb, gradient_as_bucket_view=True, init_sync=False)


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)


def ddp(bucket_cap_mb: int | None) -> Callable[[nn.Module, float], Wrapped]:
    """Plain DDP: fp32 ring all-reduce for each bucket."""
    return lambda model, lr: (wrap(model, bucket_cap_mb), sgd(model, lr))


def hooked(hook: Callable[[Any, Any], Any]) -> Callable[[nn.Module, float], Wrapped]:
    """DDP with default buckets and a stateless hook."""

    def make(model: nn.Module, lr: float) -> Wrapped:
        wrapped = wrap(model, None)
        wrapped.register_comm_hook(None, hook)
        return wrapped, sgd(model, lr)

    return make


def noop_hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """No exchange at all: what the step costs without a network."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def bf16_hook(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """All-reduce in bfloat16; torch's own bf16 hook refuses to run without NCCL, by name."""
    buffer = bucket.buffer()
    half = (buffer / dist.get_world_size()).to(torch.bfloat16)
    work = dist.all_reduce(half, async_op=True)
    return work.get_future().then(lambda done: buffer.copy_(done.value()[0]))


def power_sgd(rank: int) -> Callable[[nn.Module, float], Wrapped]:
    """torch's PowerSGD with ONE bucket: with several it deadlocks on gloo.

    It starts compressing at once (torch insists on two dense steps first, since DDP rebuilds its buckets after the
    first; with one bucket only the order of tensors changes, which costs one step's error feedback, not time).
    """

    def make(model: nn.Module, lr: float) -> Wrapped:
        wrapped = wrap(model, ONE_BUCKET_MB)
        state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=rank, start_powerSGD_iter=2, warm_start=True
        )
        state.iter = 2
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return wrapped, sgd(model, lr)

    return make


class TopKState:
    """Residuals of the textbook sparsifier, by bucket."""

    def __init__(self) -> None:
        self.residual: dict[int, Tensor] = {}


def topk_hook(state: TopKState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average the k largest entries of every rank's bucket, sent as (fp32, int32) pairs."""
    buffer, index = bucket.buffer(), bucket.index()
    residual = state.residual.get(index)
    if residual is not None and residual.numel() == buffer.numel():
        buffer.add_(residual)
    num_kept = max(1, int(buffer.numel() * DENSITY))
    positions = buffer.abs().topk(num_kept, sorted=False).indices
    values = buffer[positions]
    state.residual[index] = buffer.clone().index_fill_(0, positions, 0)
    pairs = torch.cat([values.view(torch.int32), positions.to(torch.int32)])
    world_size = dist.get_world_size()
    gathered = pairs.new_empty(world_size * pairs.numel())
    work = dist.all_gather_into_tensor(gathered, pairs, async_op=True)

    def scatter(_: Any) -> Tensor:
        buffer.zero_()
        for message in gathered.view(world_size, 2, num_kept):
            buffer.index_add_(0, message[1].long(), message[0].view(torch.float32) / world_size)
        return buffer

    return work.get_future().then(scatter)


def topk_pairs(model: nn.Module, lr: float) -> Wrapped:
    wrapped = wrap(model, None)
    wrapped.register_comm_hook(TopKState(), topk_hook)
    return wrapped, sgd(model, lr)


def dgc(exchange: str, codec: str = "int4", warmup_steps: int = 0) -> Callable[[nn.Module, float], Wrapped]:
    """This package through its public door, default buckets."""

    def make(model: nn.Module, lr: float) -> Wrapped:
        import dgcomp

        wrapped, optimizer = wrap(model, None), sgd(model, lr)
        config = dgcomp.DGCConfig(density=DENSITY, codec=codec, exchange=exchange, warmup_steps=warmup_steps)
        dgcomp.attach(wrapped, optimizer, config)
        return wrapped, optimizer

    return make


METHODS: dict[str, Callable[[nn.Module, float], Wrapped]] = {
    "none": hooked(noop_hook),
    "ddp_fp32": ddp(None),
    "ddp_fp32_8mb": ddp(8),
    "ddp_fp32_100mb": ddp(100),
    "fp16_hook": hooked(default_hooks.fp16_compress_hook),
    "bf16_hook": hooked(bf16_hook),
    "powersgd_r1": power_sgd(1),
    "powersgd_r2": power_sgd(2),
    "powersgd_r4": power_sgd(4),
    "topk_pairs": topk_pairs,
    "dgc_paper": dgc("all_gather", "paper"),
    "dgc_all_gather": dgc("all_gather"),
    "dgc_owner": dgc("owner"),
    "dgc_auto": dgc("auto"),
    "dgc_warmup": dgc("all_gather", warmup_steps=60),
}

TITLES = {
    "none": "no exchange (floor)",
    "ddp_fp32": "DDP fp32, 25 MB buckets",
    "ddp_fp32_8mb": "DDP fp32, 8 MB buckets",
    "ddp_fp32_100mb": "DDP fp32, 100 MB buckets",
    "fp16_hook": "DDP fp16 hook",
    "bf16_hook": "DDP bf16 cast hook",
    "powersgd_r1": "PowerSGD rank 1 (one bucket)",
    "powersgd_r2": "PowerSGD rank 2 (one bucket)",
    "powersgd_r4": "PowerSGD rank 4 (one bucket)",
    "topk_pairs": "top-k, 64-bit pairs",
    "dgc_paper": "DGC, the paper's 48-bit wire",
    "dgc_all_gather": "DGC int4, all-gather",
    "dgc_owner": "DGC int4, owner",
    "dgc_auto": "DGC int4, auto",
    "dgc_warmup": "DGC int4, all-gather, 60 steps of warm-up",
}
