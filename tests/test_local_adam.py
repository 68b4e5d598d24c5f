"""Local Adam: SGD on its directions is AdamW, a restored one goes on to the bit, infinities do not stay in it."""

import copy

import pytest
import torch
from torch import nn

from dgcomp import LocalAdam

BETAS = (0.9, 0.95)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_sgd_on_directions_is_adamw() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    other = copy.deepcopy(model)
    LocalAdam(other.named_parameters(), BETAS)
    _train(model, torch.optim.AdamW(model.parameters(), lr=0.01, betas=BETAS, weight_decay=0.1), range(20))
    _train(other, torch.optim.SGD(other.parameters(), lr=0.01, weight_decay=0.1), range(20))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_goes_on_from_its_state() -> None:
    model = nn.Linear(6, 5)
    adam, optimizer = LocalAdam(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=0.01)
    _train(model, optimizer, range(5))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter._backward_hooks = None  # those of the copied model's
    again = LocalAdam(other.named_parameters())
    again.load_state_dict(copy.deepcopy(adam.state_dict()))
    _train(model, optimizer, range(5, 9))
    _train(other, torch.optim.SGD(other.parameters(), lr=0.01), range(5, 9))
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_an_infinite_gradient_goes_through_and_leaves_the_moments() -> None:
    model = nn.Linear(6, 5)
    adam, optimizer = LocalAdam(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=0.01)
    _train(model, optimizer, range(3))
    before = copy.deepcopy(adam.state_dict())
    (model(torch.ones(1, 6)) * float("inf")).sum().backward()
    assert model.weight.grad is not None
    assert not model.weight.grad.isfinite().any()
    for name, (first, second, steps) in adam.state_dict().items():
        assert torch.equal(first, before[name][0])
        assert torch.equal(second, before[name][1])
        assert steps == before[name][2]


def test_close_gives_the_gradients_back() -> None:
    model = nn.Linear(2, 1, bias=False)
    adam = LocalAdam(model.named_parameters())
    adam.close()
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[3.0, 4.0]]


def test_refusals() -> None:
    model = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"betas must be two numbers from 0 to below 1, got \(0.9, 1.0\)"):
        LocalAdam(model.named_parameters(), betas=(0.9, 1.0))
    adam = LocalAdam(model.named_parameters())
    with pytest.raises(ValueError, match="state is of another model: 'weight' is torch.Size"):
        adam.load_state_dict(LocalAdam(nn.Linear(7, 5).named_parameters()).state_dict())
    with pytest.raises(ValueError, match="'bias' is None there"):
        adam.load_state_dict({"weight": adam.state_dict()["weight"]})
