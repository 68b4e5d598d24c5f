"""Claims of the other papers: OCTAV and VS-Quant, Winograd-ReLU, SpArch and EIE, CaTDet and PatchNet, SatIn."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.claim import Claim, at_least, at_most, of_seeds
from benchmarks.sparse_report import curves, reduction_table, spgemm_table

__all__ = ["hardware_claims", "quantization_claims", "satin_claims", "sparse_claims", "video_claims"]

Rows = Sequence[dict[str, Any]]

OCTAV = "octav, mph"
PEERS = ("max scaling", "octav, ste", "octav, mad", "octav, pwl")
RESNET20, MINILM = "ResNet-20 on CIFAR-10 (JPEG), after training", "MiniLM on the STS benchmark, after training"
FROM_SCRATCH = "4 bits"
"""What names the experiments that train with quantization from the start."""
FROM_SCRATCH_LOSS, AFTER_TRAINING_LOSS, SPEARMAN_LOSS = 0.5, 1.0, 0.5
SATIN_PAPER = 72
EIE_ACTUAL, EIE_THEORETICAL = 0.11, 0.08


def quantization_claims(rows: Rows) -> list[Claim]:
    """OCTAV with magnitude-aware gradients first of all, from scratch; per-vector scales after training."""
    claims = []
    for title in dict.fromkeys(row["experiment"] for row in rows if FROM_SCRATCH in row["experiment"]):
        claims += _from_scratch(title, [row for row in rows if row["experiment"] == title])
    return claims + _after_training(rows)


def _from_scratch(title: str, rows: Rows) -> list[Claim]:
    scores = _scores(rows)
    if not {"fp32", OCTAV} <= scores.keys():
        return []
    is_perplexity = rows[0]["metric"] == "perplexity"
    topic, source = f"4-bit training: {title.replace(', 4 bits', '')}", "quant_accuracy.json"
    unit = "of perplexity" if is_perplexity else "points"
    claims = []
    if not is_perplexity:
        losses = _losses(scores["fp32"], scores[OCTAV])
        bar = f"loss up to {FROM_SCRATCH_LOSS:g} points"
        text = "OCTAV with magnitude-aware gradients is as good as fp32"
        claims.append(of_seeds(topic, text, losses, FROM_SCRATCH_LOSS, unit, bar, source))
    for peer in (peer for peer in PEERS if peer in scores):
        better, worse = (scores[OCTAV], scores[peer]) if is_perplexity else (scores[peer], scores[OCTAV])
        text = f"OCTAV with magnitude-aware gradients is better than {_named(peer)}"
        claims.append(of_seeds(topic, text, _losses(better, worse), 0.0, unit, "loss below 0", source))
    return claims


def _after_training(rows: Rows) -> list[Claim]:
    topic, source = "Per-vector scales after training, weights and activations at 4 bits", "quant_accuracy.json"
    claims = []
    images = _scores([row for row in rows if row["experiment"] == RESNET20])
    one, other = "4/4/4/4 consistent, statistics corrected", "4/4 max per channel, statistics corrected"
    if {"fp32", one, other} <= images.keys():
        loss, worse = (statistics.mean(_losses(images["fp32"], images[name])) for name in (one, other))
        text = "ResNet-20, CIFAR-10 (JPEG), 4/4/4/4, statistics corrected on unlabelled samples: loss in points"
        claims.append(at_most(topic, text, loss, AFTER_TRAINING_LOSS, source))
        text = "scales by the maximum of each channel lose several times as much"
        measured = f"{worse:.2f} against {loss:.2f}"
        claims.append(Claim(topic, text, "at least 3 times", measured, worse >= 3 * loss, source))
        plain = statistics.mean(_losses(images["fp32"], images["4/4/4/4 consistent"]))
        claims.append(
            at_most(topic, "4/4/4/4 without the correction: loss in points", plain, AFTER_TRAINING_LOSS, source)
        )
    words = _scores([row for row in rows if row["experiment"] == MINILM])
    for name in (name for name in ("4/8/6/10 consistent", "4/8/4/8 consistent") if name in words):
        loss = statistics.mean(_losses(words["fp32"], words[name]))
        text = f"MiniLM on STS-B, {name.split()[0]}: loss of Spearman's correlation x 100"
        claims.append(at_most(topic, text, loss, SPEARMAN_LOSS, source))
    return claims


def _named(method: str) -> str:
    kind = method.removeprefix("octav, ")
    return method if kind == method else f"OCTAV with {kind.upper()} gradients"


def _scores(rows: Rows) -> dict[str, dict[int, float]]:
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["method"], {})[row["seed"]] = row["score"]
    return scores


def _losses(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """The first minus the second, for each seed that both have."""
    return [value - other[seed] for seed, value in one.items() if seed in other]


def sparse_claims(rows: Rows) -> list[Claim]:
    """Winograd-ReLU's reduction beside both other ways to prune, and the products beside SciPy, MKL and torch."""
    topic, source = "Pruning: multiplies saved at 0.5 points below the dense network, same steps", "sparse.json"
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in reduction_table(curves([row for row in rows if row["what"] == "prune"])):
        found.setdefault(row["task"], {})[row["method"]] = row
    claims = []
    for task, methods in found.items():
        if "winograd-relu" not in methods:
            continue
        texts = {name: row["reduction at 0.5 points, same steps"] for name, row in methods.items()}
        numbers = {name: _reduction(text) for name, text in texts.items()}
        ours = numbers.pop("winograd-relu")
        measured = ", ".join(f"{name} {text}{'x' * (text != 'none')}" for name, text in texts.items())
        seeds = methods["winograd-relu"]["seeds"]
        is_met = ours >= 10 and all(ours > other for other in numbers.values())
        text = f"{task}: Winograd-ReLU saves most, {seeds} seed{'s' * (seeds > 1)}"
        claims.append(Claim(topic, text, "at least 10x, and more than both others", measured, is_met, source))
    return claims + _products(rows)


def _reduction(text: str) -> float:
    return 0.0 if text == "none" else float(text.removeprefix("> "))


def _products(rows: Rows) -> list[Claim]:
    topic, source, form = "Sparse products", "sparse.json", "{:.2f}x"
    claims = []
    for row in spgemm_table(row for row in rows if row["what"] == "spgemm"):
        text = f"{row['matrix']} times itself, faster than {{}}"
        over_scipy, over_mkl = float(row["SciPy / dgcomp"]), float(row["MKL / dgcomp"])
        claims.append(at_least(topic, text.format("SciPy, one thread"), over_scipy, 2, source, form))
        claims.append(at_least(topic, text.format("torch's MKL, two threads"), over_mkl, 1.5, source, form))
    ms = [row["ms"] for row in rows if row["what"] == "matvec" and row["threads"] == 1][-1:]
    for one in ms:
        text = (
            "EIE's format times a vector, 10 % of the weights and 35 % of the activations, one thread: faster than {}"
        )
        claims.append(at_least(topic, text.format("dense torch"), one["dense"] / one["eie"], 1, source, form))
        claims.append(at_least(topic, text.format("torch CSR"), one["torch_csr"] / one["eie"], 1, source, form))
    return claims


def hardware_claims(record: dict[str, Any]) -> list[Claim]:
    """The cost models beside the published tables, and what watching a training costs."""
    topic, source = "Accelerator cost models", "hardware.json"
    layers = record["published"]["tables"]["EIE, Table IV (us), random patterns"]
    near = sum(
        abs(row["actual_off"]) <= EIE_ACTUAL and abs(row["theoretical_off"]) <= EIE_THEORETICAL for row in layers
    )
    clocks = next(iter(record["overhead"]["tables"].values()))
    overhead = max(row["overhead_at_every_50"] for row in clocks)
    text = "EIE's Table IV from random patterns: layers within 11 % of actual and 8 % of theoretical times"
    return [
        Claim(topic, text, "7 of 9", f"{near} of {len(layers)}", near >= 7, source),
        at_most(
            topic, "four accelerators watching ResNet-20 train, default sampling", overhead, 0.05, source, "{:.1%}"
        ),
    ]


def video_claims(catdet: Rows, patchnet: Rows) -> list[Claim]:
    """CaTDet beside the single detector, and PatchNet trained here beside the released weights."""
    topic, source, claims = "Video", "video_catdet.json", []
    by_name = {row["name"]: row for row in catdet}
    single = next((row for name, row in by_name.items() if name.startswith("single")), None)
    for name, alone in (("CaTDet", "cascade without tracker"), ("CaTDet, motion proposes", "cascade, motion proposes")):
        if single and {name, alone} <= by_name.keys():
            row, without = by_name[name], by_name[alone]
            fewer = single["operations"]["total"] / row["operations"]["total"]
            precision, delay = 100 * (row["ap50"] - single["ap50"]), row["ad_official"] - single["ad_official"]
            measured = f"{fewer:.1f}x, {precision:+.2f} points, {delay:+.2f} frames"
            bar = "at least 5x fewer operations, AP within 1 point, AD within 0.5 frames"
            is_met = fewer >= 5 and precision >= -1 and delay <= 0.5
            claims.append(Claim(topic, f"{name}, PETS09 beside the single detector", bar, measured, is_met, source))
            lost = 100 * (without["ap50"] - row["ap50"])
            claims.append(Claim(topic, f"{name}: without its tracker", "AP falls", f"{lost:+.2f}", lost < 0, source))
    quality = {row["start"]: row["mean_iou"] for row in patchnet if row["what"] == "quality"}
    if {"box kept still", "released weights", "random, trained"} <= quality.keys():
        names = ("box kept still", "released weights", "random, trained")
        shares = [(own - still) / (full - still) for still, full, own in zip(*(quality[n] for n in names), strict=True)]
        text = (
            "PatchNet trained here from scratch: its gain over a still box beside the released weights', worst interval"
        )
        claims.append(at_least(topic, text, min(shares), 0.9, "video_patchnet.json", "{:.0%}"))
    return claims


def satin_claims(rows: Rows) -> list[Claim]:
    """The modelled chip beside Glucose, and the paper's average."""
    newest = {(row["part"], row["figures"].get("family"), row["figures"].get("name")): row for row in rows}
    speedups = [
        found["glucose42"]["seconds"] / found["satin1"]["seconds"]
        for (part, *_), row in newest.items()
        if part == "families"
        and all((found := row["figures"])[s]["answer"] is not None for s in ("glucose42", "satin1"))
    ]
    if not speedups:
        return []
    mean = math.exp(statistics.mean(map(math.log, speedups)))
    measured = f"{mean:.1f}x, {len(speedups)} formulas ({min(speedups):.1f}x to {max(speedups):.0f}x)"
    text = "the modelled chip over Glucose on one thread, geometric mean (the paper's formulas are not known)"
    topic, bar = "SatIn (a reconstruction)", f"the paper's {SATIN_PAPER}x"
    return [Claim(topic, text, bar, measured, mean >= SATIN_PAPER, "satin.json")]
