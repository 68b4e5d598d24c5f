"""Measure dgcomp.sparse: products, EIE's matrix times vector, pruned Winograd networks, and the way to EIE's format.

    python benchmarks/sparse.py matvec                         # EIEMatrix, dense GEMV and torch CSR at 9216 x 4096
    python benchmarks/sparse.py conv                           # pruned Winograd layer against dense convolutions
    python benchmarks/sparse.py spgemm --graphs FOLDER         # three graphs and an rMAT of a million rows
    python benchmarks/sparse.py walk --fashion FOLDER          # prune, share, compress, multiply: size and accuracy
    python benchmarks/sparse.py prune --fashion FOLDER --seconds 150   # three ways to prune; call again to go on
    python benchmarks/sparse.py tune --cifar FOLDER            # learning rates and initialisations on CIFAR-10
    python benchmarks/sparse.py render                         # Markdown and the plot from the rows so far

FOLDER of --fashion holds Fashion-MNIST's four idx.gz files (without it they are looked for and downloaded); --graphs
holds wiki-Vote.mtx, facebook_combined.txt and p2p-Gnutella31.e; --cifar holds CIFAR-10. Every command appends rows to
benchmarks/results/sparse.json. Timings are medians; all contestants of a row run in turn in one process.
"""

import argparse
import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sparse_report import render
from benchmarks.sparse_rows import append, medians_ms
from benchmarks.sparse_training import METHODS, TASKS, prune, tune, walk
from dgcomp import sparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["matvec", "conv", "spgemm", "walk", "prune", "tune", "render"])
    parser.add_argument("--graphs", type=Path, default=Path("../shared/data/graphs"))
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--cifar", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--checkpoints", type=Path, default=Path("~/.cache/dgcomp-bench").expanduser())
    parser.add_argument("--task", choices=list(TASKS), default="fashion-vgg")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150, help="stop before a stage that begins later than this")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", help="matrices of spgemm")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    commands = {"matvec": matvec, "conv": conv, "spgemm": spgemm, "walk": walk}
    commands |= {"prune": prune, "tune": tune, "render": render}
    commands[args.what](args)


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
    """One layer of 64 channels at 28 x 28, batch 8: direct, dense Winograd, sparse-weight Winograd; one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
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
        tensor = torch.sparse_csr_tensor(*indices, torch.from_numpy(a.data), a.shape, check_invariants=False)
        repeats = args.repeats if a.nnz < 5e5 else 3
        torch.set_num_threads(1)
        c, peak_kb = added_memory_kb(lambda a=a: sparse.spgemm(a, a))
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
        memory["memory_ratio"] = round((input_kb + peak_kb) / (input_kb + output_kb), 2)
        append(row | {"max_relative_error": error, "one_thread_ms": one, "two_threads_ms": two} | memory)


def added_memory_kb(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run()` returns, and by how much its highest resident size exceeds the one before (Linux)."""
    run()  # compiled code is not counted
    ctypes.CDLL(None).malloc_trim(0)  # nor may the result find room in what the first one left

    def resident_kb(which: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(which)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest size so far
    before = resident_kb("VmRSS")
    result = run()
    return result, resident_kb("VmHWM") - before


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
        wiki = np.loadtxt(folder / "wiki-Vote.mtx", comments="%", dtype=np.int64, usecols=(0, 1))
        yield "wiki-Vote", csr(wiki[1:] - 1, 8297)
        edges = np.loadtxt(folder / "facebook_combined.txt", dtype=np.int64)
        yield "facebook", csr(np.concatenate([edges, edges[:, ::-1]]), 4039)
        yield "p2p-Gnutella31", csr(np.loadtxt(folder / "p2p-Gnutella31.e", dtype=np.int64, usecols=(0, 1)) - 1, 62586)
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


if __name__ == "__main__":
    main()
