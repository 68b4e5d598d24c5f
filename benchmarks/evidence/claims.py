"""What a sceptical engineer would check first: the claim, its bar, what was measured, and whether it holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.recipes import TASKS
from benchmarks.evidence.tables import Entry, entries, signed, tasks_present

__all__ = ["Claim", "accuracy_claims", "claims_markdown", "time_claims"]

DGC_METHODS = {
    "dgc": "DGC",
    "dgc-paper": "DGC",
    "dgc-int4": "DGC with 4-bit values",
    "dgc-local-adam": "DGC of local Adam directions",
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
        title = TASKS[task].title
        unit = "% perplexity" if TASKS[task].is_perplexity else "points"
        for method, name in DGC_METHODS.items():
            if method in found and found[method].losses:
                claims.append(_close_to_dense(title, name, found[method], unit))
        if {"dgc", "drop"} <= found.keys():
            claims.append(_worse(title, found["dgc"], found["drop"], unit))
    return claims


def _close_to_dense(title: str, name: str, entry: Entry, unit: str) -> Claim:
    return Claim(
        f"{title}: {name} at 0.1 % is as good as dense DDP",
        f"loss up to {entry.max_loss:g} {unit}",
        f"{signed(entry.loss, entry.loss_error)} {unit}, {len(entry.losses)} seed{'s' * (len(entry.losses) > 1)}",
        entry.loss <= entry.max_loss,
        "accuracy.json",
    )


def _worse(title: str, dgc: Entry, drop: Entry, unit: str) -> Claim:
    gap = drop.loss - dgc.loss if drop.values else math.inf
    measured = f"{gap:+.2f} {unit} worse than DGC" if drop.values else "gradient dropping diverges"
    return Claim(f"{title}: gradient dropping is worse than DGC", "worse", measured, gap > 0, "accuracy.json")


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
