"""The sparse all-reduce: one function, several algorithms with one result."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.gather import all_gather
from dgcomp.exchange.result import Exchanged, Plan, Selection, select

_ALGORITHMS: dict[str, Callable[[Selection, Plan], Exchanged]] = {"all_gather": all_gather}

_TENSORS = ("positions", "values", "returned_positions", "returned_values", "dense", "dense_error")


def all_reduce_sparse(
    values: Tensor,
    positions: Tensor,
    numel: int,
    *,
    group: dist.ProcessGroup | None = None,
    codec: str = "auto",
    algorithm: str = "all_gather",
    dense: Tensor | None = None,
    dense_codec: str = "int8",
    count: int | None = None,
    tag: int = 0,
) -> Exchanged:
    """Sum selected entries of a vector over the ranks of a group.

    values: float, shape (k,), finite. positions: integers, shape (k,), each once, in [0, numel). codec: see
    `dgcomp.wire.encode`. dense: float vector that is summed whole and travels in the same message in `dense_codec`.
    count: the largest k of any rank; None promises that k is the same on all ranks. tag: 32 bits that must be equal
    on all ranks. All other arguments must be equal on all ranks too.

    Raises ValueError for a wrong codec, algorithm or count, before anything is sent. Raises WireError on ALL ranks
    alike if the input or the message of one of them is bad; the text names that rank.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm must be one of {tuple(_ALGORITHMS)}, got {algorithm!r}")
    count = positions.numel() if count is None else count
    leftovers = torch.zeros(0) if dense is None else dense.detach().reshape(-1).to("cpu", torch.float32)
    plan = Plan(
        numel=numel,
        count=min(count, numel),
        codec=codec,
        dense_numel=leftovers.numel(),
        dense_codec=dense_codec,
        tag=tag,
        group=group,
    )
    plan.capacity_bytes()  # raises for a wrong codec or count
    result = _ALGORITHMS[algorithm](select(values, positions, leftovers, plan), plan)
    return _on_device(result, values.device)


def _on_device(result: Exchanged, device: torch.device) -> Exchanged:
    """The result with its tensors on the device of the input."""
    if device.type == "cpu":
        return result
    moved = {name: getattr(result, name).to(device) for name in _TENSORS}
    return replace(result, **moved)
