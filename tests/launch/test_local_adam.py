"""Local Adam: SGD on its directions is AdamW, and a restored one goes on to the bit."""

import copy

import torch
from torch import nn

from launch.local_adam import LocalAdam

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
