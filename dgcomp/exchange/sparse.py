"""The sparse all-reduce: one function, several algorithms with one result."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.dense import dense as exchange_dense
from dgcomp.exchange.gather import all_gather
from dgcomp.exchange.nodes import NodeGroups, two_level
from dgcomp.exchange.owner import owner
from dgcomp.exchange.regions import Regions
from dgcomp.exchange.result import Exchanged, Plan, Selection, select

ALGORITHMS = ("all_gather", "owner", "two_level", "dense")
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
    regions: Regions | None = None,
    nodes: NodeGroups | None = None,
) -> Exchanged:
    """Sum selected entries of a vector over the ranks of a group.

    values: float, shape (k,), finite. positions: integers, shape (k,), each once, in [0, numel). codec: see
    `dgcomp.wire.encode`. dense: float vector that is summed whole and travels in the same message in `dense_codec`.
    count: the largest k of any rank; None promises that k is the same on all ranks. tag: 32 bits that must be equal
    on all ranks. All other arguments must be equal on all ranks too.

    algorithm: "all_gather"; "owner", O(k) bytes, with `regions` kept between steps (None balances anew each time);
    "two_level", the sum over nodes, with `nodes` from `node_groups` in place of `group`; "dense", fp32.

    Raises ValueError for a wrong codec, algorithm or count, before anything is sent. Raises WireError on ALL ranks
    alike if the input or the message of one of them is bad; the text names that rank.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}, got {algorithm!r}")
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
    selection = select(values, positions, leftovers, plan)
    return _on_device(_exchange(selection, plan, algorithm, regions, nodes), values.device)


def _exchange(
    selection: Selection, plan: Plan, algorithm: str, regions: Regions | None, nodes: NodeGroups | None
) -> Exchanged:
    if algorithm == "owner":
        return owner(selection, plan, regions or Regions())
    if algorithm == "two_level":
        if nodes is None:
            raise ValueError('nodes must be given for algorithm "two_level"; make them once with node_groups()')
        return two_level(selection, plan, nodes)
    return all_gather(selection, plan) if algorithm == "all_gather" else exchange_dense(selection, plan)


def _on_device(result: Exchanged, device: torch.device) -> Exchanged:
    """The result with its tensors on the device of the input."""
    if device.type == "cpu":
        return result
    moved = {name: getattr(result, name).to(device) for name in _TENSORS}
    return replace(result, **moved)
