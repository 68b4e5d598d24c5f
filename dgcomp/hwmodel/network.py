"""The network between nodes: what an exchange of gradients adds to a training step.

The formulas are those of `dgcomp.exchange.model`, which `dgcomp.exchange.plan` chooses by and which measured runs are
held against; nothing is modelled twice. Here they become a `Cost`, and a step's time: compute plus the part of the
communication that the backward pass does not hide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dgcomp.exchange import model
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.operation import Operation

__all__ = ["Network", "Topology", "exposed_seconds"]

Topology = Literal["ring", "tree", "two_level"]
EXCHANGES = {
    "dense_fp32": model.dense_fp32,
    "dense_bf16": model.dense_bf16,
    "all_gather": model.sparse_all_gather,
    "owner": model.sparse_owner,
    "tree": model.sparse_tree,
}

DDP_BUCKET_BYTES = 25 * 2**20


def exposed_seconds(ready_s: Sequence[float], exchange_s: Sequence[float], compute_s: float) -> float:
    """Seconds for which a step waits for its exchanges after computing for `compute_s`.

    Bucket i is ready at `ready_s[i]` after the start of the step and takes `exchange_s[i]`; exchanges follow each
    other in order. Raises ValueError for lists of different lengths.
    """
    if len(ready_s) != len(exchange_s):
        raise ValueError(f"ready_s and exchange_s must be of one length, got {len(ready_s)} and {len(exchange_s)}")
    finished = 0.0
    for ready, seconds in zip(ready_s, exchange_s, strict=True):
        finished = max(finished, ready) + seconds
    return max(0.0, finished - compute_s)


@dataclass(frozen=True, slots=True)
class Network:
    """`nodes` workers on full-duplex links into a switch that never blocks.

    `density` below 1 sends a sparse gradient, by `method`: "dense_fp32", "dense_bf16", "all_gather", "owner", "tree",
    or "auto": what DDP does (dense_fp32) at density 1, the faster of all_gather and owner below it. Raises ValueError
    for a field out of range.
    """

    gbit_per_s: float = 1.0
    rtt_ms: float = 0.2
    nodes: int = 64
    density: float = 1.0
    method: str = "auto"
    codec: str = "int4"
    workers_per_node: int = 1
    """Workers that share a node, and its `node_gbit_per_s` inside; two_level exchanges use it."""
    node_gbit_per_s: float = 100.0
    efficiency: float = model.PROTOCOL_EFFICIENCY
    host: model.Host = field(default_factory=model.Host)
    """How fast a worker's processor does its part."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.workers_per_node < 1:
            raise ValueError(
                f"nodes and workers_per_node must be at least 1, got {self.nodes}, {self.workers_per_node}"
            )
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if self.method not in (*EXCHANGES, "auto"):
            raise ValueError(f"method must be one of {', '.join([*EXCHANGES, 'auto'])}, got {self.method!r}")
        _ = self.link  # raises for a rate or a round trip out of range

    @property
    def name(self) -> str:
        """Short name for tables."""
        sent = "" if self.density == 1 else f"-{self.density:g}"
        return f"network-{self.gbit_per_s:g}gbit-{self.nodes}x{self.workers_per_node}{sent}"

    @property
    def link(self) -> model.Link:
        """A worker's link between nodes."""
        return model.Link(self.gbit_per_s, self.rtt_ms, self.efficiency)

    @property
    def node_link(self) -> model.Link:
        """A worker's link inside its node."""
        return model.Link(self.node_gbit_per_s, 0.0, self.efficiency)

    @property
    def world_size(self) -> int:
        """Workers in all."""
        return self.nodes * self.workers_per_node

    def all_reduce(self, num_bytes: float, topology: Topology = "ring") -> Cost:
        """Cost of one dense all-reduce of `num_bytes`."""
        if topology not in ("ring", "tree", "two_level"):
            raise ValueError(f"topology must be ring, tree or two_level, got {topology!r}")
        if topology == "ring":
            return _cost(model.ring_all_reduce(num_bytes, self.world_size, self.link, self.host))
        if topology == "tree":
            return _cost(model.tree_all_reduce(num_bytes, self.world_size, self.link, self.host))
        # Reduce-scatter in the node, rings between nodes over a share each, all-gather in the node.
        inside = model.ring_all_reduce(num_bytes, self.workers_per_node, self.node_link, self.host)
        share = num_bytes / self.workers_per_node
        return _cost(inside + model.ring_all_reduce(share, self.nodes, self.link, self.host))

    def exchange(self, numel: int, *, num_buckets: int = 1) -> Cost:
        """Cost of exchanging a gradient of `numel` elements once, by `method` at `density`."""
        gradient = model.Gradient(numel, self.density, self.codec, num_buckets=num_buckets)
        if self.workers_per_node > 1 and self.density < 1:
            return _cost(
                model.two_level(
                    gradient,
                    self.world_size,
                    self.link,
                    self.host,
                    node_size=self.workers_per_node,
                    node_link=self.node_link,
                )
            )
        names = [self.method]
        if self.method == "auto":
            names = ["dense_fp32"] if self.density == 1 else ["all_gather", "owner"]
        costs = {name: EXCHANGES[name](gradient, self.world_size, self.link, self.host) for name in names}
        name, cost = min(costs.items(), key=lambda item: item[1].seconds)
        return replace(_cost(cost), notes=(f"exchange by {name}",))

    def step(self, compute_s: float, numel: int, *, backward_share: float = 2 / 3) -> Cost:
        """Cost of the exchange within a step: `seconds` is what it adds to `compute_s`.

        The backward pass is the last `backward_share` of the computation (twice the forward's work) and fills DDP's
        25 MB buckets evenly; the first exchange starts when the first bucket is full.
        """
        num_buckets = max(1, -(-4 * numel // DDP_BUCKET_BYTES))
        whole = self.exchange(numel, num_buckets=num_buckets)
        start = compute_s * (1 - backward_share)
        ready = [start + compute_s * backward_share * (i + 1) / num_buckets for i in range(num_buckets)]
        exposed = exposed_seconds(ready, [whole.seconds / num_buckets] * num_buckets, compute_s)
        breakdown = {**whole.breakdown, "exchange_seconds": whole.seconds, "hidden_seconds": whole.seconds - exposed}
        return replace(whole, seconds=exposed, breakdown=breakdown)

    def speedup(self, compute_s: float, numel: int, *, overlap: bool = False) -> float:
        """Throughput of all workers over one alone, each computing for `compute_s` a step."""
        exchange = self.step(compute_s, numel) if overlap else self.exchange(numel)
        return self.world_size * compute_s / (compute_s + exchange.seconds)

    def price(self, operation: Operation) -> None:
        """Networks price steps, not operations: see `step`."""
        return


def _cost(cost: model.Cost) -> Cost:
    """The links' energy is not in it: no source for joules per bit of Ethernet is built in."""
    return Cost(seconds=cost.seconds, breakdown={"sent_bytes": cost.bytes_sent, "messages_count": cost.messages})
