"""One suite for all trainers: parity at density 1, conservation, equal replicas, exact resume, non-finite gradients.

FSDP2 and Horovod, which need other processes, call the same checks from test_fsdp.py and horovod_ranks.py.
"""

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dgcomp.integrations.local_sgd import LocalSGD
from tests.integrations.conformance import SPARSE, conform
from tests.integrations.jobs import Job, LossNet, batches, free_port, make_model, set_launcher_environment
from tests.integrations.loops import train_ddp, train_local_sgd
from tests.ranks import run_ranks
from tests.training import ddp, same_on_all_ranks, values


def _ddp_and_local_sgd(rank: int, folder: Path) -> None:
    conform(train_ddp, folder / "ddp")
    conform(train_local_sgd, folder / "local_sgd")
    _files(rank, folder / "ddp")
    _bad_round(rank)


def _files(rank: int, folder: Path) -> None:
    """A rank without its own file makes all start from the means; without any file all hear of it."""
    job = Job(config=SPARSE, steps=[], load=folder)
    mean = train_ddp(job).residual.clone()
    dist.all_reduce(mean)
    dist.barrier()
    if rank == 1:
        (folder / "dgcomp-1-of-2.pt").unlink()
    dist.barrier()
    found = train_ddp(job).residual
    assert torch.allclose(found, mean / 2, rtol=0, atol=1e-6 * float(mean.abs().max()))
    dist.barrier()
    if rank == 0:
        (folder / "dgcomp-0-of-2.pt").unlink()
    dist.barrier()
    with pytest.raises(ValueError, match="there is no dgcomp-.*pt in .*; give the checkpoint that holds the residuals"):
        train_ddp(job)


def _bad_round(rank: int) -> None:
    """What AdamW gathered in a round that ended non-finite is forgotten, and the run goes on from the start."""
    model = make_model(Job(config=SPARSE, steps=[]))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    local = LocalSGD(model, inner, outer, sync_every=2, config=SPARSE)
    job = Job(config=SPARSE, steps=range(8), bad_step=5)
    for x, y in batches(job):
        inner.zero_grad()
        model(x, y).backward()
        inner.step()
    assert local.compressor.stats()["nonfinite_steps"] == 1
    assert local.compressor.step == 3
    assert torch.isfinite(values(model)).all()
    assert same_on_all_ranks(values(model))
    with pytest.raises(ValueError, match="sync_every must be at least 1 inner step, got 0"):
        LocalSGD(model, inner, outer, sync_every=0)
    with pytest.raises(TypeError, match="must not be in DistributedDataParallel"):
        LocalSGD(ddp(LossNet()), inner, outer, sync_every=2)


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
