"""What every rank measures: seconds of a step and of its backward pass, and bytes from the interface counters."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

COUNTERS = ("tx_bytes", "rx_bytes", "tx_packets")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *inputs: Tensor) -> tuple[float, float]:
    """One training step of a model that returns its loss: seconds of the whole step and of its backward pass."""
    begin = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss = model(*inputs)
    ready = time.perf_counter()
    loss.backward()
    done = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - begin, done - ready


def counters(interface: str) -> list[int]:
    """Bytes sent, bytes received and frames sent of this namespace's interface since it was made."""
    folder = Path("/sys/class/net") / interface / "statistics"
    return [int((folder / name).read_text()) for name in COUNTERS]


def summary(seconds: list[tuple[float, float]], counted: list[list[int]]) -> dict[str, Any]:
    """Gather every rank's steps; the slowest rank of each step counts, bytes are the mean over ranks and steps."""
    slowest = gather(torch.tensor(seconds, dtype=torch.float64)).amax(0)
    traffic = gather(torch.tensor(counted, dtype=torch.float64)).mean((0, 1)).tolist()
    times = sorted(slowest[:, 0].tolist())
    return {
        "step_s": statistics.median(times),
        "step_s_low": times[len(times) // 10],
        "step_s_high": times[-1 - len(times) // 10],
        "backward_s": statistics.median(slowest[:, 1].tolist()),
        "steps": len(times),
        "bytes_sent_per_worker": traffic[0],
        "bytes_received_per_worker": traffic[1],
        "frames_sent_per_worker": traffic[2],
    }


def slowest(seconds: float) -> float:
    """The largest of all ranks' numbers; a barrier, too."""
    value = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def gather(tensor: Tensor) -> Tensor:
    """All ranks' tensors, stacked in rank order."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)
