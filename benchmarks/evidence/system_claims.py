"""Claims on bytes, time and survival: the wire, kernels, shaped links, the cost model, elastic runs and restarts."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.claim import Claim, at_least, at_most

__all__ = ["kernel_claims", "robustness_claims", "scale_claims", "time_claims", "wire_claims"]

Rows = Sequence[dict[str, Any]]

PUBLISHED_RATIOS = {"resnet50": ("ResNet-50", 277), "lstm1500": ("the language model of two LSTM layers", 462)}
"""DGC's Tables 2 and 3"""
EXCHANGE_BARS = {"100mbit": ("100 Mbit/s", 80, 4), "1gbit": ("1 Gbit/s", 15, 2)}
"""How many times faster than dense DDP in fp32, and than the best PowerSGD"""


def wire_claims(record: dict[str, Any]) -> list[Claim]:
    """Bytes of a step and of a run, and how near the position codecs come to the entropy."""
    topic, source = "Bytes on the wire", "wire.json"
    models = {(row["model"], row["codec"], row["dense_codec"]): row for row in record["models"]["rows"]}
    claims = []
    for model, (name, published) in PUBLISHED_RATIOS.items():
        ratio = models[model, "paper", "fp32"]["message_ratio"]
        text = f"the paper's format, 48 bits an entry, has the paper's ratio on {name}"
        claims.append(Claim(topic, text, f"{published}x", f"{ratio:.0f}x", round(ratio) == published, source))
    ours = models["resnet50", "int4", "int4"]
    run = next(r for r in record["run"]["rows"] if (r["ramp"], r["codec"]) == ("exponential", "int4"))
    real = next(row for row in record["real"]["rows"] if row["density"] == 0.001)
    share = max(
        row["share"]
        for row in record["times"]["rows"]
        if row["density"] == 0.001 and row["codec"] in ("int4+rice", "int4+block")
    )
    return [
        *claims,
        at_least(topic, "ResNet-50 at 0.1 % and 4 bits, tensors of two dimensions", ours["sparse_ratio"], 1900, source),
        at_least(topic, "ResNet-50 at 0.1 % and 4 bits, everything included", ours["ratio"], 1200, source),
        at_least(topic, "ResNet-50, 90 epochs with the warm-up", run["ratio"], 500, source),
        at_most(
            topic, "Rice positions over their entropy, a real training", real["rice"] / real["entropy"], 1.03, source
        ),
        at_most(topic, "block positions over their entropy", real["block"] / real["entropy"], 1.08, source),
        at_most(topic, "encoding and decoding over the update pass", share, 0.05, source, "{:.1%}"),
    ]


def kernel_claims(rows: Rows) -> list[Claim]:
    """The update pass beside the memory's limit and beside the op-by-op chain, newest run."""
    speed = {(row["dtype"], row["density"], row["threads"]): row for row in rows[-1]["speed"]}
    one, two = (speed["float32", 0.001, threads] for threads in (1, 2))
    topic, source = "Kernels", "kernels.json"
    text = "update, selection and masking over the time of moving 20 bytes an element, {}"
    return [
        at_most(topic, text.format("one thread"), one["time_over_limit"], 1.5, source),
        at_most(topic, text.format("two threads"), two["time_over_limit"], 1.5, source),
        at_least(
            topic,
            "faster than the chain of torch operations, one thread",
            one["faster_than_chain"],
            8,
            source,
            "{:.1f}x",
        ),
    ]


def time_claims(rows: Rows) -> list[Claim]:
    """What an exchange adds to a step on slow links, and that a step without a slow link is not slower."""
    claims = []
    for link, (name, over_dense, over_power) in EXCHANGE_BARS.items():
        cell = _cell(rows, link)
        if {"none", "dgc_owner"} <= cell.keys():
            claims += _exchange(cell, f"{name}: the exchange is faster than {{}}", over_dense, over_power)
    cell = _cell(rows, "unshaped")
    if "dgc_auto" in cell:
        dense = min(seconds for method, seconds in cell.items() if method.startswith("ddp"))
        text = 'an unshaped link: a step with `exchange="auto"` over one of plain DDP'
        claims.append(at_most(TIME_TOPIC, text, cell["dgc_auto"] / dense, 1.03, "bandwidth.json"))
    return claims


TIME_TOPIC = "ResNet-50's gradients, 4 workers"


def _cell(rows: Rows, link: str) -> dict[str, float]:
    """Seconds of a step by method, ResNet-50's gradients and 4 workers."""
    wanted = (link, 4, "resnet50", 0.0, 0.0)
    return {
        row["method"]: row["step_s"]
        for row in rows
        if (row["link"], row["nodes"], row["model"], row["rtt_ms"], row["loss"]) == wanted
    }


def _exchange(cell: dict[str, float], text: str, over_dense: float, over_power: float) -> list[Claim]:
    """What the owner exchange adds to a step that exchanges nothing, beside the fastest of each peer."""
    ours, claims = cell["dgc_owner"], []
    for peer, name, bar in (("ddp_fp32", "fp32 DDP", over_dense), ("powersgd", "any PowerSGD", over_power)):
        seconds = [value for method, value in cell.items() if method.startswith(peer)]
        if seconds:
            net = (min(seconds) - cell["none"]) / (ours - cell["none"])
            measured = f"{net:,.1f}x; the whole step {min(seconds) / ours:,.1f}x"
            claims.append(
                Claim(TIME_TOPIC, text.format(name), f"at least {bar}x", measured, net >= bar, "bandwidth.json")
            )
    return claims


def scale_claims(record: dict[str, Any]) -> list[Claim]:
    """The cost model beside measured steps, and the paper's Figure 6 by it."""
    topic, source = "More workers, by the cost model", "scale.json"
    errors = [abs(point["error"]) for point in record["validation"]]
    within = sum(error <= 0.15 for error in errors)
    measured = f"{within} of {len(errors)}, the worst {max(errors):.0%}"
    text = "every measured step of up to 8 workers is predicted within 15 %"
    figure6 = record["figure6"]["dgc, paper, 1gbit"]
    return [
        Claim(topic, text, f"{len(errors)} of {len(errors)}", measured, within == len(errors), source),
        at_least(topic, "AlexNet on 64 nodes, DGC at 1 Gbit/s (Figure 6), speed-up over one", figure6, 40, source),
    ]


def robustness_claims(elastic: Rows, restarts: Rows, soak: Rows) -> list[Claim]:
    """Elastic runs beside undisturbed ones, kill -9 at random, and long runs on a lossy link."""
    topic, claims = "When something breaks", []
    losses = [[row["loss"] for row in elastic if row["ranks"] == ranks] for ranks in ("4", "4 -> 2 -> 4")]
    if all(losses):
        plain, resized = losses
        inside = sum(min(plain) <= loss <= max(plain) for loss in resized)
        text = "4 -> 2 -> 4 ranks while training: the final loss lies within the seeds of undisturbed runs"
        measured = f"{inside} of {len(resized)}"
        bar = f"{len(resized)} of {len(resized)}"
        claims.append(Claim(topic, text, bar, measured, inside == len(resized), "elastic.json"))
    for row in restarts:
        text = f"{row['restarts']:,} restarts of {row['ranks']} rank{'s' * (row['ranks'] > 1)} after SIGKILL"
        equal = "equal" if row["weights_bitwise_equal"] else "not equal"
        measured = f"{row['checkpoints_lost']} lost, weights {equal} to the bit"
        is_met = row["checkpoints_lost"] == 0 and row["weights_bitwise_equal"]
        claims.append(Claim(topic, text, "no checkpoint lost, equal weights", measured, is_met, "restarts.json"))
    for row in soak:
        text = f"{row['steps']:,} steps over {row['loss']:.1%} loss and {row['rtt_ms']:g} ms ({row['method']})"
        equal = row["replicas_bitwise_equal"] and row["weights_finite"]
        measured = "equal to the bit" if equal else "replicas differ"
        claims.append(Claim(topic, text, "equal replicas", measured, equal, "soak.json"))
    return claims
