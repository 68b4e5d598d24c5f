"""A torch.distributed process group whose collectives are Horovod's, so that the compressor runs on it unchanged."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

try:
    import horovod.torch as hvd
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "dgcomp.integrations.horovod needs Horovod with PyTorch: see docs/integrations.md for how it is built"
    ) from error

__all__ = ["HorovodGroup", "hvd", "use_horovod_group"]

BACKEND = "horovod"
# Horovod sums these; anything else is gathered and reduced by every rank in rank order.
SUMMED = (torch.float16, torch.float32, torch.float64, torch.int32, torch.int64)
# Enough names for what is in flight at once; few, because Horovod caches what it negotiates by name.
NAMES = 16


def use_horovod_group() -> None:
    """Make Horovod's ranks torch's default process group, anew after they have changed (elastic).

    Raises RuntimeError if the script has a default group of its own.
    """
    if dist.is_initialized():
        if dist.get_backend() != BACKEND:
            raise RuntimeError(
                f"torch.distributed is initialized with {dist.get_backend()!r}, and Horovod's ranks have to be its "
                "default group; leave init_process_group out of a script that horovodrun starts"
            )
        dist.destroy_process_group()
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=hvd.rank(), world_size=hvd.size())


class HorovodGroup(dist.ProcessGroup):
    """All of Horovod's ranks, with the collectives that dgcomp issues."""

    def __init__(self, rank: int, size: int):
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._calls = 0

    def getBackendName(self) -> str:
        return BACKEND

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]
        (tensor,) = tensors
        op = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
        if op == dist.ReduceOp.SUM and tensor.dtype in SUMMED:
            return _Pending(hvd.allreduce_async_(tensor, op=hvd.Sum, name=self._name("allreduce")), tensor, None)

        def reduce_in_rank_order(gathered: Tensor) -> None:
            rows = gathered.view(self.size(), -1)
            tensor.view(-1).copy_(_reduce(rows, op))

        return self._gather(tensor, reduce_in_rank_order)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]
        def hand_out(gathered: Tensor) -> None:
            for output, row in zip(outputs[0], gathered.view(self.size(), -1), strict=True):
                output.view(-1).copy_(row)

        return self._gather(inputs[0], hand_out)

    def all_gather_single(self, output: Tensor, source: Tensor, opts: Any = None) -> dist.Work:
        return self._gather(source, lambda gathered: output.view(-1).copy_(gathered))

    def all_to_all_single(
        self, output: Tensor, source: Tensor, output_splits: list[int], input_splits: list[int], opts: Any = None
    ) -> dist.Work:
        splits = input_splits or [source.shape[0] // self.size()] * self.size()
        counts = torch.tensor(splits, dtype=torch.int32)
        handle = hvd.alltoall_async(source, splits=counts, name=self._name("alltoall"))
        return _Pending(handle, source, lambda received: output.copy_(received[0]))

    def broadcast(self, tensors: Any, opts: Any = None) -> dist.Work:  # type: ignore[override]
        data = _bytes(tensors[0])
        return _Pending(hvd.broadcast_async_(data, opts.rootRank, name=self._name("broadcast")), data, None)

    def barrier(self, opts: Any = None) -> dist.Work:
        return self.allreduce([torch.zeros(1)])

    # torch before 2.13
    _allgather_base = all_gather_single  # type: ignore[assignment]
    alltoall_base = all_to_all_single  # type: ignore[assignment]

    def _gather(self, source: Tensor, finish: Callable[[Tensor], Any]) -> dist.Work:
        data = _bytes(source)
        handle = hvd.allgather_async(data, name=self._name("allgather"))
        return _Pending(handle, data, lambda gathered: finish(gathered.view(source.dtype)))

    def _name(self, kind: str) -> str:
        self._calls += 1
        return f"dgcomp.{kind}.{self._calls % NAMES}"


class _Pending(dist.Work):
    """A Horovod operation under way; keeps its input alive and hands its result on when it is waited for."""

    def __init__(self, handle: Any, source: Tensor, finish: Callable[[Any], Any] | None):
        super().__init__()
        self._handle, self._source, self._finish = handle, source, finish

    def wait(self, timeout: Any = None) -> bool:
        result = hvd.synchronize(self._handle)
        if self._finish is not None:
            self._finish(result)
        return True

    def is_completed(self) -> bool:
        return bool(hvd.poll(self._handle))


def _bytes(tensor: Tensor) -> Tensor:
    """View of a contiguous tensor as bytes, which Horovod carries whatever the dtype."""
    return tensor.reshape(-1).view(torch.uint8)


def _reduce(rows: Tensor, op: Any) -> Tensor:
    if op == dist.ReduceOp.MAX:
        return rows.amax(0)
    if op == dist.ReduceOp.MIN:
        return rows.amin(0)
    total = rows[0].float() if rows.dtype == torch.bfloat16 else rows[0].clone()
    for row in rows[1:]:
        total += row
    return total.to(rows.dtype)


def _create(_store: Any, rank: int, size: int, _timeout: Any) -> HorovodGroup:
    return HorovodGroup(rank, size)


dist.Backend.register_backend(BACKEND, _create, devices=["cpu", "cuda"])
