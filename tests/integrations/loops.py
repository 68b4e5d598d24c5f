"""The jobs of the conformance suite on trainers that need nothing but torch: DDP, FSDP2, local SGD."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dgcomp
from dgcomp.integrations import fsdp
from dgcomp.integrations.files import load_own, save_own
from dgcomp.integrations.local_sgd import LocalSGD
from tests.integrations.jobs import FixedGradient, Job, Outcome, batches, make_model, make_sgd, outcome


def train_ddp(job: Job) -> Outcome:
    """Plain DDP, the reference of all others."""
    model = DistributedDataParallel(make_model(job), bucket_cap_mb=0.0005)
    optimizer = make_sgd(job, model.parameters())
    state = None if job.config is None else dgcomp.attach(model, optimizer, job.config)
    if job.load:
        model.load_state_dict(torch.load(job.load / "model.pt", weights_only=True))
        load_own(state, job.load)
    for x, y in batches(job):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    if job.flush:
        state.flush()
    if job.save:
        save_own(state, job.save)
        if dist.get_rank() == 0:
            torch.save(model.state_dict(), job.save / "model.pt")
    return outcome(model, state)


def train_fsdp(job: Job) -> Outcome:
    """FSDP2 on nodes of half the ranks each, or HSDP where the exchange is to be FSDP's own."""
    nodes = job.options.get("nodes", 2)
    mesh = init_device_mesh("cpu", (nodes, dist.get_world_size() // nodes), mesh_dim_names=("replicate", "shard"))
    model = make_model(job)
    own = mesh if job.config is None else mesh["shard"]
    for layer in (module for module in model.children() if isinstance(module, nn.Linear)):
        fully_shard(layer, mesh=own)
    fully_shard(model, mesh=own)
    optimizer = make_sgd(job, model.parameters())
    state = None if job.config is None else fsdp.attach(model, optimizer, job.config, mesh=mesh)
    if job.load:
        load_sharded(model, state, job)
    for x, y in batches(job):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    if job.flush:
        state.flush()
    if job.save:
        dcp.save({"model": get_model_state_dict(model), "dgc": state}, checkpoint_id=job.save / "dcp")
    parameters = torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])
    if state is None:
        return Outcome(parameters)
    stats = state.stats()
    residual, momentum = (whole_memory(state, key, mesh) for key in ("residual", "momentum"))
    return Outcome(parameters, residual, momentum, stats["steps"], stats["nonfinite_steps"])


def train_local_sgd(job: Job) -> Outcome:
    """Rounds of two inner steps; the reference averages pseudo-gradients by a plain all-reduce."""
    model = make_model(job)
    inner, outer = torch.optim.SGD(model.parameters(), lr=0.1), make_sgd(job, model.parameters())
    local = None if job.config is None else LocalSGD(model, inner, outer, sync_every=2, config=job.config)
    if job.load:
        model.load_state_dict(torch.load(job.load / "model.pt", weights_only=True))
        local.load_state_dict(torch.load(job.load / f"local{dist.get_rank()}.pt", weights_only=True))
    for x, y in batches(job):
        start = [parameter.detach().clone() for parameter in model.parameters()]
        for part in range(2):
            inner.zero_grad()
            model(x, y).backward() if job.model is FixedGradient else model(x[part::2], y[part::2]).backward()
            inner.step()
        if local is None:
            _dense_outer_step(model, start, outer)
    if job.flush:
        local.flush()
    if job.save:
        torch.save(local.state_dict(), job.save / f"local{dist.get_rank()}.pt")
        if dist.get_rank() == 0:
            torch.save(model.state_dict(), job.save / "model.pt")
    return outcome(model, local and local.compressor)


@torch.no_grad()
def _dense_outer_step(model: nn.Module, start: list[Tensor], outer: torch.optim.Optimizer) -> None:
    for parameter, before in zip(model.parameters(), start, strict=True):
        parameter.grad = before - parameter
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
        parameter.copy_(before)
    outer.step()


def load_sharded(model: nn.Module, state: fsdp.FSDPState, job: Job) -> None:
    """Read a distributed checkpoint into a model and its compressor."""
    planner = dcp.DefaultLoadPlanner(allow_partial_load=job.options.get("partial", False))
    content = {"model": get_model_state_dict(model), "dgc": state}
    dcp.load(content, checkpoint_id=job.load / "dcp", planner=planner)
    set_model_state_dict(model, content["model"])


def whole_memory(state: fsdp.FSDPState, key: str, mesh: DeviceMesh) -> Tensor:
    """u or v of this rank's node, put together from its shards; zeros where there is no momentum."""
    flat = getattr(state.memory, key)
    if flat is None:
        return torch.zeros(1)
    own = state.state_dict()[state._own_key][key]
    return torch.cat([own[slot.name].full_tensor()[mesh.get_local_rank(0)].reshape(-1) for slot in state.memory.sparse])
