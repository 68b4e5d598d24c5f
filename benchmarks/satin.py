"""SatIn's modelled time against Glucose and CaDiCaL on the same formulas, in the same run.

Speed-up is Glucose's time (one thread; least of three) divided by the modelled time of the chip. Searches differ, so
every row has propagation counts beside it, and the "per propagation" column divides both times by their own counts:
that is the hardware alone.
The limit of the model is one broadcast per cycle, 1 ns per propagation; a decision costs a round trip to the last bank.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import satin_report, store
from benchmarks.satin_report import RECORDS
from dgcomp.hwmodel import satin
from dgcomp.hwmodel.satin import families

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
        satin_report.draw_machine(options.drawing)
        return
    if not options.render:
        warm_up()
        if options.only in (None, "speed"):
            append("speed", speed())
        if options.only in (None, "trend"):
            append("trend", {"points": trend(options.time_limit)})
        if options.only in (None, "families"):
            compare(options)
    satin_report.render(__doc__ or "")


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
    store.append(
        RECORDS,
        {
            "part": part,
            "commit": store.describe_commit(),
            "machine": f"{platform.machine()}, {store.processor()}",
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__},
            "command": " ".join(["python", "benchmarks/satin.py", *sys.argv[1:]]),
            "figures": figures,
        },
    )


if __name__ == "__main__":
    main()
