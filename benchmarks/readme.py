"""Write the figures of README.md from benchmarks/results; `--check` only says whether they are up to date.

No figure of the README's table is typed by hand: each comes from a row that names its command and commit.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, not as a module
    sys.path.insert(0, str(ROOT))

from benchmarks.evidence.recipes import HEADLINES  # noqa: E402

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Rows = list[dict[str, Any]]


def main() -> None:
    """Render the table, and put it into the README or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README is stale")
    readme, arguments = ROOT / "README.md", parser.parse_args()
    old = readme.read_text()
    new = with_figures(old, figures(ROOT / "benchmarks" / "results"))
    if not arguments.check:
        readme.write_text(new)
    elif old != new:
        raise SystemExit("README.md is stale; run python benchmarks/readme.py")


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


def _accuracy(rows: Rows) -> list[str]:
    source = "[accuracy](benchmarks/results/accuracy.md)"
    lines = []
    for task, method, name in HEADLINES:
        dense, ours = ([row for row in rows if row["name"].startswith(f"{task}/{one}/")] for one in ("dense", method))
        if dense and ours:
            title = f"{name}, 4 ranks, {ours[0]['steps']:,} steps: {ours[0]['metric'].removesuffix(' (%)')}"
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
