"""Two levels: gradients are averaged dense inside a node, and nodes exchange sparse messages.

The order that keeps the algorithm right: first `mean_in_node` on the raw gradient, then compression. All ranks of a
node then hold the same residual and momentum and select the same entries, so one of them, the leader, sends for all.
With `algorithm="two_level"` the sum is over the nodes: divide by `num_nodes` for the mean over all ranks.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.collectives import broadcast_bytes, gather_bytes
from dgcomp.exchange.gather import pack, unpack
from dgcomp.exchange.result import Exchanged, Plan, Selection


@dataclass(frozen=True, slots=True)
class NodeGroups:
    """The groups of one rank, from `node_groups`."""

    ranks_per_node: int
    num_nodes: int
    intra: dist.ProcessGroup
    """The ranks of this node."""
    leaders: dist.ProcessGroup
    """The first rank of every node; only leaders may use it."""

    @property
    def node(self) -> int:
        """Number of this rank's node."""
        return dist.get_rank() // self.ranks_per_node

    @property
    def leader(self) -> int:
        """Global rank that sends for this node."""
        return self.node * self.ranks_per_node


def node_groups(ranks_per_node: int) -> NodeGroups:
    """Groups for nodes of `ranks_per_node` consecutive ranks, as torchrun numbers them; call it on every rank.

    Raises ValueError if the ranks are not a multiple of it.
    """
    world_size = dist.get_world_size()
    if ranks_per_node < 1 or world_size % ranks_per_node:
        raise ValueError(f"ranks_per_node must divide the {world_size} ranks, got {ranks_per_node}")
    firsts = range(0, world_size, ranks_per_node)
    intra = [dist.new_group(list(range(first, first + ranks_per_node))) for first in firsts]
    leaders = dist.new_group(list(firsts))
    return NodeGroups(ranks_per_node, len(firsts), intra[dist.get_rank() // ranks_per_node], leaders)


def mean_in_node(gradient: Tensor, nodes: NodeGroups) -> Tensor:
    """Average a gradient over the ranks of this node, in place, before it is compressed; returns it."""
    dist.all_reduce(gradient, group=nodes.intra)
    return gradient.div_(nodes.ranks_per_node)


def two_level(selection: Selection, plan: Plan, nodes: NodeGroups) -> Exchanged:
    """Leaders gather one message per node and pass all of them on inside their nodes; bytes count between nodes."""
    message = pack(selection, plan)
    calls = 0
    rows = torch.empty(nodes.num_nodes, len(message), dtype=torch.uint8)
    is_leader = dist.get_rank() == nodes.leader
    if is_leader:
        rows, calls = gather_bytes(message, nodes.leaders)
    flat = rows.reshape(-1)
    calls += broadcast_bytes(flat, nodes.leader, nodes.intra)
    names = list(range(0, nodes.num_nodes * nodes.ranks_per_node, nodes.ranks_per_node))
    return unpack(
        selection, plan, flat.view_as(rows), own=nodes.node, names=names, calls=calls, links=1 if is_leader else 0
    )
