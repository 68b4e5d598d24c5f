"""Write the figures of README.md and docs/dgc.md from benchmarks/results; `--check` says whether they are up to date.

No figure of these tables is typed by hand: each comes from a row that names its command and commit.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, not as a module
    sys.path.insert(0, str(ROOT))

from benchmarks.evidence.recipes import HEADLINES, LENGTHS, METHODS, TASKS  # noqa: E402
from benchmarks.evidence.tables import Entry, entries, number, signed  # noqa: E402

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Rows = list[dict[str, Any]]

ADAM_METHODS = (
    *("dgc-local-adam-1-percent", "dgc-local-adam-equal-bytes", "dgc-local-adam"),
    *("dgc", "demo-like", "powersgd", "powersgd-1"),
)
"""What docs/dgc.md compares for AdamW."""


def main() -> None:
    """Render the tables, and put them into their pages or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    arguments = parser.parse_args()
    for name, table in TABLES.items():
        page = ROOT / name
        old = page.read_text()
        new = with_figures(old, table(ROOT / "benchmarks" / "results"))
        if not arguments.check:
            page.write_text(new)
        elif old != new:
            raise SystemExit(f"{name} is stale; run python benchmarks/readme.py")


def with_figures(text: str, table: str) -> str:
    """The text with the table between the two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def figures(folder: Path) -> str:
    """Markdown table of accuracy, bytes and time, from the results files that are there."""
    lines = ["| | dense DDP | dgcomp at 0.1 % | source |", "|---|---|---|---|"]
    lines += _accuracy(json.loads((folder / "accuracy.json").read_text()))
    lines += _sizes(json.loads((folder / "wire.json").read_text()))
    lines += _times(json.loads((folder / "bandwidth.json").read_text()))
    return "\n".join(lines)


def adam_figures(folder: Path) -> str:
    """Markdown table of what stands in front of, or in place of, AdamW: upload, and loss by length of the run."""
    rows = json.loads((folder / "accuracy.json").read_text())
    found = {task: entries(rows, task) for task in LENGTHS["char-gpt"]}
    found = {task: of_task for task, of_task in found.items() if "dense" in of_task}
    steps = (f"{of_task['dense'].rows[0]['steps']:,} steps" for of_task in found.values())
    lines = [f"| | less upload | {' | '.join(steps)} |", "|---" * (2 + len(found)) + "|"]
    for method in ADAM_METHODS:
        longest = [of_task[method] for of_task in found.values() if method in of_task]
        if longest:
            cells = (_loss(of_task.get(method)) for of_task in found.values())
            ratio = number(longest[-1].ratio("steady"))
            lines.append(f"| {METHODS[method].title} | {ratio} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _loss(entry: Entry | None) -> str:
    """Percent of perplexity against dense, with the error where there are several seeds."""
    return "" if entry is None else f"{signed(entry.loss, entry.loss_error)} % ({len(entry.rows)})"


TABLES: dict[str, Callable[[Path], str]] = {"README.md": figures, "docs/dgc.md": adam_figures}


def _accuracy(rows: Rows) -> list[str]:
    source = "[accuracy](benchmarks/results/accuracy.md)"
    lines = []
    for task, method, name in HEADLINES:
        dense, ours = ([row for row in rows if row["name"].startswith(f"{task}/{one}/")] for one in ("dense", method))
        if dense and ours:
            metric = ours[0]["metric"].removesuffix(" (%)")
            title = f"{name}, {TASKS[task].ranks} ranks, {ours[0]['steps']:,} steps: {metric}"
            lines.append(f"| {title} | {_spread(dense)} | {_spread(ours)} | {source} |")
    ratio = next(row["ratio"] for row in rows if row["name"].startswith("fashion-resnet8/dgc-int4/"))
    kinds = " / ".join(f"{ratio[kind]:,.0f}x" for kind in ("steady_matrices", "steady", "whole_run"))
    what = "ResNet-8: upload per step, tensors of 2 or more dimensions / everything / whole run"
    return [*lines, f"| {what} | 1x | {kinds} less | {source} |"]


def _spread(rows: Rows) -> str:
    """The mean, and where there are several seeds the lowest and the highest."""
    values, unit = [row["value"] for row in rows], " %" if "%" in rows[0]["metric"] else ""
    mean = f"{statistics.mean(values):.2f}{unit}"
    return (
        f"{mean} ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"
        if len(values) > 1
        else f"{mean} (1 seed)"
    )


def _sizes(results: dict[str, Any]) -> list[str]:
    source = "[wire](benchmarks/results/wire.md)"
    row = next(
        row
        for row in results["models"]["rows"]
        if (row["model"], row["codec"], row["dense_codec"]) == ("resnet50", "int4", "int4")
    )
    run = next(
        row["ratio"]
        for row in results["run"]["rows"]
        if (row["ramp"], row["codec"], row["dense_codec"]) == ("exponential", "int4", "int4")
    )
    dense_bytes = row["ratio"] * row["padded_bytes"]
    return [
        f"| ResNet-50: upload per step and worker, everything included | {dense_bytes / 1e6:.1f} MB "
        f"| {row['padded_bytes'] / 1e6:.3f} MB, {dense_bytes / row['padded_bytes']:,.0f}x less | {source} |",
        f"| ResNet-50: 90 epochs, 4 of them warm-up | 1x | {run:,.0f}x less | {source} |",
    ]


def _times(rows: Rows) -> list[str]:
    source = "[bandwidth](benchmarks/results/bandwidth.md)"
    lines = []
    for link, name in (("100mbit", "100 Mbit/s"), ("1gbit", "1 Gbit/s")):
        cell = {
            row["method"]: row["step_s"] * 1e3
            for row in rows
            if (row["link"], row["nodes"], row["model"], row["rtt_ms"], row["loss"]) == (link, 4, "resnet50", 0, 0)
        }
        dense = min(value for method, value in cell.items() if method.startswith("ddp_fp32"))
        ours = min(cell["dgc_all_gather"], cell["dgc_owner"])
        power = min(value for method, value in cell.items() if method.startswith("powersgd"))
        lines.append(
            f"| ResNet-50's gradients, 4 ranks at {name}: step with optimizer, without backward | {dense:,.0f} ms "
            f"| {ours:,.0f} ms, {dense / ours:.0f}x faster (best PowerSGD: {power:,.0f} ms) | {source} |"
        )
    return lines


if __name__ == "__main__":
    main()
