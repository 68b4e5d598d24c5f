"""What every test can rely on: one torch thread, a fixed seed, and the folder of optional data."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DATA_FOLDER = Path(os.environ.get("DGCOMP_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _fixed_surroundings() -> Iterator[None]:
    """Seed torch, use one thread, and restore threads and default dtype afterwards."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def data_file(name: str) -> Path:
    """Path of an optional data file such as "cifar10/cifar10_jpeg.npz"; skips the test where it is absent."""
    path = DATA_FOLDER / name
    if not path.exists():
        pytest.skip(f"data file {path} is not there; set DGCOMP_DATA to the folder that holds {name}")
    return path
