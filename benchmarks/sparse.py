"""Measure dgcomp.sparse: products, EIE's matrix times vector, pruned Winograd networks, and the way to EIE's format.

    python benchmarks/sparse.py matvec                         # EIEMatrix, dense GEMV and torch CSR at 9216 x 4096
    python benchmarks/sparse.py conv                           # pruned Winograd layer against dense convolutions
    python benchmarks/sparse.py spgemm --graphs FOLDER         # three graphs and an rMAT of a million rows
    python benchmarks/sparse.py walk --fashion FOLDER          # prune, share, compress, multiply: size and accuracy
    python benchmarks/sparse.py prune --fashion FOLDER --seconds 150   # three ways to prune; call again to go on
    python benchmarks/sparse.py render                         # Markdown and the plot from the rows so far

FOLDER of --fashion holds Fashion-MNIST's four idx.gz files (Debian package dataset-fashion-mnist); --graphs holds
wiki-Vote.mtx, facebook_combined.txt and p2p-Gnutella31.e; --cifar is an npz of CIFAR-10 as JPEG. Every command appends
rows to benchmarks/results/sparse.json. Timings are medians; all contestants of a row run in turn in one process.
"""

import argparse
import gzip
import io
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgcomp import sparse
from dgcomp.sparse.networks import ResNet, vgg

RESULTS = Path(__file__).parent / "results" / "sparse.json"
KINDS = ("spatial", "winograd", "winograd-relu")
DENSITIES = (1.0, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["matvec", "conv", "spgemm", "walk", "prune", "render"])
    parser.add_argument("--graphs", type=Path, default=Path("../shared/data/graphs"))
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--cifar", type=Path, default=Path("../shared/data/cifar10/cifar10_jpeg.npz"))
    parser.add_argument("--checkpoints", type=Path, default=Path("~/.cache/dgcomp-bench").expanduser())
    parser.add_argument("--task", choices=list(TASKS), default="fashion-vgg")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150, help="stop before a stage that begins later than this")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="matrices of spgemm")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    {"matvec": matvec, "conv": conv, "spgemm": spgemm, "walk": walk, "prune": prune, "render": render}[args.what](args)


# ---------------------------------------------------------------------------------------------- rows and times


def append(row: dict[str, Any]) -> None:
    """Append a row with where and how it was measured, and print it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    row |= {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "command": " ".join(["python", *sys.argv]),
    }
    rows = read_rows()
    RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(json.dumps(row), flush=True)


def read_rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def medians_ms(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each; they take turns, so that a disturbance meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


# ---------------------------------------------------------------------------------------------- kernels


def matvec(args: argparse.Namespace) -> None:
    """Alex-6's size at 10 % weights and 35 % activations, one and two threads."""
    torch.manual_seed(0)
    values = torch.cat([torch.linspace(-1, -0.1, 7), torch.linspace(0.1, 1, 8)])
    weight = values[torch.randint(15, (4096, 9216))] * (torch.rand(4096, 9216) < 0.10)
    x = torch.rand(9216) * (torch.rand(9216) < 0.35)
    matrix, csr = sparse.EIEMatrix.from_dense(weight), weight.to_sparse_csr()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        contestants = {"eie": lambda: matrix.matvec(x), "dense": lambda: weight @ x, "torch_csr": lambda: csr @ x}
        figures = medians_ms(contestants, args.repeats)
        # the physical limit: reading the entries of the active columns once, at 28 GB/s
        limit_ms = 0.35 * matrix.num_entries / 28e9 * 1e3
        append({"what": "matvec", "threads": threads, "ms": figures, "read_limit_ms": round(limit_ms, 3)})


def conv(args: argparse.Namespace) -> None:
    """One layer of 64 channels at 28 x 28, batch 8: direct, dense Winograd, sparse-weight Winograd."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 28, 28)
    direct = nn.Conv2d(64, 64, 3, padding=1, bias=False).requires_grad_(False)
    for density in (0.5, 0.2, 0.1, 0.05):
        layer = sparse.WinogradReLUConv2d(64, 64).requires_grad_(False)
        layer.weight.mul_(sparse.Unstructured()(layer.weight, density))
        pruned = sparse.SparseWinogradConv2d(layer)
        figures = medians_ms(
            {
                "direct_dense": lambda: direct(x),
                "winograd_dense": lambda layer=layer: layer(x),
                "winograd_sparse": lambda pruned=pruned: pruned(x),
            },
            args.repeats,
        )
        append({"what": "conv", "density": density, "ms": figures})


def spgemm(args: argparse.Namespace) -> None:
    """A @ A against SciPy on one thread and torch's (MKL) product on two."""
    for name, a in graphs(args.graphs):
        if args.only and name not in args.only:
            continue
        a.data = np.random.default_rng(1).standard_normal(a.nnz)
        indices = [torch.from_numpy(part.astype(np.int64)) for part in (a.indptr, a.indices)]
        tensor = torch.sparse_csr_tensor(*indices, torch.from_numpy(a.data), a.shape)
        repeats = args.repeats if a.nnz < 5e5 else 3
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        c = sparse.spgemm(a, a)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        error = verify(a, c)

        def sorted_scipy(a: Any = a) -> Any:
            product = a @ a
            product.sort_indices()
            return product

        one = medians_ms(
            {"dgcomp": lambda a=a: sparse.spgemm(a, a), "scipy": lambda a=a: a @ a, "scipy_sorted": sorted_scipy},
            repeats,
        )
        torch.set_num_threads(2)
        two = medians_ms({"dgcomp": lambda t=tensor: sparse.spgemm(t, t), "torch_mkl": lambda t=tensor: t @ t}, repeats)
        row = {"what": "spgemm", "matrix": name, "rows": a.shape[0], "nnz": a.nnz, "nnz_c": c.nnz}
        output_kb = (c.indptr.nbytes + c.indices.nbytes + c.data.nbytes) // 1024
        input_kb = 2 * (a.indptr.nbytes + a.indices.nbytes + a.data.nbytes) // 1024
        memory = {"added_peak_kb": peak_kb, "output_kb": output_kb, "inputs_kb": input_kb}
        append(row | {"max_relative_error": error, "one_thread_ms": one, "two_threads_ms": two} | memory)


def verify(a: Any, c: Any) -> float:
    """Largest difference from SciPy's product, relative to the largest entry."""
    expected = a @ a
    expected.sort_indices()
    if not np.array_equal(expected.indices, c.indices):
        raise AssertionError("the pattern of the product must equal SciPy's")
    return float(np.abs(expected.data - c.data).max() / np.abs(expected.data).max())


def graphs(folder: Path) -> Iterator[tuple[str, Any]]:
    from scipy.sparse import coo_matrix

    def csr(pairs: np.ndarray, rows: int) -> Any:
        matrix = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (rows, rows)).tocsr()
        matrix.sum_duplicates()
        return matrix

    if folder.exists():
        wiki = np.loadtxt(folder / "wiki-Vote.mtx", comments="%", dtype=np.int64)
        yield "wiki-Vote", csr(wiki[1:, :2] - 1, 8297)
        edges = np.loadtxt(folder / "facebook_combined.txt", dtype=np.int64)
        yield "facebook", csr(np.concatenate([edges, edges[:, ::-1]]), 4039)
        yield "p2p-Gnutella31", csr(np.loadtxt(folder / "p2p-Gnutella31.e", dtype=np.int64)[:, :2] - 1, 62586)
    yield "rMAT 1M", csr(rmat(scale=20, num_edges=1 << 20), 1 << 20)


def rmat(scale: int, num_edges: int) -> np.ndarray:
    """Edges of a recursive-matrix graph with Graph500's quadrant probabilities .57 .19 .19 .05, seed 0."""
    rng = np.random.default_rng(0)
    pairs = np.zeros((num_edges, 2), np.int64)
    for _ in range(scale):
        draw = rng.random(num_edges)
        lower, right = draw >= 0.76, ((draw >= 0.57) & (draw < 0.76)) | (draw >= 0.95)
        pairs = 2 * pairs + np.stack([lower, right], axis=1)
    return pairs


# ---------------------------------------------------------------------------------------------- data and training


def fashion(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fashion-MNIST: images [n, 1, 28, 28] of zero mean and unit variance, labels; train then test."""
    parts = []
    for split in ("train", "t10k"):
        images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        pixels = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
        parts += [
            (pixels.float() / 255 - 0.286) / 0.353,
            torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long(),
        ]
    return parts[0], parts[1], parts[2], parts[3]


def cifar(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CIFAR-10 (JPEG): images [n, 3, 32, 32] of about zero mean and unit variance, labels; train then test."""
    from PIL import Image

    parts = []
    with np.load(path) as file:
        for split in ("train", "test"):
            stream, ends = file[f"{split}_jpeg"].tobytes(), np.cumsum(file[f"{split}_jpeg_len"], dtype=np.int64)
            starts = np.concatenate([[0], ends[:-1]])
            decoded = [np.asarray(Image.open(io.BytesIO(stream[s:e]))) for s, e in zip(starts, ends, strict=True)]
            pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
            parts += [(pixels.float() / 255 - 0.46) / 0.25, torch.from_numpy(file[f"{split}_y"].astype(np.int64))]
    return parts[0], parts[1], parts[2], parts[3]


TASKS: dict[str, Callable[[Any], nn.Module]] = {
    "fashion-vgg": lambda kind: vgg(kind, ((16, 16), (32, 32), (64,)), in_channels=1),
    "fashion-resnet": lambda kind: ResNet(kind, (16, 32), (0,), nn.Conv2d(1, 16, 3, padding=1, stride=2), 10),
    "cifar-vgg": lambda kind: vgg(kind, ((32, 32), (64, 64), (128,))),
}
DENSE_STEPS, PRUNED_STEPS, BATCH = 1400, 470, 128


def train(model: nn.Module, data: Any, steps: int, rate: float, seed: int, after_step: Callable[[], None]) -> None:
    """SGD with Nesterov momentum and a cosine to zero; horizontal flips, batches drawn by the seed."""
    images, labels = data[:2]
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(images), (BATCH,), generator=draw)
        x = images[index]
        if x.ndim == 4 and torch.rand((), generator=draw) < 0.5:
            x = x.flip(3)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels[index]).backward()
        optimizer.step()
        cosine.step()
        after_step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Any) -> float:
    """Percent of the test images."""
    model.eval()
    batches = zip(data[2].split(500), data[3].split(500), strict=True)
    return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(data[3])


def prune(args: argparse.Namespace) -> None:
    """Train each kind of convolution, then prune step by step; one row for each density, resumable between rows."""
    started = time.monotonic()
    data = cifar(args.cifar) if args.task.startswith("cifar") else fashion(args.fashion)
    done = {(r["task"], r["method"], r["density"], r["seed"]) for r in read_rows() if r["what"] == "prune"}
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for density in DENSITIES:
            for kind in KINDS:
                if (args.task, kind, density, seed) in done:
                    continue
                if time.monotonic() - started > args.seconds:
                    return
                stage(args.task, kind, density, seed, data, args.checkpoints / f"{args.task}-{kind}-{seed}.pt")


def three_by_three(model: nn.Module) -> list[str]:
    """Names of the 3x3 convolutions that are pruned: all but the first, which stays as it is."""
    kinds = (nn.Conv2d, sparse.WinogradReLUConv2d)
    names = [
        n for n, m in model.named_modules() if isinstance(m, kinds) and getattr(m, "kernel_size", (3, 3)) == (3, 3)
    ]
    return names[1:]


def stage(task: str, kind: str, density: float, seed: int, data: Any, checkpoint: Path) -> None:
    """Go from the last density of this network to the next, and append the row."""
    torch.manual_seed(seed)
    model = TASKS[task](kind)
    pruner = sparse.Pruner(model, lambda step: density, layers=three_by_three(model))
    if density < 1:
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        pruner.load_state_dict(saved["pruner"])
    steps, rate = (DENSE_STEPS, 0.1) if density == 1 else (PRUNED_STEPS, 0.03)
    start = time.perf_counter()
    train(model, data, steps, rate, 1000 * seed + round(100 * density), pruner.step)
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, checkpoint)
    count = sparse.count_multiplies(model, data[2][:256])
    row = {"what": "prune", "task": task, "method": kind, "density": density, "seed": seed}
    figures = {"accuracy": accuracy(model, data), "reduction": round(count.reduction, 3), "multiplies": count.sparse}
    append(row | figures | {"seconds": round(time.perf_counter() - start, 1)})


# ---------------------------------------------------------------------------------------------- the whole way


def walk(args: argparse.Namespace) -> None:
    """Prune, share, compress and run a fully connected network on Fashion-MNIST: sizes and accuracy at each step."""
    data = tuple(part.flatten(1) if part.ndim == 4 else part for part in fashion(args.fashion))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in linears)

    def note(step: str, bits: float, percent: float | None = None, **more: Any) -> None:
        percent = accuracy(model, data) if percent is None else percent
        append({"what": "walk", "step": step, "accuracy": percent, "kilobytes": round(bits / 8192, 1)} | more)

    train(model, data, 3000, 0.05, 0, lambda: None)
    note("dense float32", 32 * weights)
    for density in (0.5, 0.3, 0.2, 0.1):
        pruner = sparse.Pruner(model, sparse.OneShot(density), layers=["0", "2"])
        train(model, data, 700, 0.02, round(100 * density), pruner.step)
    kept = sum(int((layer.weight != 0).sum()) for layer in linears)
    note("pruned to 10 %, CSR", 64 * kept)
    for layer in linears:
        sparse.share_weights(layer)
    note("4-bit codebooks, as clustered", 8 * kept)
    train(model, data, 700, 0.0005, 7, lambda: None)
    for layer in linears:
        sparse.unshare_weights(layer)
    note("centroids fine-tuned", 8 * kept)
    matrices = [sparse.EIEMatrix.from_dense(layer.weight, num_pes=64) for layer in linears]
    for matrix, layer in zip(matrices, linears, strict=True):
        assert torch.equal(matrix.to_dense(), layer.weight)
    reports = [sparse.size_report(matrix) for matrix in matrices]
    x = data[2]
    for matrix, layer, last in zip(matrices, linears, (False, False, True), strict=True):
        x = matrix.matmul(x) + layer.bias.detach()
        x = x if last else x.relu()
    percent = 100 * float((x.argmax(1) == data[3]).float().mean())
    entry_bits = sum(8 * matrix.num_entries for matrix in matrices)
    note("EIEMatrix, entries alone", entry_bits, percent)
    note("EIEMatrix with pointers and codebooks", sum(r.eie_bits for r in reports), percent)
    note("the same, Huffman-coded", sum(r.huffman_bits for r in reports), percent)
    hidden = (matrices[0].matvec(data[2][0]) + linears[0].bias.detach()).relu()
    torch.set_num_threads(1)
    dense = linears[1].weight.detach()
    figures = medians_ms({"eie": lambda: matrices[1].matvec(hidden), "dense": lambda: dense @ hidden}, 51)
    active = round(float((hidden != 0).float().mean()), 3)
    note("matvec of the 1024-512 layer", 8 * matrices[1].num_entries, percent, ms=figures, active=active)


# ---------------------------------------------------------------------------------------------- documents


def render(args: argparse.Namespace) -> None:
    """results/sparse.md and results/sparse.png."""
    rows = read_rows()
    lines = ["# dgcomp.sparse, measured", "", "Rows of sparse.json; `python benchmarks/sparse.py --help` says how.", ""]
    for what in ("matvec", "conv", "spgemm", "walk"):
        chosen = [row for row in rows if row["what"] == what]
        if chosen:
            lines += [f"## {what}", ""]
            lines += table([flat(row) for row in chosen]) + [""]
    pruned = [row for row in rows if row["what"] == "prune"]
    if pruned:
        lines += [
            "## prune",
            "",
            "Mean over seeds; reduction = multiplies of the direct dense network / multiplies left.",
            "",
        ]
        lines += table(summary(pruned)) + ["", "![accuracy against multiply reduction](sparse.png)", ""]
        plot(pruned)
    RESULTS.with_suffix(".md").write_text("\n".join(lines))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            out |= {f"{key} {name}": inner for name, inner in value.items()}
        elif key not in ("what", "torch", "machine", "command"):
            out[key] = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e-3 else value
    return out


def table(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return head + ["| " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"], row["density"]), []).append(row)
    out = []
    for (task, method, density), group in sorted(groups.items(), key=lambda item: (*item[0][:2], -item[0][2])):
        accuracies = [row["accuracy"] for row in group]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(group) > 1 else ""
        reduction = statistics.mean(row["reduction"] for row in group)
        figures = {"accuracy %": f"{statistics.mean(accuracies):.2f}{spread}", "reduction": f"{reduction:.1f}"}
        out.append({"task": task, "method": method, "density": density, "seeds": len(group)} | figures)
    return out


def plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = sorted({row["task"] for row in rows})
    figure, axes = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 4.5), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for kind in KINDS:
            groups = [r for r in summary([x for x in rows if x["task"] == task]) if r["method"] == kind]
            points = [(float(r["reduction"]), float(r["accuracy %"].split()[0])) for r in groups]
            axis.plot(*zip(*points, strict=True), marker="o", label=kind) if points else None
        axis.set(xscale="log", xlabel="multiply reduction", ylabel="test accuracy, %", title=task)
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
