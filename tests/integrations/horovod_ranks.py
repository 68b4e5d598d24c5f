"""What horovodrun starts: the conformance suite and Horovod's own idioms."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
import torch.distributed as dist

import dgcomp
from dgcomp.integrations.files import load_own, save_own
from dgcomp.integrations.horovod import DistributedOptimizer
from dgcomp.integrations.horovod_group import use_horovod_group
from tests.integrations.conformance import SPARSE, conform
from tests.integrations.jobs import Job, Outcome, batches, make_model, make_sgd, outcome
from tests.training import same_on_all_ranks


def train_horovod(job: Job) -> Outcome:
    """Horovod's DistributedOptimizer, or ours."""
    model = make_model(job)
    optimizer = make_sgd(job, model.parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    if job.config is None:
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    else:
        optimizer = DistributedOptimizer(optimizer, model.named_parameters(), job.config)
    state = getattr(optimizer, "compressor", None)
    if job.load:
        model.load_state_dict(torch.load(job.load / "model.pt", weights_only=True))
        load_own(state, job.load)
    for x, y in batches(job, hvd.rank()):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    if job.flush:
        state.flush()
    if job.save:
        save_own(state, job.save)
        if hvd.rank() == 0:
            torch.save(model.state_dict(), job.save / "model.pt")
    return outcome(model, state)


def check_collectives() -> None:
    """The collectives that the core issues, against what they must give; any dtype, any order of waiting."""
    use_horovod_group()
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float16):
        own = torch.tensor([rank, 3], dtype=dtype)
        for op, expected in ((dist.ReduceOp.MAX, [size - 1, 3]), (dist.ReduceOp.MIN, [0, 3])):
            tensor = own.clone()
            dist.all_reduce(tensor, op=op)
            assert tensor.tolist() == expected
        tensor = own.clone()
        dist.all_reduce(tensor)
        assert tensor.tolist() == [sum(range(size)), 3 * size]
    works = [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(5)]
    for work in reversed(works):
        work.wait()
    out = torch.empty(size * 2)
    dist.all_to_all_single(out, torch.arange(2.0 * size) + 100 * rank)
    assert out.view(size, 2).tolist() == [
        [100.0 * other + 2 * rank, 100.0 * other + 2 * rank + 1] for other in range(size)
    ]
    buffer = torch.full((3,), float(rank))
    dist.broadcast(buffer, 1)
    assert buffer.tolist() == [1.0] * 3


def check_owner_exchange() -> None:
    """The O(k) exchange runs over Horovod's alltoall."""
    config = dgcomp.DGCConfig(density=0.1, exchange="owner", check_every=4)
    assert same_on_all_ranks(train_horovod(Job(config=config, steps=range(10))).parameters)


def check_scaling_and_accumulation() -> None:
    """synchronize, unscale_, skip_synchronize as in Horovod's documentation; two passes are one of the sum."""
    job = Job(config=SPARSE, steps=range(6))
    ends = []
    for is_scaled in (False, True):
        model = make_model(job)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=is_scaled)
        plain = make_sgd(job, model.parameters())
        optimizer = DistributedOptimizer(plain, model.named_parameters(), SPARSE, grad_scaler=scaler)
        for x, y in batches(job, hvd.rank()):
            optimizer.zero_grad()
            for part in range(2):
                scaler.scale(model(x[part::2], y[part::2]) / 2).backward()
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            with optimizer.skip_synchronize():
                scaler.step(optimizer)
            scaler.update()
        ends.append(outcome(model, optimizer.compressor))
    assert torch.allclose(ends[0].parameters, ends[1].parameters, atol=1e-6)


def check_elastic_state() -> None:
    """A commit is taken back exactly on the ranks that made it, and from the means on ranks that have changed."""
    job = Job(config=SPARSE, steps=range(6))
    model = make_model(job)
    optimizer = DistributedOptimizer(make_sgd(job, model.parameters()), model.named_parameters(), SPARSE)
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, compressor=optimizer.compressor, batch=0)
    for x, y in batches(job, hvd.rank()):
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()
    memory = optimizer.compressor.memory
    mean = memory.residual.clone()
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    state.save()
    committed = outcome(model, optimizer.compressor)
    optimizer.zero_grad()
    x, y = batches(replace(job, steps=[7]), hvd.rank())[0]
    model(x, y).backward()
    optimizer.step()
    assert not torch.equal(committed.parameters, outcome(model, None).parameters)
    hvd.shutdown()
    hvd.init()
    state.restore()
    state.sync()
    assert torch.equal(committed.parameters, outcome(model, None).parameters)
    assert torch.allclose(memory.residual, mean, rtol=0, atol=1e-6 * float(mean.abs().max()))
    assert optimizer.compressor.step == 6


def check_refusals() -> None:
    model = make_model(Job(config=SPARSE, steps=[]))
    plain = make_sgd(Job(config=SPARSE, steps=[]), model.parameters())
    with pytest.raises(ValueError, match="ranks_per_node must be 1 with Horovod"):
        DistributedOptimizer(plain, model.named_parameters(), dgcomp.DGCConfig(ranks_per_node=2))
    optimizer = DistributedOptimizer(plain, model.named_parameters(), SPARSE)
    with pytest.raises(ValueError, match="step\\(closure\\)"):
        optimizer.step(lambda: None)


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    hvd.init()
    check_collectives()
    conform(train_horovod, Path(sys.argv[1]))
    check_owner_exchange()
    check_scaling_and_accumulation()
    check_refusals()
    check_elastic_state()
    print(f"rank {hvd.rank()} conforms")


if __name__ == "__main__":
    main()
