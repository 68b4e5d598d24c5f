"""Measure the wire: bytes against the entropy, encode and decode times against the update pass, whole-run ratios.

Everything is counted on real messages, padding of the all-gather included. Positions are random or those of a real
training (a small convolutional net on synthetic images, gradients accumulated over its steps as the hook does).

    python benchmarks/wire.py                    # everything, about a minute on one core
    python benchmarks/wire.py --only times       # one of: entropy, real, times, models, run
    python benchmarks/wire.py --report           # only redraw the tables and the plot from results/wire.json

Every part overwrites its figures in results/wire.json and keeps the earlier ones under "history"; results/wire.md
and results/wire.png are drawn from it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

from benchmarks.shapes import MODELS, resnet50, split  # noqa: E402
from benchmarks.store import describe_commit  # noqa: E402
from dgcomp import kernels  # noqa: E402
from dgcomp.config import DGCConfig  # noqa: E402
from dgcomp.schedule import density_at  # noqa: E402
from dgcomp.wire import capacity_bytes, decode_message, encode_message, positions  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "wire.json"
DENSITIES = (0.25, 0.0625, 0.015625, 0.01, 0.004, 0.001, 0.0001)
STEADY_DENSITY = 0.001


def entropy() -> list[dict[str, Any]]:
    """Bits per position of every format at every density, on independent positions."""
    numel = 4_000_000
    rows = []
    for density in DENSITIES:
        where = np.flatnonzero(np.random.default_rng(0).random(numel) < density)
        rows.append({"density": density, "numel": numel, **_position_bits(where, numel)})
    return rows


def real(steps: int = 60) -> list[dict[str, Any]]:
    """The same on what a real training selects: 0.1 % and 1 % of every tensor by residual magnitude, then sent."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 1024), nn.ReLU(), nn.Linear(1024, 10)),
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    weights = [p for p in net.parameters() if p.ndim > 1]
    rows = []
    for density in (0.01, STEADY_DENSITY):
        residuals = [torch.zeros(p.numel()) for p in weights]
        bits: list[dict[str, float]] = []
        for step in range(steps):
            images, labels = _synthetic_images(64, seed=step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            where, numel = _send(residuals, weights, density)
            if step >= steps // 2:
                bits.append(_position_bits(where, numel))
        medians = {name: statistics.median(b[name] for b in bits) for name in bits[0]}
        rows.append({"density": density, "numel": numel, "steps": len(bits), **medians})
    return rows


def times(repeats: int = 15) -> list[dict[str, Any]]:
    """Milliseconds to encode and decode ResNet-50's message, beside the pass that updates and selects its entries."""
    numel, dense_numel = split(resnet50())
    gradient, momentum, residual = (torch.randn(numel) for _ in range(3))
    update_ms = _median_ms(lambda: kernels.accumulate_select(gradient, momentum, residual, threshold=1e9), repeats)
    rows = []
    for density in (0.25, 0.0625, 0.01, STEADY_DENSITY):
        where = np.flatnonzero(np.random.default_rng(0).random(numel) < density)
        entries = torch.from_numpy(_tail(where.size))
        for codec in ("auto", "int8", "int4", "int4+block", "sign", "paper"):
            chosen = torch.from_numpy(where)
            message = encode_message(entries, chosen, numel, codec)
            encode_ms = _median_ms(lambda e=entries, c=chosen, k=codec: encode_message(e, c, numel, k), repeats)
            decode_ms = _median_ms(lambda m=message: decode_message(m), repeats)
            figures = {"encode_ms": encode_ms, "decode_ms": decode_ms, "update_ms": update_ms}
            figures["share"] = (encode_ms + decode_ms) / update_ms
            rows.append({"density": density, "codec": decode_message(message).codec, "bytes": len(message), **figures})
    return rows


def models() -> list[dict[str, Any]]:
    """One step at 0.1 %: a typical message, the padded one that is sent, and their ratios to fp32."""
    rows = []
    for name, shapes in MODELS.items():
        for codec, dense_codec in (
            ("paper", "fp32"),
            ("auto", "fp32"),
            ("int8", "int8"),
            ("int4", "int8"),
            ("int4", "int4"),
        ):
            rows.append(
                {"model": name, "codec": codec, "dense_codec": dense_codec} | _ratios(shapes(), codec, dense_codec)
            )
    return rows


def run(epochs: int = 90, warmup_epochs: int = 4, steps_per_epoch: int = 100) -> list[dict[str, Any]]:
    """Whole-run ratio for ResNet-50: fp32 bytes of all steps over the messages' bytes of all steps."""
    numel, dense_numel = split(resnet50())
    plain = 4 * (numel + dense_numel)
    rows = []
    for ramp in ("paper", "exponential"):
        config = DGCConfig(density=STEADY_DENSITY, warmup_steps=warmup_epochs * steps_per_epoch, warmup=ramp)
        counts = [round(numel * density_at(step, config)) for step in range(config.warmup_steps)]
        for codec, dense_codec in (("paper", "fp32"), ("int8", "int8"), ("int4", "int4"), ("sign", "int4")):
            sizes = {
                k: capacity_bytes(k, numel, codec, dense_numel=dense_numel, dense_codec=dense_codec)
                for k in {*counts, round(numel * STEADY_DENSITY)}
            }
            warm = sum(sizes[k] for k in counts)
            total = warm + (epochs - warmup_epochs) * steps_per_epoch * sizes[round(numel * STEADY_DENSITY)]
            ratio = plain * epochs * steps_per_epoch / total
            figures = {"ratio": ratio, "warmup_share": warm / total}
            rows.append({"ramp": ramp, "codec": codec, "dense_codec": dense_codec, **figures})
    return rows


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "entropy": entropy,
    "real": real,
    "times": times,
    "models": models,
    "run": run,
}


def _position_bits(where: np.ndarray, numel: int) -> dict[str, float]:
    bits = {form: 8 * positions.encode(form, where, numel).size / where.size for form in positions.FORMATS}
    return {"entropy": positions.entropy_bits(where.size, numel), **bits}


def _synthetic_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten classes of 28 x 28 textures in a disc on a black ground: dead pixels cluster the gradient as photos do."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    angle = labels[:, None, None] * torch.pi / 10
    phase = torch.rand(count, 1, 1, generator=generator) * 6.28
    wave = torch.sin(9 * (x * angle.cos() + y * angle.sin()) + phase)
    noise = 0.3 * torch.randn(count, 28, 28, generator=generator)
    return ((wave + noise) * (x * x + y * y < 0.8)).unsqueeze(1), labels


def _send(residuals: list[Tensor], weights: list[Tensor], density: float) -> tuple[np.ndarray, int]:
    """Add the gradients to the residuals and take the largest entries of each; positions in all of them together."""
    chosen, offset = [], 0
    for residual, weight in zip(residuals, weights, strict=True):
        residual += weight.grad.reshape(-1)
        top = residual.abs().topk(max(1, round(density * residual.numel()))).indices
        residual[top] = 0.0
        chosen.append(top.sort().values + offset)
        offset += residual.numel()
    return torch.cat(chosen).numpy(), offset


def _tail(count: int) -> np.ndarray:
    """Values as a threshold leaves them: an exponential tail of either sign."""
    rng = np.random.default_rng(1)
    return ((6.9 + rng.standard_exponential(count)) * rng.choice([-1e-3, 1e-3], count)).astype(np.float32)


def _ratios(shapes: list[tuple[int, ...]], codec: str, dense_codec: str) -> dict[str, float]:
    numel, dense_numel = split(shapes)
    count = sum(max(1, round(STEADY_DENSITY * prod(shape))) for shape in shapes if len(shape) > 1)
    padded = capacity_bytes(count, numel, codec, dense_numel=dense_numel, dense_codec=dense_codec)
    sparse_part = capacity_bytes(count, numel, codec)
    message = len(_random_message(count, numel, codec, dense_numel, dense_codec))
    return {
        "message_bytes": message,
        "message_ratio": 4 * (numel + dense_numel) / message,
        "padded_bytes": padded,
        "ratio": 4 * (numel + dense_numel) / padded,
        "sparse_ratio": 4 * numel / sparse_part,
    }


def _random_message(count: int, numel: int, codec: str, dense_numel: int, dense_codec: str) -> Tensor:
    rng = np.random.default_rng(0)
    drawn = np.unique(rng.integers(0, numel, count + count // 50 + 10))
    where = torch.from_numpy(np.sort(rng.choice(drawn, count, replace=False)))
    dense = torch.from_numpy(rng.standard_normal(dense_numel))
    return encode_message(torch.from_numpy(_tail(count)), where, numel, codec, dense=dense, dense_codec=dense_codec)


def _median_ms(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def _surroundings() -> dict[str, Any]:
    """What a reader must know to repeat a figure."""
    return {
        "commit": describe_commit(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "command": " ".join(["python", "benchmarks/wire.py", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _table(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """A Markdown table; `columns` maps a heading to a format of the row's fields."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(form.format(**row) for form in columns.values()) + " |" for row in rows]


def report(results: dict[str, Any]) -> str:
    """All tables as one Markdown text."""
    bits = {form: f"{{{form}:.2f}}" for form in ("entropy", "rice", "block", "bitmap", "run16", "int32")}
    milliseconds = {"encode": "{encode_ms:.2f} ms", "decode": "{decode_ms:.2f} ms"}
    titles = {
        "entropy": ("Bits per position, independent positions", {"density": "{density:.4%}", **bits}),
        "real": ("Bits per position, a real training's selections", {"density": "{density:.2%}", **bits}),
        "times": (
            "Time on one thread, ResNet-50's 25,502,912 elements",
            {"density": "{density:.2%}", "codec": "{codec}", "bytes": "{bytes:,}", **milliseconds}
            | {"update pass": "{update_ms:.1f} ms", "encode + decode of it": "{share:.1%}"},
        ),
        "models": (
            "One step at 0.1 %; what an all-gather sends is the padded message",
            {"model": "{model}", "codec": "{codec}", "1-D part": "{dense_codec}"}
            | {"message": "{message_bytes:,} B, {message_ratio:.0f}x", "padded": "{padded_bytes:,} B, {ratio:.0f}x"}
            | {"padded, tensors of 2 and more dimensions": "{sparse_ratio:.0f}x"},
        ),
        "run": (
            "ResNet-50, 90 epochs with 4 of warm-up",
            {"ramp": "{ramp}", "codec": "{codec}", "1-D part": "{dense_codec}", "ratio": "{ratio:.0f}x"}
            | {"bytes sent in the warm-up": "{warmup_share:.0%}"},
        ),
    }
    lines = ["# The wire, measured", "", "Produced by `python benchmarks/wire.py`.", ""]
    for part, (title, columns) in titles.items():
        if part in results:
            source = results[part]["surroundings"]
            lines += [f"## {title}", "", *_table(results[part]["rows"], columns), ""]
            lines += [f"Commit {source['commit']}, torch {source['torch']}, {source['machine']}, {source['time']}.", ""]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bits per position against density, with the entropy as the limit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    densities = [row["density"] for row in rows]
    for form, style in (("rice", "o-"), ("block", "s-"), ("run16", "^--"), ("int32", "v--"), ("bitmap", "x--")):
        axes.plot(densities, [row[form] for row in rows], style, label=form)
    axes.plot(densities, [row["entropy"] for row in rows], "k-", linewidth=2, label="entropy H(d)/d")
    axes.set(xscale="log", ylim=(0, 36), xlabel="density", ylabel="bits per position")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), help="measure one part, keep the others")
    parser.add_argument("--report", action="store_true", help="measure nothing, redraw tables and plot")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"history": []}
    names = [] if arguments.report else [arguments.only] if arguments.only else list(PARTS)
    for name in names:
        if name in results:
            results["history"].append({"part": name, **results[name]})
        results[name] = {"surroundings": _surroundings(), "rows": PARTS[name]()}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    arguments.results.with_suffix(".md").write_text(text)
    if "entropy" in results:
        plot(results["entropy"]["rows"], arguments.results.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
