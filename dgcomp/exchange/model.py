"""What a gradient exchange costs on a given link: bytes and seconds, from the alpha-beta model.

A message of m bytes takes `alpha + m / beta`: half a round trip plus the software's own time per message, then the
line rate. Every collective below is the algorithm that gloo (or NCCL, for the ring and the tree) really runs, so the
formulas can be held against measured runs: benchmarks/scale.py does that. No torch here: the module also serves
simulations of thousands of workers.

Sizes are those of ONE worker: `bytes_sent` is what its interface uploads in one exchange. Links are full duplex and
every worker has its own port into a switch that never blocks.

References
----------
Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005 (ring, tree).
Li and Hoefler, "Near-Optimal Sparse Allreduce for Distributed Deep Learning", PPoPP 2022 (owner exchange).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

# Payload share of a full Ethernet frame carrying TCP with timestamps at MTU 1500: 1448 of 1538 bytes on the wire.
PROTOCOL_EFFICIENCY = 1448 / 1538

# Bits of one value by codec; blocks of 256 values share two bfloat16 bounds (one with "sign"), see dgcomp/wire.
VALUE_BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0 + 32 / 256, "int4": 4.0 + 32 / 256, "sign": 1.0 + 16 / 256}

# Header, counts and checksum of one packed message.
MESSAGE_HEADER_BYTES = 32

# A byte for "not finite" and one for every tensor that a rank has used: what the ranks agree on before a sparse step.
AGREEMENT_BYTES = 200

# Messages to and from owners have at least this room, to say why a rank failed.
OWNER_MESSAGE_BYTES = 96

_BITS_PER_S = re.compile(r"^\s*([0-9.]+)\s*([kMG]?)\s*(?:bit|bits|b|bps)(?:/s|ps)?\s*$", re.IGNORECASE)
_SECONDS = re.compile(r"^\s*([0-9.]+)\s*(us|ms|s)\s*$", re.IGNORECASE)
_GBIT = {"": 1e-9, "k": 1e-6, "m": 1e-3, "g": 1.0}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, slots=True)
class Link:
    """A worker's connection to the switch: line rate in each direction and round trip between two workers.

    Raises ValueError for a bandwidth or an efficiency that is not positive, or a negative round trip.
    """

    bandwidth_gbit_per_s: float
    rtt_ms: float = 0.2
    efficiency: float = PROTOCOL_EFFICIENCY
    """Share of the line rate that payload gets."""

    def __post_init__(self) -> None:
        if not self.bandwidth_gbit_per_s > 0:
            raise ValueError(f"bandwidth_gbit_per_s must be positive, got {self.bandwidth_gbit_per_s}")
        if not self.rtt_ms >= 0:
            raise ValueError(f"rtt_ms must not be negative, got {self.rtt_ms}")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"efficiency must lie in (0, 1], got {self.efficiency}")

    @classmethod
    def parse(cls, bandwidth: str, rtt: str = "0.2ms") -> "Link":
        """Read a link from text such as "1Gbps", "100Mbit", "25 Gbit/s" and "0.2ms", "150us"."""
        rate, trip = _BITS_PER_S.match(bandwidth), _SECONDS.match(rtt)
        if rate is None:
            raise ValueError(f'bandwidth must look like "1Gbps", "100Mbit" or "25Gbit/s", got {bandwidth!r}')
        if trip is None:
            raise ValueError(f'rtt must look like "0.2ms", "150us" or "0.01s", got {rtt!r}')
        gbit_per_s = float(rate[1]) * _GBIT[rate[2].lower()]
        return cls(gbit_per_s, float(trip[1]) * _MILLISECONDS[trip[2].lower()])

    @property
    def bytes_per_s(self) -> float:
        """Payload bytes a second in one direction."""
        return self.bandwidth_gbit_per_s * 1e9 / 8 * self.efficiency

    @property
    def one_way_s(self) -> float:
        """Seconds of flight of an empty message."""
        return self.rtt_ms / 2e3


@dataclass(frozen=True, slots=True)
class Host:
    """How fast one worker's processor does its part of an exchange; every field is a measurement.

    The defaults were measured on one core of an AMD EPYC server (AVX-512, 31 GB/s copy) with gloo 2.13 over
    virtual Ethernet; `calibrate` replaces them by the machine's own.
    """

    compress_bytes_per_s: float = 5.0e9
    """Dense fp32 bytes a second through momentum correction, selection, masking and encoding."""

    scatter_entries_per_s: float = 3.0e7
    """Received entries a second decoded, merged with those of other workers, and written into the gradient."""

    cast_bytes_per_s: float = 2.5e9
    """Dense fp32 bytes a second cast to 16 bits and back."""

    transport_bytes_per_s: float = 1.8e9
    """Bytes a second that TCP and the reduction move through one core, sending and receiving."""

    message_s: float = 100e-6
    """Processor time of one message: system calls, wake-up of the receiver, bookkeeping of the collective."""

    workers_per_core: float = 1.0
    """Workers that share one core; 2 where four ranks are emulated on two cores."""

    transport_busy_share: float = 0.74
    """Processor time over wall-clock time of a dense ring whose workers have a core each. For the rest a worker waits
    for its neighbour, and others on its core get on: sharing costs less than `workers_per_core` times as much."""

    @property
    def transport_stretch(self) -> float:
        """How much longer moving bytes takes where workers share cores."""
        return max(1.0, self.workers_per_core * self.transport_busy_share)


@dataclass(frozen=True, slots=True)
class Cost:
    """One worker's share of one exchange. Costs add: `a + b` is a after b."""

    seconds: float = 0.0
    bytes_sent: float = 0.0
    messages: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.bytes_sent + other.bytes_sent, self.messages + other.messages)


def ring_all_reduce(num_bytes: float, world_size: int, link: Link, host: Host) -> Cost:
    """Ring reduce-scatter and all-gather, as gloo and NCCL do it: 2 (N - 1) steps of `num_bytes / N`."""
    steps = 2 * (world_size - 1)
    return _steps(steps, num_bytes / world_size, link, host)


def tree_all_reduce(num_bytes: float, world_size: int, link: Link, host: Host) -> Cost:
    """Binomial reduce, then broadcast: 2 ceil(log2 N) steps of the whole buffer; few messages, many bytes."""
    return _steps(2 * math.ceil(math.log2(world_size)), num_bytes, link, host)


def all_gather(num_bytes: float, world_size: int, link: Link, host: Host) -> Cost:
    """Ring all-gather of equal blocks: N - 1 steps of one worker's `num_bytes`."""
    return _steps(world_size - 1, num_bytes, link, host)


def all_to_all(num_bytes: float, world_size: int, link: Link, host: Host) -> Cost:
    """Every worker sends `num_bytes / N` to every other one; all messages are in flight at once."""
    messages = world_size - 1
    sent = num_bytes * messages / world_size
    if not messages:
        return Cost()
    moving = 2 * sent / host.transport_bytes_per_s * host.transport_stretch
    processor = messages * host.message_s * host.workers_per_core + moving
    return Cost(link.one_way_s + max(sent / link.bytes_per_s, processor), sent, messages)


def _steps(steps: int, num_bytes: float, link: Link, host: Host) -> Cost:
    """`steps` dependent messages of `num_bytes`; a worker sends one while it receives another."""
    # The kernel moves bytes while the line is busy, so the slower of the two sets the pace; both directions of a
    # full-duplex link pass through the same core.
    line = num_bytes / link.bytes_per_s
    processor = 2 * num_bytes / host.transport_bytes_per_s * host.transport_stretch
    alpha = link.one_way_s + host.message_s * host.workers_per_core
    return Cost(steps * (alpha + max(line, processor)), steps * num_bytes, steps)


# --- What one entry weighs -------------------------------------------------------------------------------------


def rice_bits(density: float) -> float:
    """Expected bits of a Rice-coded gap between entries chosen independently with probability `density`.

    A gap with parameter b costs b bits and a unary quotient; its mean is `b + 1 / (1 - (1 - density)^(2^b))`.
    """
    if density >= 1:
        return 1.0
    log_gap = math.log1p(-density)
    return min(b + 1 / -math.expm1(2**b * log_gap) for b in range(32))


def entry_bits(density: float, codec: str = "int4") -> float:
    """Expected bits of one entry, position and value, with the shorter of Rice gaps and a bitmap.

    `codec` is one of "fp32", "bf16", "int8", "int4", "sign", or "paper" (16-bit run and fp32 value, Lin et al.
    2018, section 3.1) and "pairs" (32-bit index and fp32 value).
    """
    if codec == "paper":
        return 48.0
    if codec == "pairs":
        return 64.0
    if codec not in VALUE_BITS:
        raise ValueError(f"codec must be one of {', '.join([*VALUE_BITS, 'paper', 'pairs'])}, got {codec!r}")
    return VALUE_BITS[codec] + min(rice_bits(density), 1 / density)


@dataclass(frozen=True, slots=True)
class Gradient:
    """What is exchanged in one step: `numel` elements, of which `density` is sent, and dense leftovers.

    `leftover_numel` elements (biases, normalization) travel dense in the same message, `leftover_bits` each.
    `num_buckets` messages are sent a step.
    """

    numel: int
    density: float = 0.001
    codec: str = "int4"
    leftover_numel: int = 0
    leftover_bits: float = VALUE_BITS["int4"]
    num_buckets: int = 1

    def __post_init__(self) -> None:
        if self.numel < 1:
            raise ValueError(f"numel must be at least 1, got {self.numel}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        if self.num_buckets < 1:
            raise ValueError(f"num_buckets must be at least 1, got {self.num_buckets}")

    @property
    def dense_bytes(self) -> float:
        """Bytes of the whole gradient in fp32."""
        return 4.0 * (self.numel + self.leftover_numel)

    @property
    def num_entries(self) -> float:
        """Entries that one worker selects."""
        return self.numel * self.density

    @property
    def message_bytes(self) -> float:
        """Bytes of one worker's packed messages in one step, all buckets together."""
        sparse_bits = self.num_entries * entry_bits(self.density, self.codec)
        return (sparse_bits + self.leftover_numel * self.leftover_bits) / 8 + MESSAGE_HEADER_BYTES * self.num_buckets


# --- Whole exchanges --------------------------------------------------------------------------------------------


def dense_fp32(gradient: Gradient, world_size: int, link: Link, host: Host) -> Cost:
    """What DDP does without a hook: one ring all-reduce a bucket."""
    return _per_bucket(ring_all_reduce, gradient.dense_bytes, gradient, world_size, link, host)


def dense_bf16(gradient: Gradient, world_size: int, link: Link, host: Host) -> Cost:
    """Cast to 16 bits, ring all-reduce, cast back."""
    cast = Cost(gradient.dense_bytes / host.cast_bytes_per_s * host.workers_per_core)
    return cast + _per_bucket(ring_all_reduce, gradient.dense_bytes / 2, gradient, world_size, link, host)


def sparse_all_gather(gradient: Gradient, world_size: int, link: Link, host: Host) -> Cost:
    """Every worker receives everyone's entries: bytes grow with N, one round of messages."""
    received = gradient.num_entries * world_size
    exchange = _per_bucket(all_gather, gradient.message_bytes, gradient, world_size, link, host)
    return _compress(gradient, received, host) + _agree(world_size, link, host) + exchange


def sparse_owner(gradient: Gradient, world_size: int, link: Link, host: Host) -> Cost:
    """Entries go to the owner of their region, who merges and keeps its k / N largest; then an all-gather of these.

    A worker sends little more than the lower bound of 2 k (N - 1) / N entries, whatever N is: the messages to owners
    have room for an eighth more than their share and two deviations (dgcomp.exchange.regions).
    """
    share = gradient.num_entries / gradient.num_buckets / world_size
    # A worker has no more than its k entries to send, however few owners there are.
    room = min(1.125 * share + 2 * math.sqrt(share) + 2, share * world_size)
    bits = entry_bits(gradient.density, gradient.codec)
    leftover = gradient.leftover_numel * gradient.leftover_bits / 8 / gradient.num_buckets / world_size
    to_owner = max(OWNER_MESSAGE_BYTES, MESSAGE_HEADER_BYTES + room * bits / 8 + leftover)
    from_owner = max(OWNER_MESSAGE_BYTES, MESSAGE_HEADER_BYTES + share * bits / 8 + leftover)
    args = (world_size, link, host)
    exchange = all_to_all(to_owner * world_size, *args) + all_gather(from_owner, *args)
    # Decoded twice: k entries as an owner, k entries of the result. Encoding the k / N owned ones is negligible.
    compress = _compress(gradient, 2 * gradient.num_entries, host)
    return compress + _agree(world_size, link, host) + _repeated(exchange, gradient.num_buckets)


def sparse_tree(gradient: Gradient, world_size: int, link: Link, host: Host) -> Cost:
    """gTop-k (Shi et al. 2019): recursive doubling that keeps k entries after every merge."""
    rounds = math.ceil(math.log2(world_size))
    exchange = _per_bucket(tree_all_reduce, gradient.message_bytes, gradient, world_size, link, host)
    agreement = tree_all_reduce(AGREEMENT_BYTES, world_size, link, host)
    return _compress(gradient, 2 * rounds * gradient.num_entries, host) + agreement + exchange


def two_level(gradient: Gradient, world_size: int, link: Link, host: Host, *, node_size: int, node_link: Link) -> Cost:
    """Dense ring inside a node over `node_link`, then the sparse all-gather between nodes, one worker a node.

    The leader hands the result to its node in a dense ring broadcast. `bytes_sent` counts the link between nodes.
    """
    if node_size < 1 or world_size % node_size:
        raise ValueError(f"node_size must divide world_size, got {node_size} and {world_size}")
    inside = _per_bucket(ring_all_reduce, gradient.dense_bytes, gradient, node_size, node_link, host)
    hand_out = _per_bucket(_broadcast, gradient.dense_bytes, gradient, node_size, node_link, host)
    between = sparse_all_gather(gradient, world_size // node_size, link, host)
    return replace(inside + between + hand_out, bytes_sent=between.bytes_sent)


def _broadcast(num_bytes: float, world_size: int, link: Link, host: Host) -> Cost:
    """Pipelined ring broadcast: the buffer passes every link once."""
    return _steps(world_size - 1, num_bytes / max(world_size - 1, 1), link, host)


Collective = Callable[[float, int, Link, Host], Cost]


def _per_bucket(
    collective: Collective, num_bytes: float, gradient: Gradient, world_size: int, link: Link, host: Host
) -> Cost:
    """The buckets' collectives one after the other: bytes once, latency once for each bucket."""
    return _repeated(collective(num_bytes / gradient.num_buckets, world_size, link, host), gradient.num_buckets)


def _repeated(cost: Cost, times: int) -> Cost:
    return Cost(cost.seconds * times, cost.bytes_sent * times, cost.messages * times)


def _agree(world_size: int, link: Link, host: Host) -> Cost:
    """The all-reduce of a few bytes by which a sparse step begins, so that no rank accumulates what another can't."""
    return ring_all_reduce(AGREEMENT_BYTES, world_size, link, host)


def _compress(gradient: Gradient, entries_received: float, host: Host) -> Cost:
    """Processor time before and after the exchange: one pass over the gradient, then the received entries."""
    passes = gradient.dense_bytes / host.compress_bytes_per_s
    scatter = (entries_received + gradient.leftover_numel) / host.scatter_entries_per_s
    return Cost((passes + scatter) * host.workers_per_core)
