"""Image files read back as written, and augmentation that only shifts and mirrors."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.options import UsageError
from launch.tasks.base import Part
from launch.tasks.image_data import augment, load_cifar10, load_fashion_mnist, normalize, synthetic_images
from tests.conftest import data_file


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_from_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    test = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    _write_idx(tmp_path / "train-images-idx3-ubyte.gz", train)
    _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(5, dtype=np.uint8))
    _write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", test)
    _write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(3, dtype=np.uint8))
    data = load_fashion_mnist(tmp_path, offline=True)
    assert data.train_images.shape == (5, 1, 28, 28)
    np.testing.assert_array_equal(data.train_images[:, 0].numpy(), train)
    np.testing.assert_array_equal(data.test_images[:, 0].numpy(), test)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4]


def test_missing_files_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not hold Fashion-MNIST's files train-images"):
        load_fashion_mnist(tmp_path, offline=False)
    with pytest.raises(UsageError, match="no CIFAR-10 in"):
        load_cifar10(tmp_path)
    monkeypatch.setenv("DGCOMP_CACHE", str(tmp_path))
    monkeypatch.setattr("launch.tasks.image_data.DEBIAN_FOLDER", "nowhere")
    with pytest.raises(UsageError, match="leave out --offline"):
        load_fashion_mnist(None, offline=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\x00\x00\x0d\x01"))
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").touch()
    with pytest.raises(UsageError, match="is not an IDX file of bytes"):
        load_fashion_mnist(tmp_path, offline=True)


def _cifar_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)


def test_cifar10_binary_and_python_batches_agree(tmp_path: Path) -> None:
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    binary, python = tmp_path / "binary", tmp_path / "python"
    binary.mkdir()
    python.mkdir()
    images, labels = _cifar_images(2)
    for name in names:
        (binary / f"{name}.bin").write_bytes(np.hstack([labels[:, None], images]).tobytes())
        (python / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=2))
    one, other = load_cifar10(binary), load_cifar10(python)
    assert one.label == "CIFAR-10"
    assert one.train_images.shape == (10, 3, 32, 32)
    assert torch.equal(one.train_images, other.train_images)
    assert torch.equal(one.test_labels, other.test_labels)
    np.testing.assert_array_equal(one.test_images[1].numpy().ravel(), images[1])


def test_a_pickle_that_is_no_batch_is_not_run(tmp_path: Path) -> None:
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UsageError, match=r"this file names \w+.system: not loaded"):
        load_cifar10(tmp_path)


@pytest.mark.data
def test_cifar10_jpeg() -> None:
    pytest.importorskip("PIL", reason="decoding JPEG needs Pillow")
    data = load_cifar10(data_file("cifar10/cifar10_jpeg.npz").parent)
    assert data.label == "CIFAR-10 (JPEG)"
    assert (len(data.train_images), len(data.test_images)) == (50_000, 10_000)
    assert data.train_labels.bincount().tolist() == [5_000] * 10
    mean = data.train_images.double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(data.mean, abs=0.003)


def test_augmentation_shifts_and_mirrors() -> None:
    image = torch.arange(1, 50, dtype=torch.uint8).view(1, 1, 7, 7)
    images = image.expand(64, 1, 7, 7).contiguous()
    shifted = augment(images, 2, (0,), Part(0, 1))
    padded = torch.nn.functional.pad(image, (2,) * 4)[0, 0]
    windows = {(flip, padded[y : y + 7, x : x + 7]) for y in range(5) for x in range(5) for flip in (False, True)}
    possible = {(window.flip(-1) if flip else window).numpy().tobytes() for flip, window in windows}
    seen = {one.numpy().tobytes() for one in shifted}
    assert seen <= possible
    assert len(seen) > 25


def test_augmentation_does_not_depend_on_the_number_of_parts() -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    whole = augment(images, 2, (5, 6), Part(0, 1))
    thirds = [augment(images[part.of(12)], 2, (5, 6), part) for part in (Part(n, 3) for n in range(3))]
    assert torch.equal(torch.cat(thirds), whole)


def test_normalize_centers_and_scales() -> None:
    data = synthetic_images(0)
    images = normalize(data.train_images, data)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert float(images.mean()) == pytest.approx(0, abs=0.1)
    assert float(images.std()) == pytest.approx(1, abs=0.2)
