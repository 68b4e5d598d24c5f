"""Fashion-MNIST, CIFAR-10 and a synthetic set as uint8 tensors, and augmentation of a whole batch at once."""

import gzip
import os
import pickle
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from launch.options import UsageError
from launch.tasks.base import Part, generator
from launch.tasks.files import cache_folder, fetch_debian, find_folder

__all__ = ["ImageData", "augment", "load_cifar10", "load_fashion_mnist", "normalize", "synthetic_images"]

FASHION_FILES = tuple(
    f"{split}-{kind}.gz" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class ImageData:
    """Images uint8 (N, channels, height, width), labels int64 (N,); mean and std of the channels scaled to [0, 1]."""

    label: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    """pixels by which a training image may be shifted"""


def augment(images: torch.Tensor, padding: int, seed: tuple[int, ...], part: Part) -> torch.Tensor:
    """Shift every image by up to `padding` pixels and mirror every other one, drawn for the whole global batch.

    `images` is this part of the batch, uint8 of shape (N, C, H, W); returns a new tensor of that shape.
    """
    random = generator(*seed)
    drawn = torch.randint(2 * padding + 1, (2, len(images) * part.count), generator=random)
    mirrored = torch.rand(len(images) * part.count, generator=random) < 0.5
    own = part.of(drawn.shape[1])
    top, left = drawn[:, own]
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (N, C, top, left, H, W)
    shifted = windows[torch.arange(len(images)), :, top, left]
    return torch.where(mirrored[own, None, None, None], shifted.flip(-1), shifted)


def normalize(images: torch.Tensor, data: ImageData) -> torch.Tensor:
    """uint8 images to float32 with zero mean and unit deviation per channel, channels_last."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) * 255 for value in (data.mean, data.std))
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=1)  # for those who train several times in one process
def load_fashion_mnist(folder: Path | None, *, offline: bool) -> ImageData:
    """Fashion-MNIST (60,000 + 10,000 images, 28 x 28, 10 classes; Xiao et al. 2017) from its four IDX files.

    Looks in `folder`, the Debian package's folder and the cache, then downloads the package into the cache. Raises
    UsageError where the files are not found.
    """
    cached = cache_folder() / "fashion-mnist"
    candidates = [folder] if folder else [Path("/") / DEBIAN_FOLDER, cached]
    found = find_folder(candidates, FASHION_FILES)
    if found is None and folder:
        raise UsageError(f"--data-folder {folder} does not hold Fashion-MNIST's files {', '.join(FASHION_FILES)}")
    if found is None and offline:
        raise UsageError("Fashion-MNIST is not here: leave out --offline to download it, or give --data-folder")
    if found is None:
        fetch_debian("dataset-fashion-mnist", DEBIAN_FOLDER, cached)
        found = cached
    arrays = [_read_idx(found / name) for name in FASHION_FILES]
    train, test = (
        (torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())
        for images, labels in (arrays[:2], arrays[2:])
    )
    # mean and deviation of the training images
    return ImageData("Fashion-MNIST", *train, *test, mean=(0.2860,), std=(0.3530,), padding=2)


def _read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of bytes: 2 zero bytes, type 8, number of dimensions, the dimensions big-endian, the data."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise UsageError(f"{path} is not an IDX file of bytes")
    num_dims = raw[3]
    shape = np.frombuffer(raw, ">i4", num_dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()


def load_cifar10(folder: Path | None) -> ImageData:
    """CIFAR-10 (50,000 + 10,000 images, 32 x 32, 10 classes; Krizhevsky 2009).

    `folder` (or $DGCOMP_DATA/cifar10) holds the original binary or Python batches, or cifar10_jpeg.npz with JPEG
    bytes, which is lossy and labelled so. Raises UsageError where none of them is there.
    """
    folder = folder or Path(os.environ.get("DGCOMP_DATA", ".")) / "cifar10"
    numbers = range(1, 6)
    if (folder / "data_batch_1.bin").exists():
        train = _read_binary([folder / f"data_batch_{n}.bin" for n in numbers])
        test, label = _read_binary([folder / "test_batch.bin"]), "CIFAR-10"
    elif (folder / "data_batch_1").exists():
        train = _read_pickles([folder / f"data_batch_{n}" for n in numbers])
        test, label = _read_pickles([folder / "test_batch"]), "CIFAR-10"
    elif (folder / "cifar10_jpeg.npz").exists():
        archive = np.load(folder / "cifar10_jpeg.npz")
        train, test = (_decode_jpeg(archive, split) for split in ("train", "test"))
        label = "CIFAR-10 (JPEG)"
    else:
        known = "data_batch_1.bin and so on, data_batch_1 and so on, or cifar10_jpeg.npz"
        raise UsageError(f"no CIFAR-10 in {folder}: give a --data-folder with {known}")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return ImageData(label, *train, *test, mean=mean, std=std, padding=4)


def _read_binary(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's binary records: one label byte, 3072 bytes of red, green and blue planes."""
    records = torch.from_numpy(np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in paths]))
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers and refuses everything else: a pickle can run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise UsageError(f"a CIFAR-10 batch holds only arrays, but this file names {module}.{name}: not loaded")
        # numpy 2 moved the module that the original files name
        return super().find_class("numpy._core.multiarray" if name == "_reconstruct" else module, name)


def _read_pickles(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    batches = [_ArrayUnpickler(BytesIO(path.read_bytes()), encoding="bytes").load() for path in paths]
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch[b"labels"]) for batch in batches])
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def _decode_jpeg(archive: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UsageError("cifar10_jpeg.npz needs Pillow: pip install pillow") from None
    stream, ends = archive[f"{split}_jpeg"].tobytes(), np.cumsum(archive[f"{split}_len"], dtype=np.int64)
    starts = ends - archive[f"{split}_len"]
    images = np.stack(
        [np.asarray(Image.open(BytesIO(stream[a:b])).convert("RGB")) for a, b in zip(starts, ends, strict=True)]
    )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(archive[f"{split}_y"]).long()


def synthetic_images(seed: int) -> ImageData:
    """2,048 + 512 images of 12 x 12: one random pattern per class under as much noise; for tests and try-outs."""
    random = generator(seed, 17)
    patterns = torch.rand(10, 1, 12, 12, generator=random)
    labels = torch.randint(10, (2560,), generator=random)
    noise = torch.rand(2560, 1, 12, 12, generator=random)
    images = ((patterns[labels] + noise) * 127).to(torch.uint8)
    return ImageData(
        "synthetic images",
        *(images[:2048], labels[:2048]),
        *(images[2048:], labels[2048:]),
        mean=(0.5,),
        std=(0.2,),
        padding=0,
    )
