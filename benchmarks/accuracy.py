"""Accuracy and upload of Deep Gradient Compression beside dense DDP and its peers, on four small tasks and one larger.

    python -m benchmarks.accuracy --budget 3h        # do the runs of the 3 h budget that are missing, then the table
    python -m benchmarks.accuracy --budget 2m        # the smoke form: a few steps of a few methods, into a scratch file
    python -m benchmarks.accuracy --list             # what a budget holds, and what is done

Each finished run is appended to results/accuracy.json with its command, and runs that are there are not repeated: the
benchmark can be stopped at any time and called again. The most telling methods come first on all tasks, so that the
table is balanced wherever it stops. `benchmarks/evidence/recipes.py` holds tasks, methods and how they were chosen;
--tune repeats the choice of the learning rates, with the dense baseline alone, into results/accuracy_tuning.json.

Claim under test (Lin et al., ICLR 2018, section 4): at a density of 0.1 % the accuracy is that of dense training,
with over 600 times fewer bytes uploaded for the tensors of two or more dimensions; momentum correction, local
clipping, momentum masking and warm-up are each worth something; gradient dropping, without them, is worse.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, not as a module
    sys.path.insert(0, str(ROOT))

from benchmarks.evidence.recipes import BUDGETS, TUNING, Run, plan  # noqa: E402
from benchmarks.evidence.tables import accuracy_markdown  # noqa: E402
from benchmarks.store import read  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SMOKE_OPTIONS = ("--max-steps", "6")


def main() -> None:
    """Do the runs that are missing, then write the table."""
    arguments = _parse()
    budget = BUDGETS[arguments.budget]
    if budget.is_smoke:
        return _smoke(list(plan(budget)), budget.seconds)
    path = arguments.results / ("accuracy_tuning.json" if arguments.tune else "accuracy.json")
    runs = list(TUNING) if arguments.tune else list(plan(budget))
    done = {row["name"] for row in read(path)}
    missing = [run for run in runs if run.name not in done and arguments.only in run.name]
    if arguments.list:
        return print("\n".join(f"{'done   ' if run.name in done else 'missing'} {run.command}" for run in runs))
    train_all(missing, path, budget.seconds if arguments.seconds is None else arguments.seconds)
    if arguments.tune:
        return None
    table = accuracy_markdown(read(path))
    path.with_suffix(".md").write_text(table)
    return print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="3h", help="which runs, and for how long in this call")
    parser.add_argument(
        "--seconds", type=float, help="start no run after so many seconds (default: the budget's); 0: table only"
    )
    parser.add_argument("--only", default="", help="do only runs whose task/method/seed contains this text")
    parser.add_argument("--tune", action="store_true", help="do the runs that chose the learning rates instead")
    parser.add_argument("--list", action="store_true", help="name the runs of the budget and do none")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of accuracy.json and accuracy.md")
    return parser.parse_args()


def train_all(runs: Sequence[Run], path: Path, seconds: float) -> None:
    """Train run after run and append the figures to `path`; runs in a row on as many ranks share their processes."""
    start = time.monotonic()
    for ranks, group in itertools.groupby(runs, lambda run: run.ranks):
        left = seconds - (time.monotonic() - start)
        if left <= 0:
            break
        numbers = json.dumps([[run.task, run.method, run.seed, run.extra] for run in group])
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "benchmarks.evidence.ranks", "--runs", numbers]
        command += ["--results", str(path.resolve()), "--seconds", str(left)]
        done = subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ)
        if done.returncode:
            raise SystemExit("a run failed, see above; call again to go on after the runs that are finished")


def _smoke(runs: list[Run], seconds: float) -> None:
    """A few steps of each method, to see that everything still runs; its figures mean nothing and are thrown away."""
    short = [Run(run.task, run.method, run.seed, SMOKE_OPTIONS) for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.json"
        train_all(short, path, seconds)
        missing = {run.name for run in short} - {row["name"] for row in read(path)}
    if missing:
        raise SystemExit(f"{seconds:g} s were not enough for {', '.join(sorted(missing))}")
    print(f"{len(short)} runs of {SMOKE_OPTIONS[1]} steps went through")


if __name__ == "__main__":
    main()
