"""SatIn's modelled time against Glucose and CaDiCaL on the same formulas, in the same run.

Speed-up is Glucose's time (one thread; least of three) divided by the modelled time of the chip. Searches differ, so
every row has propagation counts beside it, and the "per propagation" column divides both times by their own counts:
that is the hardware alone.
The limit of the model is one broadcast per cycle, 1 ns per propagation; a decision costs a round trip to the last bank.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np

from dgcomp.hwmodel import satin
from dgcomp.hwmodel.satin import families

HERE = Path(__file__).resolve().parent / "results"
GUIDE = HERE.parents[1] / "docs" / "satin.md"
PAPER = {1: 72, 2: 113}
HEADER = (
    "| formula | answer | Glucose 4.2 s (propagations) | CaDiCaL 1.9.5 s (propagations) | SatIn s (propagations) |"
    " SatIn, 2 contexts s | speed-up | with 2 | per propagation | gain 2 | propagations per decision |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)
EPILOG = """\
examples:
  python benchmarks/satin.py --only speed              propagations per second, loading 100k clauses
  python benchmarks/satin.py --only trend              speed-up over propagations per decision, all else equal
  python benchmarks/satin.py --only families           the comparison (about three minutes; needs python-sat)
  python benchmarks/satin.py --only families --family random --time-limit 5
  python benchmarks/satin.py --cnf-folder DIR          adds every *.cnf of a folder, for example the CNFs that
                                                       python-sat's source package has in solvers/cadical195.tar.gz
  python benchmarks/satin.py --render                  table and figure again, from results/satin.json
  python benchmarks/satin.py --drawing docs/satin.png  the machine in one drawing
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("speed", "trend", "families"), help="one part; default all")
    parser.add_argument("--family", action="append", help="one family, may be given again; default all")
    parser.add_argument("--cnf-folder", type=Path, help="folder with more DIMACS files")
    parser.add_argument(
        "--time-limit", type=float, default=10.0, metavar="S", help="per solver and formula (default 10)"
    )
    parser.add_argument("--budget", type=float, default=1e9, metavar="S", help="start no formula after so many seconds")
    parser.add_argument("--render", action="store_true", help="only write the table and the figure again")
    parser.add_argument(
        "--drawing", type=Path, metavar="FILE", help="only draw the machine, as docs/satin.png shows it"
    )
    options = parser.parse_args()
    if options.drawing:
        draw_machine(options.drawing)
        return
    if not options.render:
        warm_up()
        if options.only in (None, "speed"):
            append("speed", speed())
        if options.only in (None, "trend"):
            append("trend", {"points": trend(options.time_limit)})
        if options.only in (None, "families"):
            compare(options)
    render()


def warm_up() -> None:
    """Compile everything before anything is timed."""
    for fidelity in ("event", "wave", "none"):
        satin.solve(families.random_ksat(30, 128), fidelity=fidelity)


def speed() -> dict[str, Any]:
    """Propagations per second of the search, alone and with each clock, and the time to load 100k clauses."""
    found: dict[str, Any] = {}
    formulas = {
        "random 3-SAT, 200 variables": families.random_ksat(200, 852, seed=7),
        "planted, 20000 variables": families.planted_communities(20_000, 80_000, seed=1),
    }
    for name, clauses in formulas.items():
        formula = satin.as_formula(clauses)
        for fidelity in ("none", "wave", "event"):
            rates = []
            for _ in range(3):
                stats = satin.solve(formula, fidelity=fidelity, time_limit_s=2).stats
                rates.append(stats["propagations"] / (stats["wall_s"] - stats["load_s"]))
            found[f"{name}, clock {fidelity}, M propagations/s"] = statistics.median(rates) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.cnf"
        satin.write_dimacs(satin.as_formula(families.random_ksat(25_000, 100_000)), path)
        for suffix in ("", ".gz", ".xz"):
            satin.write_dimacs(satin.read_dimacs(path), f"{path}{suffix}")
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                result = satin.solve(f"{path}{suffix}", time_limit_s=0)
                assert result.stats["clauses"] == 100_000
                times.append(result.stats["load_s"])
                assert time.perf_counter() - begin >= times[-1]
            found[f"load 100000 clauses{suffix}, s"] = statistics.median(times)
    return found


def trend(limit: float) -> list[dict[str, Any]]:
    """Formulas without conflicts in which every decision implies so many literals, side by side or in chains."""
    points = []
    for depth in (1, 4):
        for width in (1, 4, 16, 64, 256):
            clauses = families.fan_out(max(20_000 // (width * depth), 8), width, depth)
            glucose = software("glucose42", clauses, limit)
            one, two = (modelled(satin.as_formula(clauses), c, limit) for c in (1, 2))
            points.append(
                {
                    "depth": depth,
                    "propagations_per_decision": one["propagations"] / one["decisions"],
                    "glucose_ns": 1e9 * glucose["seconds"] / glucose["propagations"],
                    "satin_ns": 1e9 * one["seconds"] / one["propagations"],
                    "central_share": one["central_share"],
                    "gain2": one["seconds"] * sum(two["context_propagations"]) / one["propagations"] / two["seconds"],
                }
            )
            print(points[-1])
    return points


def formulas(options: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    """Family, name and clauses; python-sat makes parity and ordering."""
    from pysat.examples.genhard import CB, GT, PAR

    makers: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "random": [(f"n{n} seed {s}", lambda n=n, s=s: families.random_ksat(n, round(4.26 * n), seed=s))
                   for n in (150, 200) for s in range(3)],
        "pigeonhole": [(str(n), lambda n=n: families.pigeonhole(n)) for n in (6, 7, 8)],
        "parity": [(str(n), lambda n=n: PAR(size=n).clauses) for n in (4, 5)],
        "chessboard": [(str(n), lambda n=n: CB(size=n).clauses) for n in (4, 5)],
        "ordering": [(str(n), lambda n=n: GT(size=n).clauses) for n in (10, 15, 20)],
        "adder": [(f"{n} bits", lambda n=n: families.adder_equivalence(n)) for n in (32, 64, 128)],
        "factoring": [(str(n), lambda n=n: families.factoring(n)) for n in (65521, 1048573, 4093 * 4091)],
        "planted": [(f"n{n}", lambda n=n: families.planted_communities(n, 4 * n, seed=n)) for n in (2000, 5000, 20000)],
    }  # fmt: skip
    for family, entries in makers.items():
        for name, make in entries:
            if not options.family or family in options.family:
                yield family, name, make()
    for path in sorted(options.cnf_folder.glob("*.cnf")) if options.cnf_folder else []:
        if not options.family or "files" in options.family:
            yield "files", path.stem, list(satin.read_dimacs(path).clauses())


def compare(options: argparse.Namespace) -> None:
    """All solvers on all formulas; one record each, written as soon as it is there."""
    begin = time.perf_counter()
    for family, name, clauses in formulas(options):
        if time.perf_counter() - begin > options.budget:
            return
        row: dict[str, Any] = {"family": family, "name": name}
        formula = satin.as_formula(clauses)
        row |= {"variables": formula.num_vars, "clauses": formula.num_clauses}
        for solver in ("glucose42", "cadical195"):
            row[solver] = software(solver, clauses, options.time_limit)
        row["satin1"], row["satin2"] = (modelled(formula, c, options.time_limit) for c in (1, 2))
        row["other"] = modelled(formula, 1, options.time_limit, seed=1)  # the second context's search, alone
        answers = {row[k]["answer"] for k in ("glucose42", "cadical195", "satin1", "satin2")} - {None}
        if len(answers) > 1:
            raise AssertionError(f"solvers disagree on {family} {name}: {row}")
        append("families", row)
        print(
            f"{family} {name}: "
            + ", ".join(f"{k} {row[k]['seconds']:.4g} s" for k in ("glucose42", "satin1", "satin2"))
        )


def software(name: str, clauses: Any, limit: float) -> dict[str, Any]:
    """Fastest of three solves by CPU time; loading is not counted, as it is not for the chip.

    One thread: on a quiet machine CPU time is the wall-clock, on a shared one it is not stretched by the neighbours.
    """
    from threading import Timer

    from pysat.solvers import Solver

    times: list[tuple[float, float]] = []
    while len(times) < 3 and sum(cpu for cpu, _ in times) < 0.5:
        with Solver(name, bootstrap_with=clauses) as solver:
            interruptible = name.startswith("glucose")
            timer = Timer(limit, solver.interrupt) if interruptible else None
            if timer:
                timer.start()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            answer = solver.solve_limited(expect_interrupt=True) if timer else solver.solve()
            times.append((time.process_time() - begin_cpu, time.perf_counter() - begin))
            if timer:
                timer.cancel()
            stats = solver.accum_stats()
    cpu, wall = min(times)
    counts = {k: stats[k] for k in ("propagations", "decisions", "conflicts")}
    return {"answer": answer, "seconds": cpu, "wall_seconds": wall, **counts}


def modelled(formula: satin.Formula, contexts: int, limit: float, seed: int = 0) -> dict[str, Any]:
    """One run on the modelled chip; it is deterministic."""
    result = satin.solve(formula, contexts, time_limit_s=limit, seed=seed)
    stats = result.stats
    keys = ("propagations", "context_propagations", "decisions", "conflicts", "watts", "wall_s", "central_share")
    return {
        "answer": result.satisfiable,
        "seconds": result.seconds,
        "joules": result.joules,
        **{k: stats[k] for k in keys},
    }


def append(part: str, figures: dict[str, Any]) -> None:
    """Add one record with its circumstances to results/satin.json."""
    HERE.mkdir(exist_ok=True)
    path = HERE / "satin.json"
    records = json.loads(path.read_text()) if path.exists() else []
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    )
    records.append(
        {
            "part": part,
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {cpu_name()}",
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__},
            "command": " ".join(["python", "benchmarks/satin.py", *sys.argv[1:]]),
            "figures": figures,
        }
    )
    path.write_text(json.dumps(records, indent=1) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


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


def render() -> None:
    """Markdown table and figure of the newest record of every formula and of the speed part."""
    records = json.loads((HERE / "satin.json").read_text())
    newest = {(r["part"], r["figures"].get("family"), r["figures"].get("name")): r for r in records}
    rows = [r["figures"] for r in newest.values() if r["part"] == "families"]
    points = next((r["figures"]["points"] for r in newest.values() if r["part"] == "trend"), [])
    lines = ["# SatIn against Glucose and CaDiCaL", "", __doc__ or "", *speed_lines(newest), "", *trend_lines(points)]
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


if __name__ == "__main__":
    main()
