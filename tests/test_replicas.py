"""Parameters of all ranks are equal to the bit, and the check says so when they are not."""

import pytest
import torch

import dgcomp
from tests.ranks import run_ranks
from tests.training import SmallNet, ddp, same_on_all_ranks, train, values


def _thousand_steps(rank: int) -> None:
    model = ddp(SmallNet(width=64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.001, check_every=250))
    train(model, optimizer, 1000)
    assert same_on_all_ranks(values(model))
    assert torch.isfinite(values(model)).all()
    residual = state.memory.residual
    assert not same_on_all_ranks(residual), "every rank keeps a residual of its own"
    assert state.step == 1000


def test_bitwise_equal_after_1000_steps_on_4_ranks() -> None:
    run_ranks(_thousand_steps, 4, timeout_s=300)


def _drift(rank: int) -> None:
    model = ddp(SmallNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.01, check_every=2))
    train(model, optimizer, 2)
    if rank == 1:
        with torch.no_grad():
            model.module.middle.weight[3, 4] += 1e-3
    with pytest.raises(RuntimeError, match=r"middle.weight.*differ between rank 0 and rank\(s\) \[1\]"):
        train(model, optimizer, 1, first=2)


def test_drift_is_named_on_every_rank() -> None:
    run_ranks(_drift, 3)


def _two_nodes(rank: int) -> None:
    """Two nodes of two ranks: gradients are averaged inside a node, whose ranks then hold the same residual."""
    model = ddp(SmallNet(width=64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.01, ranks_per_node=2))
    train(model, optimizer, 60)
    assert same_on_all_ranks(values(model))
    residuals = [torch.empty_like(state.memory.residual) for _ in range(4)]
    torch.distributed.all_gather(residuals, state.memory.residual)
    assert torch.equal(residuals[0], residuals[1])
    assert torch.equal(residuals[2], residuals[3])
    assert not torch.equal(residuals[0], residuals[2])
    with pytest.raises(ValueError, match="ranks_per_node must divide the 4 ranks, got 3"):
        dgcomp.DGCState(ddp(SmallNet()), dgcomp.DGCConfig(ranks_per_node=3))


def test_two_level_exchange() -> None:
    run_ranks(_two_nodes, 4)
