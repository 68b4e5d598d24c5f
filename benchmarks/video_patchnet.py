"""PatchNet: multiply-adds, speed on one core, the released weights' figures, and training from scratch.

    python -m benchmarks.video patchnet speed
    python -m benchmarks.video patchnet released --data ../shared/data
    python -m benchmarks.video patchnet train --data ../shared/data --video vtest.avi --start random --steps 1200
    python -m benchmarks.video patchnet table

DATA holds video/otb-crossing.zip and models/patchnet-weights.npz. Quality is the mean IoU on OTB Crossing of the boxes
between key frames, which are the true boxes, every 2, 4, 6 and 12 frames; beside it stands the key frame's box kept
still. `train` cuts pairs from single frames of a video without annotation, here the pedestrians of Debian's opencv-doc;
no frame of Crossing is seen. --start says what it begins with: "parts", the published geometry (which follows boxes
well before any training), or "random", weights that know nothing of it. Rows go to results/video_patchnet.json.
"""

import argparse
import json
import platform
import statistics
import time
import zipfile
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.store import describe_commit
from dgcomp.video.boxes import Boxes, paired_iou
from dgcomp.video.frames import Frame, read_frames
from dgcomp.video.patchnet import SEARCH_SIZE, TEMPLATE_SIZE, PatchNet, operation_count
from dgcomp.video.patchnet_pairs import Pairs, image_pair, join_pairs
from dgcomp.video.patchnet_track import BoxPropagator
from dgcomp.video.patchnet_train import pair_ious, train_patchnet

RESULTS = Path(__file__).parent / "results"
INTERVALS = (2, 4, 6, 12)
# What another implementation of the network (NumPy, the released weights) gets on Crossing, and the box kept still.
PUBLISHED = ((0.8454, 0.8049), (0.8022, 0.6929), (0.8035, 0.5883), (0.7719, 0.3819))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("speed", "released", "train", "table"))
    parser.add_argument("--data", type=Path, help="folder, see above")
    parser.add_argument("--video", type=Path, help="train: where pairs are cut from")
    parser.add_argument("--start", choices=("parts", "random"), default="parts")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=9, help="speed: timed calls")
    parser.add_argument("--save", type=Path, help="train: write the weights to this .npz")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of video_patchnet.json and .md")


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    path = options.results / "video_patchnet.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    measure = {"speed": speed, "released": released, "train": train}.get(options.what)
    if measure is not None:
        made = measure(options)
        rows = [row for row in rows if _key(row) not in {_key(one) for one in made}] + made
        options.results.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
    text = render(rows)
    path.with_suffix(".md").write_text(text)
    print(text)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("what", "form", "boxes", "start", "steps", "seed"))


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Boxes per second of one thread: the network in both forms, and a whole step of the tracker at 768 x 576."""
    rows = []
    sparse = PatchNet().eval()
    for form, network in (("sparse", sparse), ("published", sparse.to_dense().eval())):
        for n in (1, 8):
            inputs = torch.randn(n, 3, SEARCH_SIZE, SEARCH_SIZE), torch.randn(n, 3, TEMPLATE_SIZE, TEMPLATE_SIZE)
            rows.append(_timed(form, n, partial(_forward, network, *inputs), options))
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (576, 768, 3), dtype=np.uint8)
    for n in (1, 8):
        corners = rng.uniform(0, 400, (n, 2))
        follower = BoxPropagator(sparse, frame, np.concatenate((corners, corners + (40, 90)), axis=1))
        rows.append(_timed("tracker step", n, partial(follower.step, frame), options))
    return rows


@torch.inference_mode()
def _forward(network: nn.Module, search: torch.Tensor, template: torch.Tensor) -> None:
    network(search, template)


def _timed(form: str, n: int, call: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Median over the repeats of CPU seconds for three calls, after three."""
    seconds = []
    for repeat in range(options.repeats + 1):
        start = time.process_time()
        for _ in range(3):
            call()
        if repeat:
            seconds.append((time.process_time() - start) / 3)
    boxes_per_s = n / statistics.median(seconds)
    return {"what": "speed", "form": form, "boxes": n, "boxes_per_s": round(boxes_per_s, 1), **_surroundings("speed")}


def released(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The released weights, and the geometry without training."""
    frames, truth = crossing(options.data)
    still = held_out(frames)
    moved = float(paired_iou(still.previous, still.target).mean())
    rows = [{"what": "quality", "start": "box kept still", "mean_iou": [pair[1] for pair in PUBLISHED], "pairs": moved}]
    for start, network in (
        ("released weights", PatchNet.from_weights(options.data / "models" / "patchnet-weights.npz")),
        ("parts, untrained", PatchNet()),
        ("random, untrained", scrambled(options.seed)),
    ):
        rows.append({"what": "quality", "start": start, **quality(network, frames, truth)})
    return [{**row, **_surroundings("released --data ../shared/data")} for row in rows]


def train(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train, and see what came of it on Crossing."""
    frames, truth = crossing(options.data)
    source = list(islice(read_frames(options.video), 0, None, 10))
    network = PatchNet() if options.start == "parts" else scrambled(options.seed)
    start, losses = time.process_time(), []
    for loss in train_patchnet(
        network,
        partial(image_pair, source),
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    ):
        losses.append(loss)
        if len(losses) % 100 == 0:
            print(f"step {len(losses)}: loss {np.mean(losses[-100:]):.3f}", flush=True)
    if options.save is not None:
        network.save_weights(options.save)
    command = f"train --data ../shared/data --video vtest.avi --start {options.start} --steps {options.steps}"
    return [
        {
            "what": "quality",
            "start": f"{options.start}, trained",
            "steps": options.steps,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "seed": options.seed,
            "first_losses": float(np.mean(losses[:50])),
            "last_losses": float(np.mean(losses[-50:])),
            **quality(network, frames, truth),
            "cpu_s": round(time.process_time() - start, 1),
            **_surroundings(command),
        }
    ]


@torch.no_grad()
def scrambled(seed: int) -> PatchNet:
    """A PatchNet whose weights know nothing: filters and joints drawn anew, no bias towards any side."""
    network, random = PatchNet(), torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "reg" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
        elif "offset" in name:
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=random))
        elif "alpha" not in name:
            parameter.copy_(torch.rand(parameter.shape, generator=random) * (2 if "freq" in name else 0.5))
    return network


def crossing(data: Path) -> tuple[list[Frame], Boxes]:
    """Frames and true boxes of OTB Crossing; its rectangles count pixels from 1."""
    archive = data / "video" / "otb-crossing.zip"
    with zipfile.ZipFile(archive) as file, file.open("Crossing/groundtruth_rect.txt") as text:
        rectangles = np.loadtxt(text)
    corners = rectangles[:, :2] - 1
    return list(read_frames(archive)), np.concatenate((corners, corners + rectangles[:, 2:]), axis=1)


def held_out(frames: list[Frame]) -> Pairs:
    """200 pairs cut from Crossing, with the motion that training has: harder than the video's own."""
    rng = np.random.default_rng(1)
    return join_pairs([image_pair(frames, rng) for _ in range(200)])


def quality(network: nn.Module, frames: list[Frame], truth: Boxes) -> dict[str, Any]:
    """Mean IoU between key frames at each interval, and on the pairs of `held_out`."""
    means = []
    for interval in INTERVALS:
        found, wanted = [], []
        for number, frame in enumerate(frames):
            if number % interval == 0:
                follower = BoxPropagator(network, frame, truth[number : number + 1])
            else:
                found.append(follower.step(frame)[0][0])
                wanted.append(truth[number])
        means.append(float(paired_iou(np.array(found), np.array(wanted)).mean()))
    return {"mean_iou": means, "pairs": float(pair_ious(network, held_out(frames)).mean())}


def _surroundings(command: str) -> dict[str, Any]:
    return {
        "commit": describe_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "command": f"python -m benchmarks.video patchnet {command}",
    }


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown: counts, speed, quality with the share of the released weights' gain over the box kept still."""
    sparse, dense = operation_count(), operation_count(is_sparse=False)
    lines = ["# PatchNet\n", "Made by `python -m benchmarks.video patchnet`; its docstring says what ran.\n"]
    lines += ["## Multiply-adds for a box and frame\n", "| layer | published | sparse |", "|---|---|---|"]
    lines += [f"| {name} | {dense[name]:,} | {sparse[name]:,} |" for name in dense]
    lines += [f"| **total** | **{sum(dense.values()):,}** | **{sum(sparse.values()):,}** |"]
    lines += ["\n## Boxes per second, one thread (CPU time)\n", "| what | boxes at once | boxes/s |", "|---|---|---|"]
    lines += [f"| {r['form']} | {r['boxes']} | {r['boxes_per_s']:.0f} |" for r in rows if r["what"] == "speed"]
    lines += ["\n## Mean IoU on OTB Crossing between key frames, by interval\n"]
    lines += ["Pairs: mean IoU on 200 pairs cut from single frames of it, moved by up to 3.4 cells.\n"]
    lines += [f"| network | {' | '.join(map(str, INTERVALS))} | gain, released = 100 % | pairs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    still = [pair[1] for pair in PUBLISHED]
    lines.append(f"| released, other code | {' | '.join(f'{pair[0]:.4f}' for pair in PUBLISHED)} | 100 | - |")
    full = np.array([pair[0] for pair in PUBLISHED]) - still
    for row in rows:
        if row["what"] == "quality":
            name = row["start"] + (f" {row['steps']} steps" if "steps" in row else "")
            shares = (np.array(row["mean_iou"]) - still) / full
            cells = " | ".join(f"{value:.4f}" for value in row["mean_iou"])
            lines.append(
                f"| {name} | {cells} | {' / '.join(f'{100 * share:.0f}' for share in shares)} | {row['pairs']:.4f} |"
            )
    return "\n".join(lines) + "\n"
