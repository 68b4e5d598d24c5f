"""The optimizer's step on delivered entries alone: same bits as SGD's own pass, and only where that is right."""

import pytest
import torch
from torch import nn

import dgcomp
from dgcomp.state import DGCState
from tests.ranks import run_ranks
from tests.training import SmallNet, ddp, same_on_all_ranks, train, values

STEPS = 6


def _attached(is_bucket_view: bool, is_dense_step: bool) -> tuple[nn.Module, torch.optim.Optimizer, DGCState]:
    model = ddp(SmallNet(), gradient_as_bucket_view=is_bucket_view)
    groups = [{"params": list(model.module.first.parameters()), "lr": 0.3}]
    groups += [{"params": [p for n, p in model.module.named_parameters() if not n.startswith("first.")]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.02, clip_norm=1.0))
    if is_dense_step and state._sparse_step is not None:
        state._sparse_step.close()
    return model, optimizer, state


def _count_hidden(state: DGCState, optimizer: torch.optim.Optimizer, model: nn.Module) -> list[int]:
    """Appends, at every optimizer step, how many matrices the optimizer itself does not see."""
    seen: list[int] = []
    matrices = [p for p in model.parameters() if p.dim() >= 2 and p.numel()]
    optimizer.register_step_pre_hook(lambda *_: seen.append(sum(p.grad is None for p in matrices)))
    return seen


def _same_bits(rank: int) -> None:
    for is_bucket_view in (True, False):
        results = []
        for is_dense_step in (True, False):
            model, optimizer, state = _attached(is_bucket_view, is_dense_step)
            hidden = _count_hidden(state, optimizer, model)
            train(model, optimizer, STEPS)
            assert hidden == [0 if is_dense_step else 4] * STEPS
            assert all(p.grad is not None for p in model.parameters())
            results.append(values(model))
        assert torch.equal(*results)
        assert same_on_all_ranks(results[1])


# A scaling leaves zeros zero: it is applied to the delivered entries. The one-element matrix is always sent whole.
HIDDEN = {"in place": 0, "replaced": 0, "through data": 1, "scaled through data": 4}


def _touch(kind: str, model: nn.Module) -> None:
    for parameter in model.parameters():
        grad = parameter.grad
        assert grad is not None
        if kind == "in place":
            grad.add_(0.01)
        elif kind == "replaced":
            parameter.grad = grad + 0.01
        elif kind == "through data":
            grad.data.add_(0.01)
        elif kind == "scaled through data":
            grad.data.mul_(0.5)


def _changed_gradients(rank: int) -> None:
    for kind in HIDDEN:
        results = []
        for is_dense_step in (True, False):
            model, optimizer, state = _attached(True, is_dense_step)
            hidden = _count_hidden(state, optimizer, model)
            train(model, optimizer, STEPS, after_backward=lambda _, kind=kind, model=model: _touch(kind, model))
            results.append(values(model))
        assert hidden == [HIDDEN[kind]] * STEPS, kind
        assert torch.equal(*results), kind


def _loss(model: nn.Module, rank: int) -> torch.Tensor:
    return nn.functional.mse_loss(model(torch.full((4, 10), rank + 1.0)), torch.zeros(4, 4))


def _closure_and_repeated_step(rank: int) -> None:
    results = []
    for is_dense_step in (True, False):
        model, optimizer, state = _attached(True, is_dense_step)
        train(model, optimizer, 2)
        optimizer.step()  # the same gradients once more

        def closure(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = _loss(model, rank)
            loss.backward()
            return loss

        optimizer.step(closure)
        for _ in range(2):  # two synchronized passes of one update: their sum is not sparse where one of them is
            _loss(model, rank).backward()
        optimizer.step()
        results.append(values(model))
    assert torch.equal(*results)


def _suite(rank: int) -> None:
    _same_bits(rank)
    _changed_gradients(rank)
    _closure_and_repeated_step(rank)


@pytest.mark.parametrize("world_size", [2])
def test_sparse_step_is_sgds_own_to_the_bit(world_size: int) -> None:
    run_ranks(_suite, world_size)
