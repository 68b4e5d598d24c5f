"""One suite for all trainers: parity at density 1, conservation, equal replicas, exact resume, non-finite gradients.

FSDP2 and Horovod, which need other processes, call the same checks from test_fsdp.py and horovod_ranks.py.
"""

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conformance import conform
from tests.integrations.jobs import free_port, set_launcher_environment
from tests.integrations.loops import train_ddp, train_local_sgd
from tests.ranks import run_ranks


def _ddp_and_local_sgd(rank: int, folder: Path) -> None:
    conform(train_ddp, folder / "ddp")
    conform(train_local_sgd, folder / "local_sgd")


def test_ddp_and_local_sgd(tmp_path: Path) -> None:
    (tmp_path / "local_sgd").mkdir()
    run_ranks(_ddp_and_local_sgd, 2, tmp_path)


@pytest.mark.optional
@pytest.mark.parametrize("package", ["accelerate", "lightning", "transformers"])
def test_trainers_on_ddp(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    run_ranks(_optional, 2, package, tmp_path, free_port())


def _optional(rank: int, package: str, folder: Path, port: int) -> None:
    prepare(rank, folder, port)
    loops = importlib.import_module("tests.integrations.optional_loops")
    conform(getattr(loops, f"train_{package}"), folder)


def prepare(rank: int, folder: Path, port: int) -> None:
    """What foreign trainers need of a process."""
    set_launcher_environment(rank, 2, port)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "DGCOMP_SCRATCH": str(folder)}


DEEPSPEED: dict[str, dict[str, Any]] = {
    "stage 0": {},
    "stage 1": {"zero_optimization": {"stage": 1}},
}


@pytest.mark.optional
@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed(name: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_ranks(_deepspeed, 2, name, tmp_path, free_port())


def _deepspeed(rank: int, name: str, folder: Path, port: int) -> None:
    prepare(rank, folder, port)
    from tests.integrations.optional_loops import train_deepspeed

    conform(lambda job: train_deepspeed(replace(job, options=DEEPSPEED[name])), folder)
