"""The paper's first claim, on every task and length: DGC equals dense training, and gradient dropping does not."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.claim import Claim, of_seeds
from benchmarks.evidence.recipes import LENGTHS, TASKS
from benchmarks.evidence.tables import Entry, entries, paired_losses, tasks_present

__all__ = ["accuracy_claims"]

AS_GOOD_AS_DENSE = {
    "dgc": "DGC at 0.1 %",
    "dgc-paper": "DGC at 0.1 %",
    "dgc-equal-bytes": "DGC with the paper's bytes, 0.3 % at 4 bits,",
    "dgc-local-adam": "DGC of local Adam directions at 0.1 %",
    "dgc-local-adam-equal-bytes": "DGC of local Adam directions with the paper's bytes",
    "dgc-local-adam-1-percent": "DGC of local Adam directions at 1 % and 4 bits",
}
SOURCE = "accuracy.json"


def accuracy_claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """As good as dense, better than dropping, 4-bit values cost nothing: by task and then by length."""
    return [claim for task in tasks_present(rows) for claim in _of_task(rows, task)]


def _of_task(rows: Sequence[dict[str, Any]], task: str) -> list[Claim]:
    found = entries(rows, task)
    base = next((name for name, lengths in LENGTHS.items() if task in lengths), task)
    topic = TASKS[base].title
    prefix = f"{next(iter(found.values())).rows[0]['steps']:,} steps: "
    claims = []
    for method, name in AS_GOOD_AS_DENSE.items():
        if method in found:
            claims += _as_good(topic, f"{prefix}{name} is as good as dense DDP", found[method], found.get("dense"))
    if "dgc-int4" in found:
        reference = "dgc" if "dgc" in found else "dense"
        text = f"{prefix}DGC with 4-bit values is as good as {'DGC' if reference == 'dgc' else 'dense DDP'}"
        claims += _as_good(topic, text, found["dgc-int4"], found.get(reference))
    if {"dgc", "drop"} <= found.keys():
        claims.append(_better(topic, f"{prefix}DGC is better than gradient dropping", found["dgc"], found["drop"]))
    if {"dgc", "powersgd-1"} <= found.keys():
        ours, power = found["dgc"], found["powersgd-1"]
        times = ours.ratio("steady") / power.ratio("steady")
        text = f"{prefix}DGC at 0.1 % is better than PowerSGD of rank 1, which sends {times:.1f} times as much"
        claims.append(_better(topic, text, ours, power))
    return claims


def _as_good(topic: str, text: str, entry: Entry, reference: Entry | None) -> list[Claim]:
    """A claim that holds if the mean loss is within the bar; none without a seed that both have."""
    losses = paired_losses(entry, reference) if reference else ()
    if not losses:
        return []
    bar = f"loss up to {entry.max_loss:g} {_unit(entry)}"
    return [of_seeds(topic, text, losses, entry.max_loss, _unit(entry), bar, SOURCE)]


def _better(topic: str, text: str, dgc: Entry, peer: Entry) -> Claim:
    losses = paired_losses(dgc, peer)
    if not losses:
        return Claim(topic, text, "loss below 0", "the other diverges", not peer.values, SOURCE)
    return of_seeds(topic, text, losses, 0.0, _unit(peer), "loss below 0", SOURCE)


def _unit(entry: Entry) -> str:
    return "% perplexity" if TASKS[entry.task].is_perplexity else "points"
