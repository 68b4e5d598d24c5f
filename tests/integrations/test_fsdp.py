"""FSDP2 on two nodes of two ranks: the conformance suite, and what is particular to it.

Other numbers of nodes, accumulation, clipping, loss scaling, other optimizers, refusals.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import dgcomp
from dgcomp.integrations import fsdp
from tests.integrations.conformance import SPARSE, TOLERANCE, conform
from tests.integrations.jobs import Job, batches, make_model, make_sgd
from tests.integrations.loops import train_fsdp
from tests.ranks import run_ranks
from tests.training import same_on_all_ranks

JOB = Job(config=dgcomp.DGCConfig(density=1.0), steps=range(6))


def _sharded(config: dgcomp.DGCConfig | None, **attach_options):
    """Model, optimizer and compressor on two nodes of two ranks."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = make_model(JOB)
    own = mesh if config is None else mesh["shard"]
    fully_shard(model.first, mesh=own)
    fully_shard(model, mesh=own)
    optimizer = attach_options.pop("optimizer", None) or make_sgd(JOB, model.parameters())
    if isinstance(optimizer, type):
        optimizer = optimizer(model.parameters(), lr=0.01)
    state = None if config is None else fsdp.attach(model, optimizer, config, mesh=mesh, **attach_options)
    return model, optimizer, state


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])


def _mean_over_nodes(vector: Tensor, nodes: int) -> Tensor:
    total = vector.clone()
    dist.all_reduce(total)
    return total / (dist.get_world_size() // nodes) / nodes


def _other_number_of_nodes(folder: Path) -> None:
    """Two nodes of two ranks go on as four of one, and as one of four: the mean residual stays."""
    saved = train_fsdp(Job(config=SPARSE, steps=range(8), save=folder))
    mean = _mean_over_nodes(saved.residual, 2)
    for nodes in (4, 1):
        job = Job(config=SPARSE, steps=[], load=folder, options={"nodes": nodes, "partial": True})
        loaded = train_fsdp(job)
        assert loaded.steps == 8
        assert torch.equal(loaded.parameters, saved.parameters)
        assert torch.allclose(loaded.residual, mean, rtol=0, atol=1e-6 * float(mean.abs().max()))
        more = train_fsdp(replace(job, steps=range(8, 12)))
        assert same_on_all_ranks(more.parameters)


def _accumulation() -> None:
    """Two backward passes of a step, synchronized ones or not, are one of the summed gradient, as in native HSDP."""
    for is_synchronized in (True, False):
        ends = []
        for config in (None, JOB.config):
            model, optimizer, _ = _sharded(config)
            for x, y in batches(JOB):
                optimizer.zero_grad()
                for part in range(2):
                    model.set_requires_gradient_sync(is_synchronized or part == 1)
                    (model(x[part::2], y[part::2]) / 2).backward()
                optimizer.step()
            ends.append(_vector(model))
        assert float((ends[0] - ends[1]).abs().max()) <= TOLERANCE, is_synchronized


def _clipping() -> None:
    ends = []
    for config in (None, dgcomp.DGCConfig(density=1.0, clip_norm=0.1)):
        model, optimizer, _ = _sharded(config)
        for x, y in batches(JOB):
            optimizer.zero_grad()
            model(x, y).backward()
            if config is None:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        ends.append(_vector(model))
    assert float((ends[0] - ends[1]).abs().max()) <= TOLERANCE


def _other_optimizer_and_scaling() -> None:
    """AdamW gets error feedback; a scaled loss changes nothing, and an overflow is seen by every rank's scaler."""
    ends = []
    for is_scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=is_scaled)
        model, optimizer, state = _sharded(SPARSE, optimizer=torch.optim.AdamW, grad_scaler=scaler)
        for x, y in batches(JOB):
            optimizer.zero_grad()
            scaler.scale(model(x, y)).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(_vector(model))
    assert torch.allclose(ends[0], ends[1], atol=1e-6)
    (x, y), residual = batches(JOB)[0], state.memory.residual.clone()
    optimizer.zero_grad()
    scaler.scale(model(x, y) * (float("nan") if dist.get_rank() == 3 else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**7
    assert torch.equal(_vector(model), ends[1])
    assert torch.equal(state.memory.residual, residual)
    state.flush()
    assert not torch.equal(_vector(model), ends[1]), "AdamW has applied what was held back"
    assert same_on_all_ranks(_vector(model))


def _refusals() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = make_model(JOB)
    with pytest.raises(TypeError, match="must have been given to fully_shard"):
        fsdp.attach(model, make_sgd(JOB, model.parameters()), mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = make_sgd(JOB, model.parameters())
    with pytest.raises(ValueError, match="must be sharded on the second dimension of mesh alone"):
        fsdp.attach(model, optimizer, mesh=mesh)
    with pytest.raises(ValueError, match=r"mesh must have two dimensions, .* got 1"):
        fsdp.attach(model, optimizer, mesh=mesh["shard"])
    model = make_model(JOB)
    fully_shard(model, mesh=mesh["shard"])
    optimizer = make_sgd(JOB, model.parameters())
    for options, words in (({"ranks_per_node": 2}, "ranks_per_node must be 1"), ({"exchange": "auto"}, "auto")):
        with pytest.raises(ValueError, match=words):
            fsdp.attach(model, optimizer, dgcomp.DGCConfig(**options), mesh=mesh)
    with pytest.raises(ValueError, match="DGCConfigs differ"):  # one rank's fault reaches the other shards
        fsdp.attach(model, optimizer, dgcomp.DGCConfig(density=0.02 if dist.get_rank() == 2 else 0.01), mesh=mesh)


def _all(rank: int, folder: Path) -> None:
    conform(train_fsdp, folder / "conformance")
    _other_number_of_nodes(folder)
    _accumulation()
    _clipping()
    _other_optimizer_and_scaling()
    _refusals()


def test_fsdp(tmp_path: Path) -> None:
    run_ranks(_all, 4, tmp_path)
