"""Say whether compressing gradients pays on a given link, before anything is run.

    python -m dgcomp.advise --model resnet50 --link 1Gbps --rtt 0.2ms --nodes 8
    python -m dgcomp.advise --parameters 25.6M --link 10Gbps --nodes 4 --compute 250ms --backward 160ms

Prints the predicted step time of every exchange method, and an answer in plain words. The prediction is the cost
model of dgcomp.exchange.model with speeds measured on one server core; benchmarks/scale.py holds it against runs
over real links. Training itself measures the link and the machine and plans with those.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dgcomp.exchange.model import VALUE_BITS, Host, Link
from dgcomp.exchange.planner import COMPRESSED, ExchangePlan, break_even_gbit_per_s, limits, plan

_COUNT = re.compile(r"^([0-9.]+)\s*([kMG]?)$")
_TIME = re.compile(r"^([0-9.]+)\s*(us|ms|s)$")

# Gains below this are within the model's error: not worth a change of training.
WORTHWHILE_GAIN = 1.1

# DDP's default bucket_cap_mb; the first bucket is smaller.
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True, slots=True)
class Model:
    """Parameter counts of a network: elements in tensors of two or more dimensions, in 1-D tensors, and tensors."""

    sparse_numel: int
    leftover_numel: int
    num_tensors: int

    @property
    def num_buckets(self) -> int:
        """DDP buckets at the default size."""
        return max(1, -(-4 * (self.sparse_numel + self.leftover_numel) // BUCKET_BYTES))


# benchmarks/shapes.py gives the same counts (tests/exchange/test_advise.py).
MODELS = {
    "resnet50": Model(25_502_912, 54_120, 161),
    "vgg16": Model(138_344_128, 13_416, 32),
    "bert_base": Model(109_360_128, 122_112, 199),
    "lstm1500": Model(51_000_000, 34_000, 10),
}


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan and what it means for one training step."""

    plan: ExchangePlan
    step_s: dict[str, float]
    """Predicted seconds of a step by method, compute included, fastest first."""
    answer: str


def advise(
    model: Model,
    link: Link,
    num_nodes: int,
    *,
    density: float = 0.001,
    codec: str = "int4",
    compute_s: float = 0.0,
    backward_s: float = 0.0,
    workers_per_core: float = 1.0,
) -> Advice:
    """Predict a step of every method.

    `compute_s` is forward, backward and update of one step without exchange; `backward_s` is the part of it during
    which buckets that are ready can already travel. Raises ValueError if `backward_s` exceeds `compute_s`.
    """
    if not 0 <= backward_s <= compute_s:
        raise ValueError(f"backward_s must lie between 0 and compute_s = {compute_s}, got {backward_s}")
    chosen = plan(
        model.sparse_numel, density, num_nodes, link, codec=codec, leftover_numel=model.leftover_numel,
        num_buckets=model.num_buckets, host=Host(workers_per_core=workers_per_core),
    )  # fmt: skip
    step_s = {
        name: compute_s + exposed_s(cost.seconds, backward_s, model.num_buckets) for name, cost in chosen.costs.items()
    }
    step_s = dict(sorted(step_s.items(), key=lambda item: item[1]))
    return Advice(chosen, step_s, _answer(chosen, step_s))


def exposed_s(exchange_s: float, backward_s: float, num_buckets: int) -> float:
    """Seconds of an exchange that the backward pass does not hide: the last bucket never overlaps."""
    hidden = backward_s * (num_buckets - 1) / num_buckets
    return max(exchange_s / num_buckets, exchange_s - hidden)


def _answer(chosen: ExchangePlan, step_s: dict[str, float]) -> str:
    best = next(iter(step_s))
    sparse = min(COMPRESSED, key=lambda name: step_s.get(name, float("inf")))
    dense_s = min(step_s["dense_fp32"], step_s["dense_bf16"])
    over_fp32, over_dense = step_s["dense_fp32"] / step_s[sparse], dense_s / step_s[sparse]
    parts = limits(chosen, sparse)
    limit = max(parts, key=lambda name: parts[name])
    rate = break_even_gbit_per_s(chosen, sparse)
    below = f"below about {rate:.3g} Gbit/s"
    if rate == float("inf"):
        below = "at every line rate, because TCP on one core is slower than compressing"
    if over_dense < WORTHWHILE_GAIN:
        cure = "plain DDP is as good" if best == "dense_fp32" else f"{best} is the fastest, plain DDP is simpler"
        if best in COMPRESSED:
            cure = f"{best} wins by less than the model's error, use plain DDP"
        return f"Do not compress: {cure}. Compression pays {below} here; it is limited by {limit}."
    return (
        f"Compress with {sparse}: a step is {over_fp32:.1f}x shorter than with fp32 DDP and {over_dense:.1f}x shorter "
        f"than with the best dense exchange. What limits it now: {limit}. Compression pays {below} here."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m dgcomp.advise`."""
    options = _parser().parse_args(arguments)
    try:
        model = MODELS[options.model] if options.model else Model(_count(options.parameters), 0, 1)
        link = Link.parse(options.link, options.rtt)
        advice = advise(
            model, link, options.nodes, density=options.density, codec=options.codec,
            compute_s=_seconds(options.compute), backward_s=_seconds(options.backward),
        )  # fmt: skip
    except ValueError as error:
        raise SystemExit(f"dgcomp.advise: {error}") from None
    _print(options, model, advice)


def _print(options: argparse.Namespace, model: Model, advice: Advice) -> None:
    name = options.model or options.parameters
    total = model.sparse_numel + model.leftover_numel
    print(f"{name}: {total:,} parameters, {4 * total / 2**20:.1f} MiB of fp32 gradients, {model.num_buckets} buckets")
    print(f"{options.nodes} nodes, {options.link}, round trip {options.rtt}, density {options.density}\n")
    print(f"{'method':12s} {'step, ms':>10s} {'vs fp32':>8s} {'MB sent':>9s} {'messages':>9s}")
    for method, seconds in advice.step_s.items():
        cost = advice.plan.costs[method]
        ratio = advice.step_s["dense_fp32"] / seconds
        row = f"{seconds * 1e3:10.1f} {ratio:7.1f}x {cost.bytes_sent / 1e6:9.3f} {cost.messages:9.0f}"
        print(f"{method:12s} {row}")
    print(f"\n{advice.answer}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dgcomp.advise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", choices=list(MODELS), help="a network whose parameter counts are known")
    which.add_argument("--parameters", metavar="COUNT", help='parameter count such as "25.6M" or "1.2G"')
    parser.add_argument("--link", required=True, help='line rate of a node, such as "1Gbps" or "100Mbit"')
    parser.add_argument("--rtt", default="0.2ms", help='round trip between nodes (default: "0.2ms")')
    parser.add_argument("--nodes", type=int, required=True, help="workers, each with its own link")
    parser.add_argument("--density", type=float, default=0.001, help="share of entries sent (default: 0.001)")
    parser.add_argument("--codec", default="int4", choices=list(VALUE_BITS), help="value format (default: int4)")
    parser.add_argument("--compute", default="0ms", metavar="TIME", help="a step without exchange (default: 0ms)")
    parser.add_argument("--backward", default="0ms", metavar="TIME", help="part of it that can hide exchange")
    return parser


def _count(text: str) -> int:
    match = _COUNT.match(text)
    if match is None:
        raise ValueError(f'--parameters must look like "25.6M", got {text!r}')
    return round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]])


def _seconds(text: str) -> float:
    match = _TIME.match(text)
    if match is None:
        raise ValueError(f'a time must look like "250ms" or "0.2s", got {text!r}')
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


if __name__ == "__main__":
    main()
