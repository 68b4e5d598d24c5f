"""Kill and restart a training run a thousand times, and count the checkpoints that were lost.

    python benchmarks/restarts.py --restarts 1000 --ranks 1    # half an hour on one core
    python benchmarks/restarts.py --restarts 5                 # a try-out with two ranks

In each life of the run its ranks are real processes (gloo) that go on with --resume and save a checkpoint after every
third step. One rank or all are killed with SIGKILL: at a random moment, or at a place drawn from benchmarks/faults.py
(in forward, in backward, in the hook, in the middle of a checkpoint). After each life every file that latest.json
names is read back: a checkpoint is LOST if it can't be loaded, or if the latest one is of an earlier step than any
before. At the end the run goes on without faults, and its weights are compared bit for bit with those of a run that
nothing ever disturbed. The parent imports torch once and forks the ranks, so that a restart costs a second, not ten.

Figures go to results/restarts.json, the table to results/restarts.md.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import faults  # noqa: E402
from benchmarks.bandwidth import surroundings  # noqa: E402
from benchmarks.forked import end_ranks, start_ranks, wait_for, warm_up  # noqa: E402
from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions  # noqa: E402
from launch.train import train  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CHECKPOINT_INTERVAL = 3
LONGEST_LIFE_S = 1.5
"""what a killing by the clock is drawn from, counted from the fork: start-up takes about half of it"""


def main() -> None:
    """Run, write the figures, and end with status 1 if a checkpoint was lost or the weights differ."""
    arguments = _parse()
    with tempfile.TemporaryDirectory() as name:
        figures = restart_often(arguments.restarts, arguments.ranks, arguments.seed, Path(name))
    row = {**figures, **surroundings(), "command": " ".join(["python", "benchmarks/restarts.py", *sys.argv[1:]])}
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "restarts.json"
    rows = [*(json.loads(path.read_text()) if path.exists() else []), row]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(render(rows))
    print(render(rows))
    raise SystemExit(figures["checkpoints_lost"] > 0 or not figures["weights_bitwise_equal"])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=1000, help="lives that end by SIGKILL (default 1000)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the run (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of restarts.json and restarts.md")
    return parser.parse_args()


def restart_often(restarts: int, ranks: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill and restart a run that keeps its checkpoints in `folder`, then compare it with an undisturbed one."""
    warm_up()
    drawn, start = random.Random(seed), time.monotonic()
    best_step, seen, lost, killed_at = -1, 0, 0, Counter[str]()
    while killed_at.total() < restarts:
        place = drawn.choice((*faults.PLACES, "clock"))
        killed_at[place] += 1
        _live_and_die(folder, ranks, place, drawn)
        step = latest_step(folder)
        lost += step < best_step
        seen += step > best_step
        best_step = max(best_step, step)
        if killed_at.total() % 100 == 0:
            print(f"{killed_at.total()} lives, step {best_step}, {lost} checkpoints lost", flush=True)
    last = best_step + CHECKPOINT_INTERVAL
    for path in (folder, folder / "undisturbed"):
        statuses = wait_for(start_ranks(path, ranks, functools.partial(_train, _options(path, last))))
        if any(statuses):
            raise SystemExit(f"the run without faults ended with {statuses}:\n{(path / 'rank0.log').read_text()}")
    return {
        "restarts": restarts,
        "ranks": ranks,
        "killed_at": dict(sorted(killed_at.items())),
        "lives_that_left_a_newer_checkpoint": seen,
        "checkpoints_lost": lost,
        "steps": last,
        "weights_bitwise_equal": _weights(folder, last) == _weights(folder / "undisturbed", last),
        "seconds": round(time.monotonic() - start),
    }


def latest_step(folder: Path) -> int:
    """Step of the latest checkpoint, all of whose files have been read back; -1 if there is none yet or it is lost."""
    latest = folder / "latest.json"
    if not latest.exists():
        return -1
    entry = json.loads(latest.read_text())
    for name, digest in entry["sha256"].items():
        raw = (folder / name).read_bytes()
        if hashlib.sha256(raw).hexdigest() != digest:
            return -1
        torch.load(folder / name, weights_only=True)
    return int(entry["step"])


def _live_and_die(folder: Path, ranks: int, place: str, drawn: random.Random) -> None:
    """One life: all ranks start from the latest checkpoint, and one of them, or all, are killed."""
    alone = [0] if place in ("latest", "saved") else range(ranks)  # latest.json is written by rank 0
    victims = drawn.choice([*((rank,) for rank in alone), tuple(range(ranks))])
    call = drawn.randint(1, 3 * CHECKPOINT_INTERVAL) if place in ("forward", "backward", "hook") else 1
    delay_s = drawn.uniform(0, LONGEST_LIFE_S)

    def live(rank: int) -> None:
        if rank in victims and place != "clock":
            faults.arm(place, call, faults.die)
        _train(_options(folder, max_steps=10**9), rank)

    pids = start_ranks(folder, ranks, live)
    if place == "clock":
        time.sleep(delay_s)
        for rank in victims:
            os.kill(pids[rank], signal.SIGKILL)
    os.waitpid(pids.pop(victims[0]), 0)
    end_ranks(pids)


def _options(folder: Path, max_steps: int) -> Options:
    return Options(
        data=DataOptions(task="image", data="synthetic"),
        compress=CompressOptions(compress="dgc", density=0.01, warmup_epochs=0.1),
        train=TrainOptions(batch_size=16, epochs=10_000, max_steps=max_steps, lr_schedule="constant"),
        run=RunOptions(
            checkpoint_folder=folder, checkpoint_interval=CHECKPOINT_INTERVAL, resume=True, progress="off", device="cpu"
        ),
    )


def _train(options: Options, rank: int) -> None:
    train(options, torch.device("cpu"))


def _weights(folder: Path, step: int) -> str:
    """A digest of the model's tensors."""
    model = torch.load(folder / f"step{step:08d}.pt", weights_only=True)["model"]
    digest = hashlib.sha256()
    for name in sorted(model):
        digest.update(name.encode() + model[name].numpy().tobytes())
    return digest.hexdigest()


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown of all rows."""
    lines = [
        "# Restarts after SIGKILL",
        "",
        "| restarts | ranks | checkpoints lost | lives that left a newer checkpoint | steps reached "
        "| weights equal to an undisturbed run's | killed at | seconds | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        places = ", ".join(f"{place} {count}" for place, count in row["killed_at"].items())
        equal = "to the bit" if row["weights_bitwise_equal"] else "NO"
        lines.append(
            f"| {row['restarts']:,} | {row['ranks']} | {row['checkpoints_lost']} "
            f"| {row['lives_that_left_a_newer_checkpoint']} | {row['steps']:,} | {equal} | {places} "
            f"| {row['seconds']:,} | {row['commit']} |"
        )
    last = rows[-1]
    lines += ["", f"`{last['command']}`, {last['machine']}, torch {last['torch']}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
