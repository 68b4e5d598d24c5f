"""``python -m dgcomp.hwmodel.satin FILE.cnf`` prints the answer as SAT solvers do, and the modelled cost."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from dgcomp.hwmodel.satin.solver import SatResult, solve
from dgcomp.hwmodel.satin.state import COUNTERS

EPILOG = """\
Prints comment lines (c), the answer (s SATISFIABLE, s UNSATISFIABLE or s UNKNOWN) and a model (v). The answer is exact;
cycles, seconds and joules are those of a modelled SatIn chip (arXiv 2303.02588), largely a reconstruction
(docs/satin.md). Exit status 10 satisfiable, 20 unsatisfiable, 0 unknown, 2 bad input. Ctrl-C or the time limit ends
with what is known so far.

examples:
  python -m dgcomp.hwmodel.satin uf250.cnf.gz --contexts 2
  python -m dgcomp.hwmodel.satin php7.cnf --proof php7.drat && drat-trim php7.cnf php7.drat
  python -m dgcomp.hwmodel.satin small.cnf --trace | less
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dgcomp.hwmodel.satin", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="DIMACS CNF; plain, .gz or .xz")
    parser.add_argument(
        "--contexts", type=int, choices=(1, 2), default=1, help="searches that share the array (default 1)"
    )
    parser.add_argument("--proof", metavar="OUT", help="write a DRAT proof")
    parser.add_argument("--trace", action="store_true", help="print every message and operation: cycle, context, what")
    parser.add_argument(
        "--fidelity", choices=("event", "wave", "none"), default="event", help="clock model (default event)"
    )
    parser.add_argument(
        "--restarts", choices=("glucose", "luby"), default="glucose", help="restart rule (default glucose)"
    )
    parser.add_argument("--seed", type=int, default=0, help="shuffles first decisions and phases (default 0: none)")
    parser.add_argument("--time-limit", type=float, metavar="S", help="stop after so many seconds of real time")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    options = parser.parse_args(arguments)
    watch = _Watch(quiet=options.quiet or not sys.stderr.isatty())
    previous = signal.signal(signal.SIGINT, watch.interrupt)
    try:
        result = solve(
            options.file,
            options.contexts,
            fidelity=options.fidelity,
            restarts=options.restarts,
            seed=options.seed,
            proof=options.proof,
            time_limit_s=options.time_limit,
            progress=watch,
            trace=_print_trace if options.trace else None,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGINT, previous)
    watch.clear()
    print("\n".join(report(result, interrupted=watch.interrupted)))
    return {True: 10, False: 20, None: 0}[result.satisfiable]


class _Watch:
    """Progress line on standard error, and what Ctrl-C asked for."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.interrupted, self.shown = quiet, False, 0.0

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def __call__(self, stats: dict[str, Any]) -> bool:
        now = time.monotonic()
        if not self.quiet and now - self.shown > 0.5:
            self.shown = now
            rate = stats["total_propagations"] / max(stats["wall_s"], 1e-9) / 1e6
            print(
                f"\r{stats['wall_s']:6.1f} s  {stats['conflicts']} conflicts  {rate:.2f} M propagations/s"
                f"  {stats['cycles'] / 1e6:.1f} M cycles ",
                end="",
                file=sys.stderr,
                flush=True,
            )
        return self.interrupted

    def clear(self) -> None:
        if self.shown:
            print("\r" + " " * 78 + "\r", end="", file=sys.stderr, flush=True)


def _print_trace(line: str) -> None:
    print("c", line)


def report(result: SatResult, *, interrupted: bool = False) -> list[str]:
    """Lines in the format of the SAT competitions, comments first."""
    stats = result.stats
    lines = ["c stopped by Ctrl-C; statistics so far"] if interrupted and result.satisfiable is None else []
    lines += [f"c {name.replace('_', ' ')} {stats[name]}" for name in (*COUNTERS, "spilled_clauses")]
    lines += [
        f"c dropped {stats[name]} {name.replace('_', ' ')}"
        for name in ("tautologies", "duplicate_literals")
        if stats[name]
    ]
    lines += [
        f"c modelled {result.cycles} cycles, {result.seconds:.6g} s, {result.joules:.6g} J, {stats['watts']:.4g} W",
        f"c real {stats['wall_s']:.3f} s, of these loading {stats['load_s']:.3f} s, search {stats['search_s']:.3f} s",
    ]
    total = max(sum(stats["cycles_by_kind"].values()), 1)
    for kind, cycles in sorted(stats["cycles_by_kind"].items(), key=lambda item: -item[1]):
        if cycles:
            lines.append(f"c {100 * cycles / total:5.1f} % of cycles in {stats['messages_by_kind'][kind]} x {kind}")
    lines.append("s " + {True: "SATISFIABLE", False: "UNSATISFIABLE", None: "UNKNOWN"}[result.satisfiable])
    if result.model is not None:
        literals = [*result.model, 0]
        lines += ["v " + " ".join(map(str, literals[i : i + 15])) for i in range(0, len(literals), 15)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
