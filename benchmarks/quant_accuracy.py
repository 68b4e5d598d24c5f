"""Accuracy of quantized training and of quantization after training, one row per (experiment, method, seed).

    python -m benchmarks.quant_accuracy fashion --seeds 0 1 2       from scratch: ResNet-8, Fashion-MNIST
    python -m benchmarks.quant_accuracy cifar10 --data FOLDER --steps 1560      from scratch: ResNet-20
    python -m benchmarks.quant_accuracy gpt --data FILE.txt --steps 600         from scratch: characters of a text
    python -m benchmarks.quant_accuracy resnet20 --data FOLDER      after training: CIFAR-10 (JPEG)
    python -m benchmarks.quant_accuracy minilm --data FOLDER --weights FOLDER   after training: STS benchmark
    python -m benchmarks.quant_accuracy table                       render what has been measured so far

What the folders hold: benchmarks/quant_tasks/pretrained.py for the last two, launch/train.py --help for the others.
Rows already in benchmarks/results/quant_accuracy.json are kept and not measured again, so a run that was interrupted,
or given more seeds, continues. `--methods` picks some; several processes may add rows at the same time.
CIFAR-10 (JPEG) is a lossy copy: its figures stand beside each other, not beside published ones.
"""

import argparse
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import quant_tasks
from benchmarks.quant_tasks import Experiment
from benchmarks.store import describe_commit

RESULTS = Path(__file__).parent / "results" / "quant_accuracy.json"
EXPERIMENTS: dict[str, Callable[[argparse.Namespace], Experiment]] = {
    "fashion": quant_tasks.fashion,
    "cifar10": quant_tasks.cifar10,
    "gpt": quant_tasks.gpt,
    "resnet20": quant_tasks.resnet20,
    "minilm": quant_tasks.minilm,
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "table"])
    parser.add_argument("--data", type=Path, help="folder or file of the data, see above")
    parser.add_argument("--weights", type=Path, help="folder of MiniLM's model.safetensors and vocab.txt")
    parser.add_argument("--methods", nargs="*", help="some of the experiment's methods (default: all)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=468, help="optimizer steps of a training (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="after training: use the first so many images or pairs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.experiment == "table":
        render(load())
        return
    experiment = EXPERIMENTS[arguments.experiment](arguments)
    unknown = set(arguments.methods or ()) - set(experiment.methods)
    if unknown:
        parser.error(f"unknown methods {sorted(unknown)}; there are: {', '.join(experiment.methods)}")
    for seed in arguments.seeds:
        for method in arguments.methods or experiment.methods:
            if not _is_done(experiment, method, seed):
                row = measure(experiment, method, seed)
                save(row)
                print(f"{experiment.title}: {method} (seed {seed}) {row['score']}, {row['seconds']} s", flush=True)


def measure(experiment: Experiment, method: str, seed: int) -> Row:
    """The row of one method and seed."""
    start, cpu_start = time.perf_counter(), time.process_time()
    score = experiment.measure(experiment.methods[method], seed)
    return {
        "experiment": experiment.title,
        "method": method,
        "seed": seed,
        "metric": experiment.metric,
        "score": round(score, 4 if experiment.metric == "perplexity" else 2),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
        **experiment.facts,
        "commit": describe_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "command": "python -m benchmarks.quant_accuracy " + " ".join(_without_paths(sys.argv[1:])),
    }


def _without_paths(arguments: list[str]) -> list[str]:
    return [a if "/" not in a or " " in a or a[0].isdigit() else "PATH" for a in arguments]


def _is_done(experiment: Experiment, method: str, seed: int) -> bool:
    return any((row["experiment"], row["method"], row["seed"]) == (experiment.title, method, seed) for row in load())


def load() -> list[Row]:
    """Rows measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def save(row: Row) -> None:
    """Append a row and render the tables again; other processes wait for their turn, and readers see a whole file."""
    RESULTS.parent.mkdir(exist_ok=True)
    folder = os.open(RESULTS.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = [*load(), row]
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(partial, RESULTS)
        render(rows)
    finally:
        os.close(folder)


def render(rows: list[Row]) -> None:
    """Write Markdown: per experiment the score of every method as mean, spread, seeds and distance from fp32."""
    parts = ["# Accuracy of quantized networks\n\nMade by `python -m benchmarks.quant_accuracy`; see its docstring.\n"]
    for title in dict.fromkeys(row["experiment"] for row in rows):
        parts.append(table([row for row in rows if row["experiment"] == title]))
    RESULTS.with_suffix(".md").write_text("".join(parts))


def table(rows: list[Row]) -> str:
    """Markdown of one experiment, fp32 and then the best first, with the distance from fp32 over their common seeds."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["method"], {})[row["seed"]] = row["score"]
    base = scores.get("fp32", {})
    sign = 1 if rows[0]["metric"] == "perplexity" else -1
    order = sorted(scores, key=lambda method: (method != "fp32", sign * float(np.mean([*scores[method].values()]))))
    lines = [
        f"\n## {rows[0]['experiment']}\n",
        f"| method | {rows[0]['metric']} | spread | seeds | minus fp32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in order:
        by_seed = scores[method]
        values, both = list(by_seed.values()), [seed for seed in by_seed if seed in base]
        spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
        difference = f"{np.mean([by_seed[seed] - base[seed] for seed in both]):+.2f}" if both else "-"
        lines.append(f"| {method} | {np.mean(values):.2f} | {spread} | {len(values)} | {difference} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
