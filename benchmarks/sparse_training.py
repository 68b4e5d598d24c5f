"""Networks trained and pruned for benchmarks/sparse.py: three ways to prune, and the way to EIE's format."""

import argparse
import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sparse_rows import append, read_rows
from dgcomp import sparse
from dgcomp.sparse.networks import ResNet, vgg
from launch.tasks.image_data import ImageData, load_cifar10, load_fashion_mnist, normalize

__all__ = ["METHODS", "TASKS", "prune", "tune", "walk"]

# "dense" goes on from level 0 of "spatial" without pruning, as long as the others: losses are counted from it.
METHODS = ("spatial", "dense", "winograd", "winograd-relu")
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.12, 0.07)
BATCH_SIZE = 64

TASKS: dict[str, Callable[[Any], nn.Module]] = {
    "fashion-vgg": lambda kind: vgg(kind, ((8,), (24, 24), (48, 48)), in_channels=1),
    "fashion-resnet": lambda kind: ResNet(kind, (16, 32), (0,), nn.Conv2d(1, 16, 3, padding=1, stride=2), 10),
    "cifar-vgg": lambda kind: vgg(kind, ((8,), (48, 48), (96, 96))),
    "cifar-resnet": lambda kind: ResNet(kind, (32, 64), (0,), nn.Conv2d(3, 32, 3, padding=1, stride=2), 10),
}


class Recipe(NamedTuple):
    """How the networks of a task are trained; the levels after the first start at 0.3 times the first one's rate."""

    dense_steps: int = 1000
    pruned_steps: int = 200
    rates: tuple[float, float, float] = (0.1, 0.1, 0.1)  # spatial, winograd, winograd-relu
    from_spatial: bool = False  # Winograd weights start as transforms of He-initialised spatial ones

    def rate(self, method: str, level: int) -> float:
        """Learning rate at the start of a level."""
        rates = dict(zip(("spatial", "winograd", "winograd-relu"), self.rates, strict=True))
        return rates["spatial" if method == "dense" else method] * (0.3 if level else 1)


# The rates have the least loss of those that `tune` tries; the ResNet's with Winograd weights, which it does not try,
# is that of the VGG.
RECIPES = {
    "cifar-vgg": Recipe(3000, 300, (0.2, 0.1, 0.2), from_spatial=True),
    "cifar-resnet": Recipe(2000, 200, (0.2, 0.1, 0.1), from_spatial=True),
}

# Task, initialisation of the Winograd weights, method, and the rates that `tune` tries with them.
TRIALS = (
    ("cifar-vgg", "spatial", "spatial", (0.05, 0.1, 0.2, 0.4)),
    ("cifar-vgg", "spatial", "winograd", (0.05, 0.1, 0.2, 0.4)),
    ("cifar-vgg", "spatial", "winograd-relu", (0.05, 0.1, 0.2, 0.4)),
    ("cifar-vgg", "released", "winograd", (0.1,)),
    ("cifar-vgg", "released", "winograd-relu", (0.05, 0.1)),
    ("cifar-resnet", "spatial", "spatial", (0.1, 0.2)),
    ("cifar-resnet", "spatial", "winograd-relu", (0.1,)),
    ("cifar-resnet", "released", "winograd-relu", (0.1,)),
)


class Images(NamedTuple):
    """Images of zero mean and unit variance and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def prune(args: argparse.Namespace) -> None:
    """Train each network once, then prune it level by level; one row for each level, resumable between rows.

    Several of these may run at a time: each takes curves that no other works on.
    """
    started = time.monotonic()
    images = read_images(args)
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for method in args.methods:
            start = args.checkpoints / f"{args.task}-spatial-{seed}-0.pt"
            if method == "dense" and not start.exists():
                continue  # another process trains it
            with claimed(args.checkpoints / f"{args.task}-{method}-{seed}.lock") as free:
                for level in range(method == "dense", len(DENSITIES)) if free else ():
                    if time.monotonic() - started > args.seconds:
                        return
                    run_level(args.task, method, seed, level, images, args.checkpoints)


def read_images(args: argparse.Namespace) -> Images:
    """The data set of the task as float32."""
    if args.task.startswith("cifar"):
        return _images(load_cifar10(args.cifar))
    return _images(load_fashion_mnist(args.fashion, offline=False))


def _images(data: ImageData) -> Images:
    train, test = normalize(data.train_images, data), normalize(data.test_images, data)
    return Images(train, data.train_labels, test, data.test_labels)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process holds the file at `path`; if so, this one does meanwhile."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_level(task: str, method: str, seed: int, level: int, images: Images, folder: Path) -> None:
    """Train a network from its last level to this one and append the row, unless the row is there already."""
    row = {"what": "prune", "task": task, "method": method, "seed": seed, "level": level}
    if any(row.items() <= old.items() for old in read_rows("prune")):
        return
    torch.manual_seed(seed)
    start = time.perf_counter()
    density = 1.0 if method == "dense" else DENSITIES[level]
    recipe = RECIPES.get(task, Recipe())
    model = build(task, method, recipe)
    pruner = sparse.Pruner(model, sparse.OneShot(density), layers=three_by_three(model))
    if level > 0:
        before = "spatial" if (method, level) == ("dense", 1) else method
        saved = torch.load(folder / f"{task}-{before}-{seed}-{level - 1}.pt")
        model.load_state_dict(saved["model"])
        pruner.load_state_dict(saved["pruner"])
    steps, rate = recipe.pruned_steps if level else recipe.dense_steps, recipe.rate(method, level)
    train(model, images, steps, rate, 1000 * seed + level, pruner.step)
    torch.save(
        {"model": model.state_dict(), "pruner": pruner.state_dict()}, folder / f"{task}-{method}-{seed}-{level}.pt"
    )
    count = sparse.count_multiplies(model, images.test[:256])
    figures = {"accuracy": accuracy(model, images), "reduction": round(count.reduction, 3), "multiplies": count.sparse}
    append(
        row
        | {"density": density, "steps": steps, "rate": round(rate, 4)}
        | figures
        | {"seconds": round(time.perf_counter() - start, 1)}
    )


def build(task: str, method: str, recipe: Recipe) -> nn.Module:
    """The task's network with its initial weights."""
    model = TASKS[task]("spatial" if method == "dense" else method).to(memory_format=torch.channels_last)
    for layer in model.modules():
        if recipe.from_spatial and isinstance(layer, sparse.WinogradReLUConv2d):
            layer.reset_from_spatial()
    return model


def three_by_three(model: nn.Module) -> list[str]:
    """Names of the 3x3 convolutions that are pruned: all but the first, which stays as it is."""
    kinds = (nn.Conv2d, sparse.WinogradReLUConv2d)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name, module in layers if getattr(module, "kernel_size", (3, 3)) == (3, 3)][1:]


def train(
    model: nn.Module, images: Images, steps: int, rate: float, seed: int, after_step: Callable[[], None] | None = None
) -> float:
    """SGD with Nesterov momentum and a cosine to zero; horizontal flips, batches drawn by the seed.

    Returns the mean loss of the last 100 batches.
    """
    losses = []
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(images.train), (BATCH_SIZE,), generator=draw)
        x = images.train[index]
        if x.ndim == 4 and torch.rand((), generator=draw) < 0.5:
            x = x.flip(3)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), images.train_labels[index])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        cosine.step()
        if after_step:
            after_step()
    return sum(losses[-100:]) / len(losses[-100:])


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Percent of the test images."""
    model.eval()
    batches = zip(images.test.split(500), images.test_labels.split(500), strict=True)
    return 100 * sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(images.test)


def tune(args: argparse.Namespace) -> None:
    """Learning rates and initialisations on CIFAR-10: 400 dense steps each, on a seed that no curve uses.

    5,000 of the training images are held out; the test images are not looked at. Resumable.
    """
    images = held_out(read_images(argparse.Namespace(task="cifar-vgg", cifar=args.cifar)))
    for task, start, method, rates in TRIALS:
        for rate in rates:
            row = {"what": "tune", "task": task, "method": method, "start": start, "rate": rate}
            if any(row.items() <= old.items() for old in read_rows("tune")):
                continue
            torch.manual_seed(7)
            model = build(task, method, Recipe(from_spatial=start == "spatial"))
            loss = train(model, images, 400, rate, 7000)
            append(row | {"seed": 7, "steps": 400, "loss": round(loss, 4), "accuracy": accuracy(model, images)})


def held_out(images: Images) -> Images:
    """5,000 training images in the place of the test images, 45,000 to train on."""
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(5))
    train, test = order[:45_000], order[45_000:]
    return Images(images.train[train], images.train_labels[train], images.train[test], images.train_labels[test])


def walk(args: argparse.Namespace) -> None:
    """Prune, share, compress and run a fully connected network on Fashion-MNIST: sizes and accuracy at each step."""
    loaded = _images(load_fashion_mnist(args.fashion, offline=False))
    images = loaded._replace(train=loaded.train.flatten(1), test=loaded.test.flatten(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in linears)

    def note(step: str, bits: float, percent: float | None = None) -> None:
        percent = accuracy(model, images) if percent is None else percent
        append({"what": "walk", "step": step, "accuracy": percent, "kilobytes": round(bits / 8192, 1)})

    train(model, images, 1500, 0.05, 0)
    note("dense float32", 32 * weights)
    for density in (0.5, 0.3, 0.2, 0.1):
        pruner = sparse.Pruner(model, sparse.OneShot(density), layers=["0", "2"])
        train(model, images, 400, 0.02, round(100 * density), pruner.step)
    kept = sum(int((layer.weight != 0).sum()) for layer in linears)
    note("pruned to 10 %, CSR", 64 * kept)
    for layer in linears:
        sparse.share_weights(layer)
    note("4-bit codebooks, as clustered", 8 * kept)
    train(model, images, 400, 0.0005, 7)
    for layer in linears:
        sparse.unshare_weights(layer)
    note("centroids fine-tuned", 8 * kept)
    matrices = [sparse.EIEMatrix.from_dense(layer.weight, num_pes=64) for layer in linears]
    for matrix, layer in zip(matrices, linears, strict=True):
        assert torch.equal(matrix.to_dense(), layer.weight)
    reports = [sparse.size_report(matrix) for matrix in matrices]
    percent = _accuracy_of_matrices(matrices, linears, images)
    note("EIEMatrix, entries alone", sum(8 * matrix.num_entries for matrix in matrices), percent)
    note("EIEMatrix with pointers and codebooks", sum(r.eie_bits for r in reports), percent)
    note("the same, Huffman-coded", sum(r.huffman_bits for r in reports), percent)
    some = images._replace(test=images.test[:500], test_labels=images.test_labels[:500])
    one_by_one = _accuracy_of_matrices(matrices, linears, some, one_by_one=True)
    assert one_by_one == _accuracy_of_matrices(matrices, linears, some)
    note("matvec, one image at a time, first 500 images", sum(r.eie_bits for r in reports), one_by_one)


def _accuracy_of_matrices(
    matrices: list[sparse.EIEMatrix], linears: list[nn.Linear], images: Images, *, one_by_one: bool = False
) -> float:
    x = images.test
    for matrix, layer in zip(matrices, linears, strict=True):
        product = torch.stack([matrix.matvec(row) for row in x]) if one_by_one else matrix.matmul(x)
        x = product + layer.bias.detach()
        x = x if layer is linears[-1] else x.relu()
    return 100 * float((x.argmax(1) == images.test_labels).float().mean())
