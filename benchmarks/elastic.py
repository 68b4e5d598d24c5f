"""Change the number of ranks while training, 4 -> 2 -> 4, and compare the final loss with undisturbed runs.

    python benchmarks/elastic.py            # five seeds; goes on where it was interrupted
    python benchmarks/elastic.py --seeds 1 --results /tmp/try-out

ResNet-8 on 2,048 images of Fashion-MNIST, 6 epochs, global batch 64, DGC at 1 %. The elastic run ends after a third and
after two thirds of its steps and goes on from the checkpoint with another number of ranks: each new rank starts from
the mean of the residuals, and the global batches stay the same. The final loss is the cross-entropy over 2,000 test
images. The claim: it lies within the spread of undisturbed runs on 4 ranks with other seeds.

How torchrun gets from one number of ranks to another is tested in tests/faults; here ranks are forked, which is cheap.
Figures go to results/elastic.json, the table to results/elastic.md.
"""

import argparse
import functools
import gzip
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from benchmarks.bandwidth import surroundings  # noqa: E402
from benchmarks.forked import start_ranks, wait_for, warm_up  # noqa: E402
from benchmarks.store import append, read  # noqa: E402
from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions  # noqa: E402
from launch.tasks.image_data import FASHION_FILES, load_fashion_mnist, normalize  # noqa: E402
from launch.tasks.resnet import resnet  # noqa: E402
from launch.train import train  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NUM_TRAIN, NUM_TEST, BATCH, EPOCHS = 2048, 2000, 64, 6
STEPS = NUM_TRAIN // BATCH * EPOCHS
# ranks and the step at which the next number takes over
RUNS = {"4": ((4, STEPS),), "4 -> 2 -> 4": ((4, STEPS // 3), (2, 2 * STEPS // 3), (4, STEPS))}


def main() -> None:
    """Do the runs that are missing, then write the table."""
    arguments = _parse()
    path, start = arguments.results / "elastic.json", time.monotonic()
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        _write_subset(arguments.data_folder, Path(name) / "data")
        for seed in range(arguments.seeds):
            for ranks in RUNS:
                if (ranks, seed) in {(row["ranks"], row["seed"]) for row in read(path)}:
                    continue
                if time.monotonic() - start > arguments.budget:
                    print("budget used up; call again to go on")
                    return _write_table(path)
                append(path, _run(ranks, seed, Path(name)))
    return _write_table(path)


def _write_table(path: Path) -> None:
    """Render the rows that are there as Markdown, and print it."""
    table = render(read(path))
    path.with_suffix(".md").write_text(table)
    print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default 5)")
    parser.add_argument("--data-folder", type=Path, help="of Fashion-MNIST (default: found or downloaded)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="start no run after this many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of elastic.json and elastic.md")
    return parser.parse_args()


def _write_subset(source: Path | None, folder: Path) -> None:
    """The first images of Fashion-MNIST, in files as they are published."""
    data = load_fashion_mnist(source, offline=False)
    folder.mkdir()
    parts = (
        *(data.train_images[:NUM_TRAIN, 0], data.train_labels[:NUM_TRAIN]),
        *(data.test_images[:NUM_TEST, 0], data.test_labels[:NUM_TEST]),
    )
    for name, part in zip(FASHION_FILES, parts, strict=True):
        header = bytes([0, 0, 8, part.ndim]) + np.array(part.shape, ">i4").tobytes()
        (folder / name).write_bytes(gzip.compress(header + part.to(torch.uint8).numpy().tobytes(), 1))


def _run(ranks: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One run in its stages, as a row of the results file."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        for world_size, last in RUNS[ranks]:
            target = functools.partial(_train, _options(folder, scratch / "data", seed, last))
            if any(wait_for(start_ranks(folder, world_size, target))):
                raise SystemExit(f"{ranks}, seed {seed} failed:\n{(folder / 'rank0.log').read_text()}")
        loss, accuracy = _test(folder / f"step{STEPS:08d}.pt", scratch / "data")
    return {
        "ranks": ranks,
        "seed": seed,
        "loss": loss,
        "accuracy": accuracy,
        "steps": STEPS,
        "seconds": round(time.monotonic() - start),
        **surroundings(),
        "command": "python benchmarks/elastic.py",
    }


def _options(folder: Path, data: Path, seed: int, last: int) -> Options:
    return Options(
        data=DataOptions(task="image", data="fashion-mnist", data_folder=data),
        compress=CompressOptions(compress="dgc", density=0.01, warmup_epochs=0.5),
        train=TrainOptions(batch_size=BATCH, epochs=EPOCHS, max_steps=last, seed=seed),
        run=RunOptions(checkpoint_folder=folder, resume=True, progress="off", device="cpu"),
    )


def _train(options: Options, rank: int) -> None:
    train(options, torch.device("cpu"))


@torch.inference_mode()
def _test(checkpoint: Path, data_folder: Path) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (%) over the test images."""
    data = load_fashion_mnist(data_folder, offline=True)
    model = resnet(8, in_channels=1)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    scores = model.eval()(normalize(data.test_images, data))
    right = (scores.argmax(1) == data.test_labels).double().mean()
    return float(F.cross_entropy(scores, data.test_labels)), 100 * float(right)


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown: final losses by seed, their spread, and the difference of the means."""
    lines = [
        f"# 4 -> 2 -> 4 ranks beside 4 ranks, {STEPS} steps",
        "",
        "| ranks | seeds | final test loss, mean | lowest to highest | standard deviation | by seed | accuracy, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    losses = {ranks: [row["loss"] for row in rows if row["ranks"] == ranks] for ranks in RUNS}
    losses = {ranks: values for ranks, values in losses.items() if values}
    for ranks, values in losses.items():
        accuracy = statistics.mean(row["accuracy"] for row in rows if row["ranks"] == ranks)
        lines.append(
            f"| {ranks} | {len(values)} | {statistics.mean(values):.4f} | {min(values):.4f} to {max(values):.4f} "
            f"| {statistics.stdev(values) if len(values) > 1 else 0:.4f} "
            f"| {', '.join(f'{value:.4f}' for value in values)} | {accuracy:.2f} % |"
        )
    if len(losses) == len(RUNS):
        whole, elastic = losses.values()
        inside = sum(min(whole) <= value <= max(whole) for value in elastic)
        lines += [
            "",
            f"Elastic minus undisturbed, means: {statistics.mean(elastic) - statistics.mean(whole):+.4f}. "
            f"{inside} of {len(elastic)} elastic runs lie between the lowest and the highest undisturbed one.",
        ]
    lines.append("")
    last = rows[-1]
    return "\n".join(
        [*lines, f"`{last['command']}`, {last['machine']}, torch {last['torch']}, commit {last['commit']}", ""]
    )


if __name__ == "__main__":
    main()
