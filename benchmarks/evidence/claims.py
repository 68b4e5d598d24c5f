"""What a sceptical engineer would check first: the claim, its bar, what was measured, and whether it holds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.recipes import TASKS
from benchmarks.evidence.tables import Entry, entries, paired_losses, signed, tasks_present

__all__ = ["Claim", "accuracy_claims", "claims_markdown", "time_claims"]

AS_GOOD_AS_DENSE = {
    "dgc": "DGC at 0.1 %",
    "dgc-paper": "DGC at 0.1 %",
    "dgc-equal-bytes": "DGC with the paper's bytes, 0.3 % at 4 bits,",
    "dgc-local-adam": "DGC of local Adam directions at 0.1 %",
    "dgc-local-adam-equal-bytes": "DGC of local Adam directions with the paper's bytes",
}


@dataclass(frozen=True)
class Claim:
    """One sentence, its bar, the figure and the file that holds the rows behind it."""

    text: str
    bar: str
    measured: str
    is_met: bool
    source: str


def accuracy_claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """DGC equals dense, gradient dropping does not, 4-bit values cost nothing: one claim each for every task."""
    claims = []
    for task in tasks_present(rows):
        found = entries(rows, task)
        title = f"{TASKS[task].title}, {next(iter(found.values())).rows[0]['steps']:,} steps"
        for method, name in AS_GOOD_AS_DENSE.items():
            if method in found:
                claims += _as_good(f"{title}: {name} is as good as dense DDP", found[method], found.get("dense"))
        if "dgc-int4" in found:
            reference = "dgc" if "dgc" in found else "dense"
            text = f"{title}: DGC with 4-bit values is as good as {'DGC' if reference == 'dgc' else 'dense DDP'}"
            claims += _as_good(text, found["dgc-int4"], found.get(reference))
        if {"dgc", "drop"} <= found.keys():
            claims.append(_worse(title, found["dgc"], found["drop"]))
    return claims


def _as_good(text: str, entry: Entry, reference: Entry | None) -> list[Claim]:
    """A claim that holds if the mean loss is within the bar; none without a seed that both have."""
    losses = paired_losses(entry, reference) if reference else ()
    if not losses:
        return []
    loss = statistics.mean(losses)
    error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    measured = f"{signed(loss, error)} {_unit(entry)}, {len(losses)} seed{'s' * (len(losses) > 1)}"
    bar = f"loss up to {entry.max_loss:g} {_unit(entry)}"
    return [Claim(text, bar, measured, loss <= entry.max_loss, "accuracy.json")]


def _worse(title: str, dgc: Entry, drop: Entry) -> Claim:
    text = f"{title}: gradient dropping is worse than DGC"
    losses = paired_losses(drop, dgc)
    if not losses:
        return Claim(text, "worse", "gradient dropping diverges", not drop.values, "accuracy.json")
    gap = statistics.mean(losses)
    return Claim(text, "worse", f"{gap:+.2f} {_unit(drop)} worse than DGC", gap > 0, "accuracy.json")


def _unit(entry: Entry) -> str:
    return "% perplexity" if TASKS[entry.task].is_perplexity else "points"


def time_claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """A step with DGC is faster than the fastest peer on every shaped link and, as a rule, not where there is none."""
    claims = []
    for link, name in (("100mbit", "100 Mbit/s"), ("1gbit", "1 Gbit/s"), ("unshaped", "an unshaped link")):
        cell = {
            row["method"]: row["step_s"]
            for row in rows
            if (row["link"], row["nodes"], row["model"], row["rtt_ms"], row["loss"]) == (link, 4, "resnet50", 0.0, 0.0)
        }
        ours = {method: seconds for method, seconds in cell.items() if method.startswith("dgc")}
        peers = {method: seconds for method, seconds in cell.items() if method not in {*ours, "none"}}
        if ours and peers:
            best, peer = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
            claims.append(
                Claim(
                    f"ResNet-50's gradients, 4 workers, {name}: a step with DGC is faster than every peer's",
                    "faster",
                    f"{ours[best] * 1e3:,.0f} ms ({best}) against {peers[peer] * 1e3:,.0f} ms ({peer})",
                    ours[best] < peers[peer],
                    "bandwidth.json",
                )
            )
    return claims


def claims_markdown(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table, as the README may show them."""
    lines = ["| claim | bar | measured | holds |", "|---|---|---|---|"]
    lines += [
        f"| {claim.text} | {claim.bar} | {claim.measured} | {'yes' if claim.is_met else '**no**'} |" for claim in claims
    ]
    return "\n".join(lines) + "\n"
