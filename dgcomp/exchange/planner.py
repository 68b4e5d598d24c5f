"""Choose how gradients are exchanged: the method whose predicted time on this link is the shortest.

    choice = plan(25_557_032, 0.001, 8, Link.parse("1Gbps", "0.2ms"))
    choice.name                     # "all_gather"
    print(choice.table())           # every method, predicted seconds and bytes, fastest first

A plan is a pure function of its arguments: ranks that pass equal ones choose alike, with no message between them.
`replan` corrects the prediction by what was observed, and chooses again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dgcomp.exchange.model import (
    VALUE_BITS,
    Cost,
    Gradient,
    Host,
    Link,
    dense_bf16,
    dense_fp32,
    sparse_all_gather,
    sparse_owner,
    two_level,
)

METHODS = ("dense_fp32", "dense_bf16", "all_gather", "owner", "two_level")
COMPRESSED = ("all_gather", "owner", "two_level")

# A change of method must promise at least this, or noise in the observations would make the run hop about.
SWITCH_GAIN = 0.1


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """The chosen method and what every method is predicted to cost, one exchange of one worker."""

    name: str
    """One of "dense_fp32", "dense_bf16", "all_gather", "owner", "two_level"."""
    costs: Mapping[str, Cost]
    """Predicted cost by method, after correction by observations."""
    gradient: Gradient
    world_size: int
    link: Link
    host: Host
    corrections: Mapping[str, float] = field(default_factory=dict)
    """Observed over predicted seconds, by method; 1 where nothing was observed."""

    @property
    def seconds(self) -> float:
        """Predicted seconds of the chosen method."""
        return self.costs[self.name].seconds

    @property
    def compresses(self) -> bool:
        """Whether the chosen method sends a sparse gradient."""
        return self.name in COMPRESSED

    def ranking(self) -> list[tuple[str, Cost]]:
        """Methods and costs, fastest first."""
        return sorted(self.costs.items(), key=lambda item: (item[1].seconds, METHODS.index(item[0])))

    def table(self) -> str:
        """The ranking as text, one method a line, the chosen one marked."""
        lines = [f"  {'method':12s} {'milliseconds':>12s} {'MB sent':>10s} {'messages':>9s}"]
        for name, cost in self.ranking():
            mark = "*" if name == self.name else " "
            numbers = f"{cost.seconds * 1e3:12.2f} {cost.bytes_sent / 1e6:10.3f} {cost.messages:9.0f}"
            lines.append(f"{mark} {name:12s} {numbers}")
        return "\n".join(lines)


def plan(
    numel: int,
    density: float,
    world_size: int,
    link: Link,
    *,
    codec: str = "int4",
    leftover_numel: int = 0,
    leftover_codec: str = "int4",
    num_buckets: int = 1,
    host: Host | None = None,
    node_size: int = 1,
    node_link: Link | None = None,
    lossless_dense: bool = False,
) -> ExchangePlan:
    """Predict every method's time for one gradient and choose the shortest.

    Parameters
    ----------
    numel : int
        Elements that may be sent sparsely.
    density : float in (0, 1]
        Share of them that a worker selects.
    world_size : int
        Workers in the group.
    link : Link
        What connects them (or their nodes, if `node_size` > 1).
    codec : str
        Value format, see `entry_bits`.
    leftover_numel, leftover_codec : int and str
        Elements sent whole in the same message, and the format of their values.
    num_buckets : int
        Messages a step.
    host : Host, optional
        Measured speeds of this machine; see `calibrate`.
    node_size, node_link : int and Link, optional
        Workers in one node and what connects them: adds "two_level" to the choice.
    lossless_dense : bool
        Leave "dense_bf16" out.

    Raises
    ------
    ValueError
        If a number is out of range, or `node_size` does not divide `world_size`, or lacks its `node_link`.
    """
    if world_size < 1:
        raise ValueError(f"world_size must be at least 1, got {world_size}")
    if node_size > 1 and node_link is None:
        raise ValueError(f"node_link must be given with node_size {node_size}: the link inside a node")
    gradient = Gradient(numel, density, codec, leftover_numel, VALUE_BITS[leftover_codec], num_buckets)
    host = host or Host()
    args = (gradient, world_size, link, host)
    costs = _single_level(*args)
    if lossless_dense:
        del costs["dense_bf16"]
    if node_size > 1 and node_link is not None:
        costs["two_level"] = two_level(*args, node_size=node_size, node_link=node_link)
    return ExchangePlan(_fastest(costs), costs, *args)


def replan(current: ExchangePlan, observed_s: Mapping[str, float]) -> ExchangePlan:
    """Correct the predictions by observed seconds of an exchange and choose again.

    `observed_s` maps methods to seconds, at least the current one; it must be equal on all ranks (take the maximum
    over the ranks first), or they will choose differently and wait for each other for ever. A method that was never
    observed keeps its own earlier correction, or takes that of the observed methods of its kind (dense or sparse):
    what slows one collective slows its kin. The method changes only for a predicted gain of 10 % or more.
    """
    unknown = set(observed_s) - set(current.costs)
    if unknown:
        raise ValueError(f"observed_s must name methods of the plan {sorted(current.costs)}, got {sorted(unknown)}")
    raw = {name: cost.seconds / current.corrections.get(name, 1.0) for name, cost in current.costs.items()}
    seen = {name: seconds / raw[name] for name, seconds in observed_s.items() if raw[name] > 0}
    corrections = {name: seen.get(name, _of_kin(name, seen, current.corrections)) for name in raw}
    costs = {name: replace(cost, seconds=raw[name] * corrections[name]) for name, cost in current.costs.items()}
    best = _fastest(costs)
    worth_it = costs[best].seconds < (1 - SWITCH_GAIN) * costs[current.name].seconds
    return replace(current, name=best if worth_it else current.name, costs=costs, corrections=corrections)


def _of_kin(name: str, seen: Mapping[str, float], earlier: Mapping[str, float]) -> float:
    kin = [ratio for other, ratio in seen.items() if (other in COMPRESSED) == (name in COMPRESSED)]
    if name in earlier or not kin:
        return earlier.get(name, 1.0)
    return sum(kin) / len(kin)


def _fastest(costs: Mapping[str, Cost]) -> str:
    # Ties go to the simpler method, the one that stands first in METHODS.
    return min(costs, key=lambda name: (costs[name].seconds, METHODS.index(name)))


def break_even_gbit_per_s(current: ExchangePlan, method: str, against: str = "dense_fp32") -> float:
    """Line rate below which `method` beats `against`, all else equal; infinite if it always does, 0 if never.

    Compared on the model alone, between 1 kbit/s and 10 Tbit/s, by bisection to one part in a thousand.
    """

    def gain(gbit_per_s: float) -> float:
        costs = _uncorrected(current, replace(current.link, bandwidth_gbit_per_s=gbit_per_s))
        return costs[against].seconds - costs[method].seconds

    low, high = 1e-6, 1e4
    if gain(high) > 0:
        return float("inf")
    if gain(low) <= 0:
        return 0.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return low


def at_density(current: ExchangePlan, density: float) -> ExchangePlan:
    """The same plan for steps of another density, such as a warm-up's, by the model alone."""
    gradient = replace(current.gradient, density=density)
    costs = _uncorrected(replace(current, gradient=gradient), current.link)
    costs = {name: cost for name, cost in costs.items() if name in current.costs}
    return replace(current, name=_fastest(costs), costs=costs, gradient=gradient, corrections={})


def _uncorrected(current: ExchangePlan, link: Link, host: Host | None = None) -> dict[str, Cost]:
    """Costs of the plan's single-level methods on another link or host."""
    return _single_level(current.gradient, current.world_size, link, host or current.host)


def _single_level(gradient: Gradient, world_size: int, link: Link, host: Host) -> dict[str, Cost]:
    return {
        "dense_fp32": dense_fp32(gradient, world_size, link, host),
        "dense_bf16": dense_bf16(gradient, world_size, link, host),
        "all_gather": sparse_all_gather(gradient, world_size, link, host),
        "owner": sparse_owner(gradient, world_size, link, host),
    }


def limits(current: ExchangePlan, method: str) -> dict[str, float]:
    """Seconds that a method would save if the link were infinitely wide, or without latency, or arithmetic free."""
    fast = Host(1e18, 1e18, 1e18, 1e18, 0.0)
    wide = replace(current.link, bandwidth_gbit_per_s=1e12)
    near = replace(current.link, rtt_ms=0.0)
    now = _uncorrected(current, current.link)[method].seconds
    return {
        "bandwidth": now - _uncorrected(current, wide)[method].seconds,
        "latency": now - _uncorrected(current, near, replace(current.host, message_s=0.0))[method].seconds,
        "arithmetic": now
        - _uncorrected(current, current.link, replace(fast, message_s=current.host.message_s))[method].seconds,
    }
