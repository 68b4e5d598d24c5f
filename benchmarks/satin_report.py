"""Tables and figures of the SatIn benchmark, from results/satin.json, and the drawing of the modelled machine."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from dgcomp.hwmodel import satin

__all__ = ["RECORDS", "draw_machine", "render"]

HERE = Path(__file__).resolve().parent / "results"
RECORDS = HERE / "satin.json"
GUIDE = HERE.parents[1] / "docs" / "satin.md"
PAPER = {1: 72, 2: 113}
HEADER = (
    "| formula | answer | Glucose 4.2 s (propagations) | CaDiCaL 1.9.5 s (propagations) | SatIn s (propagations) |"
    " SatIn, 2 contexts s | speed-up | with 2 | per propagation | gain 2 | propagations per decision |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def gains(row: dict[str, Any]) -> dict[str, float | None]:
    """Ratios of one formula; None where a solver did not finish."""
    glucose, one, two, other = (row[k] for k in ("glucose42", "satin1", "satin2", "other"))
    done = {k: row[k]["answer"] is not None for k in ("glucose42", "satin1", "satin2", "other")}
    compared = done["glucose42"] and done["satin1"]
    per_propagation = [x["seconds"] / max(x["propagations"], 1) for x in (glucose, one)]
    # what the two searches would have taken one after the other, for the work that they did together
    alone = [x["seconds"] / max(x["propagations"], 1) for x in (one, other)]
    serial = sum(n * s for n, s in zip(two["context_propagations"], alone, strict=True))
    return {
        "speedup1": glucose["seconds"] / one["seconds"] if compared else None,
        "speedup2": glucose["seconds"] / two["seconds"] if done["glucose42"] and done["satin2"] else None,
        "hardware": per_propagation[0] / per_propagation[1] if compared else None,
        "contexts": serial / two["seconds"] if done["satin1"] and done["satin2"] else None,
        "propagations_per_decision": one["propagations"] / max(one["decisions"], 1),
    }


def render(description: str) -> None:
    """Markdown table and figure of the newest record of every formula and of the speed part."""
    records = json.loads(RECORDS.read_text())
    newest = {(r["part"], r["figures"].get("family"), r["figures"].get("name")): r for r in records}
    rows = [r["figures"] for r in newest.values() if r["part"] == "families"]
    points = next((r["figures"]["points"] for r in newest.values() if r["part"] == "trend"), [])
    lines = ["# SatIn against Glucose and CaDiCaL", "", description, *speed_lines(newest), "", *trend_lines(points)]
    lines += table(rows) if rows else []
    lines += ["", f"Machine: {records[-1]['machine']}. Versions: {records[-1]['versions']}. Commands:", ""]
    lines += [f"- `{c}` (commit {k})" for c, k in dict.fromkeys((r["command"], r["commit"]) for r in newest.values())]
    if rows:
        write_guide([line for line in lines if line.startswith("| **") or line in HEADER])
    (HERE / "satin.md").write_text("\n".join(lines) + "\n")
    if rows:
        figure(rows, points)


def write_guide(means: list[str]) -> None:
    """Put the geometric means between the marks in docs/satin.md, without the columns that stay empty for them."""
    kept = [[cell for i, cell in enumerate(line.strip("|").split("|")) if i not in (1, 2, 3, 5)] for line in means]
    kept[0][1:2] = [" range of speed-ups "]
    before, rest = GUIDE.read_text().split("<!-- means -->\n")
    after = rest.split("<!-- end of means -->")[1]
    body = "\n".join("|" + "|".join(cells) + "|" for cells in kept)
    GUIDE.write_text(f"{before}<!-- means -->\n{body}\n<!-- end of means -->{after}")


def speed_lines(newest: dict[Any, dict[str, Any]]) -> list[str]:
    """The speed part as a list."""
    figures = next((r["figures"] for r in newest.values() if r["part"] == "speed"), {})
    return ["## The simulator itself", "", "| what | median of 3 |", "| --- | ---: |"] + [
        f"| {name} | {value:.3f} |" for name, value in figures.items()
    ]


def trend_lines(points: list[dict[str, Any]]) -> list[str]:
    """The trend part as a table."""
    lines = [
        "## Propagations per decision, all else equal",
        "",
        "| chain | propagations per decision | Glucose ns | SatIn ns |",
    ]
    lines[-1] += " speed-up per propagation | gain of two contexts |"
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for p in points:
        cells = (p["depth"], p["propagations_per_decision"], p["glucose_ns"], p["satin_ns"])
        cells += (p["glucose_ns"] / p["satin_ns"], p["gain2"])
        lines.append("| " + " | ".join(f"{x:.3g}" for x in cells) + " |")
    return [*lines, ""]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per formula, one geometric mean per family and over all."""
    lines = [
        "## Families",
        "",
        "SatIn's times are modelled, the others measured. Gain 2: what the searches of two contexts would have taken"
        " one after the other, over what they took together.",
        "",
        *HEADER,
    ]
    found = [(row, gains(row)) for row in rows]
    for row, gain in found:
        answer = {True: "sat", False: "unsat", None: "?"}[row["glucose42"]["answer"]]
        cells = [f"{row['family']} {row['name']}", answer]
        cells += [f"{seconds(row[k])} ({row[k]['propagations']:,})" for k in ("glucose42", "cadical195", "satin1")]
        cells += [seconds(row["satin2"]), *("-" if value is None else f"{value:.3g}" for value in gain.values())]
        lines.append("| " + " | ".join(cells) + " |")
    for family in [*dict.fromkeys(row["family"] for row in rows), "all"]:
        some = [gain for row, gain in found if family in (row["family"], "all")]
        columns = [[value for gain in some if (value := gain[key]) is not None] for key in some[0]]
        spread = f"speed-ups {min(columns[0]):.3g} to {max(columns[0]):.3g}" if columns[0] else ""
        cells = [f"**{family}**, geometric mean of {len(columns[0])} of {len(some)}", "", "", "", spread, ""]
        cells += [f"**{geometric_mean(column):.3g}**" if column else "-" for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"The paper's averages over Glucose: {PAPER[1]} with one context, {PAPER[2]} with two (1.57 times)."]
    return lines


def seconds(run: dict[str, Any]) -> str:
    return f"{run['seconds']:.3g}" if run["answer"] is not None else "time limit"


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def figure(rows: list[dict[str, Any]], points: list[dict[str, Any]]) -> None:
    """Three panels: hardware speed-up over propagations per decision, gain of two contexts, speed-up by family."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [(row, gains(row)) for row in rows]
    names = list(dict.fromkeys(row["family"] for row, _ in found))
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6))
    for i, name in enumerate(names):
        some = [(row, g) for row, g in found if row["family"] == name]
        colour = f"C{i}"
        left.scatter(
            [g["propagations_per_decision"] for _, g in some],
            [g["hardware"] for _, g in some],
            color=colour,
            label=name,
        )
        middle.scatter(
            [row["satin1"]["central_share"] for row, _ in some], [g["contexts"] for _, g in some], color=colour
        )
        right.scatter([i] * len(some), [g["speedup1"] for _, g in some], color=colour)
        right.scatter([i + 0.25] * len(some), [g["speedup2"] for _, g in some], color=colour, marker="^")
    left.set(
        xscale="log", yscale="log", xlabel="propagations per decision", ylabel="Glucose s / SatIn s, per propagation"
    )
    for depth in dict.fromkeys(p["depth"] for p in points):
        some = [p for p in points if p["depth"] == depth]
        x, y = [p["propagations_per_decision"] for p in some], [p["glucose_ns"] / p["satin_ns"] for p in some]
        left.plot(x, y, "-" if depth == 1 else "--", color="black", label=f"no conflicts, chains of {depth}")
    left.set_xlim(1.5, 4e4)  # room for the legend
    left.legend(fontsize=8, loc="center right")
    middle.plot([p["central_share"] for p in points], [p["gain2"] for p in points], "k+", label="no conflicts")
    middle.legend(fontsize=8)
    middle.axhline(PAPER[2] / PAPER[1], color="grey", linestyle="--")
    middle.text(0.02, 1.58, "paper 1.57", transform=middle.get_yaxis_transform(), fontsize=8)
    middle.set(
        xlabel="share of cycles in which the central unit works, 1 context", ylabel="throughput of 2 contexts over 1"
    )
    for contexts, value in PAPER.items():
        right.axhline(value, color="grey", linestyle="--")
        right.text(
            0.01,
            value * 1.04,
            f"paper, {contexts} context{'s' * (contexts > 1)}",
            transform=right.get_yaxis_transform(),
            fontsize=8,
        )
    right.set(yscale="log", ylabel="Glucose s / SatIn s (dots 1 context, triangles 2)")
    right.set_xticks(range(len(names)), names, rotation=40, ha="right")
    fig.suptitle("Modelled SatIn (reconstruction) against Glucose 4.2 measured in the same run")
    fig.tight_layout()
    fig.savefig(HERE / "satin.png", dpi=110)


def draw_machine(path: Path) -> None:
    """The mesh with its inward tree, the central unit and one bank enlarged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chip = satin.Machine()
    timing = chip.timing()
    fig, axes = plt.subplots(figsize=(13, 7.2))
    for bank in range(chip.num_banks):
        row, column = divmod(bank, chip.columns)
        axes.add_patch(plt.Rectangle((column - 0.3, row - 0.3), 0.6, 0.6, fc="#cfe3f5", ec="#4a7aa8"))
        if timing.parent[bank] >= 0:
            to_row, to_column = divmod(int(timing.parent[bank]), chip.columns)
            arrow = {"arrowstyle": "-|>", "color": "#555555", "lw": 0.8, "shrinkA": 6, "shrinkB": 6}
            axes.annotate("", (to_column, to_row), (column, row), arrowprops=arrow)
    row, column = chip.center
    axes.add_patch(plt.Rectangle((column - 0.4, row - 0.4), 0.8, 0.8, fc="#f4b183", ec="black", zorder=3))
    central = [
        "CPU: decisions, 1-UIP analysis, deletion, restarts",
        "trail: the order in which implications were let out",
        "received-implication sorter: 1 flit per cycle in,",
        "drops duplicates, keeps the order of causes",
        "port: 1 flit per cycle out",
    ]
    bank_lines = [
        f"about {round(chip.capacity / chip.num_banks)} clause nodes, each with literals, their",
        "state, a count of open ones, LBD, activity",
        "match, 1 cycle: all nodes see an assignment at once",
        "a node with one open literal left sends IMPLY",
        "router: broadcasts out, first come first served in",
    ]
    for top, title, colour, lines, target in (
        (13.2, "Central unit", "#fbe0cc", central, (column, row)),
        (5.4, f"One bank of {chip.num_banks}", "#e5f0fa", bank_lines, (14.3, 4)),
    ):
        axes.add_patch(plt.Rectangle((17, top - 4.6), 12.8, 4.9, fc=colour, ec="black"))
        axes.text(17.3, top - 0.5, title, weight="bold", fontsize=11)
        for i, line in enumerate(lines):
            axes.text(17.3, top - 1.35 - 0.75 * i, line, fontsize=9)
        axes.annotate("", target, (17, top - 2.2), arrowprops={"arrowstyle": "-", "lw": 1.2, "ls": ":"})
    note = "arrows: messages to the centre, along the row, then the column; broadcasts run the same tree outwards"
    axes.text(-0.5, -1.9, note, fontsize=9)
    axes.set(xlim=(-1, 30), ylim=(-2.5, 16.5), aspect="equal")
    axes.axis("off")
    size = f"{chip.rows} x {chip.columns} banks, {chip.capacity:,} clause nodes, {chip.chip_area_mm2:.0f} mm2, 1 ns"
    axes.set_title(f"SatIn as modelled: {size} (mesh layout: reconstruction)")
    fig.savefig(path, dpi=100, bbox_inches="tight")
