"""attach says what it changed, refuses what it cannot serve, and does so on every rank without hanging."""

import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

import dgcomp
from tests.ranks import run_ranks
from tests.training import SmallNet, batch, ddp, same_on_all_ranks, train, values


def _sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, **options)


def _refusals(rank: int) -> None:
    config = dgcomp.DGCConfig(density=0.01)
    model = ddp(SmallNet())
    optimizer = _sgd(model, momentum=0.9)
    cases = [
        (_sgd(model, momentum=0.9, dampening=0.1), config, "dampening=0.1"),
        (_sgd(model, maximize=True), config, "maximize=True"),
        (_sgd(ddp(SmallNet()), momentum=0.9), config, "none of the model's parameters"),
        (torch.optim.LBFGS(model.parameters()), config, "LBFGS cannot be served"),
        (torch.optim.Adam(model.parameters()), dgcomp.DGCConfig(mode="momentum_correction"), "needs torch.optim.SGD"),
        (optimizer, dgcomp.DGCConfig(momentum=0.5), "momentum is 0.5 in DGCConfig and 0.9 in optimizer group 0"),
    ]
    for other, own_config, words in cases:
        with pytest.raises(ValueError, match=words):
            dgcomp.attach(model, other, own_config)
    with pytest.raises(TypeError, match="must be a DistributedDataParallel, got SmallNet"):
        dgcomp.attach(model.module, optimizer, config)
    with pytest.raises(ValueError, match="DGCConfigs differ: rank\\(s\\) \\[1\\]"):
        dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.01 if rank == 0 else 0.02))
    with pytest.raises(ValueError, match="dampening"):  # one rank's fault reaches all
        dgcomp.attach(model, _sgd(model, momentum=0.9, dampening=0.5 if rank == 1 else 0.0), config)
    assert optimizer.param_groups[0]["momentum"] == 0.9, "a refusal changes nothing"

    sparse = ddp(nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1)))
    with pytest.raises(ValueError, match="module '0' makes sparse gradients"):
        dgcomp.attach(sparse, _sgd(sparse), config)

    state = dgcomp.attach(model, optimizer, config)
    with pytest.raises(ValueError, match="already has a communication hook"):
        dgcomp.attach(model, optimizer, config)
    state.close()
    builtin = ddp(SmallNet())
    builtin.register_comm_hook(dist.group.WORLD, default_hooks.allreduce_hook)
    with pytest.raises(ValueError, match="already has a communication hook"):
        dgcomp.attach(builtin, _sgd(builtin), config)

    drifted = ddp(SmallNet())
    if rank == 1:
        with torch.no_grad():
            drifted.module.norm.bias[0] = 1.0
    with pytest.raises(RuntimeError, match=r"\['norm.bias'\] differ between rank 0 and rank\(s\) \[1\]"):
        dgcomp.attach(drifted, _sgd(drifted), config)


def _changes(rank: int) -> None:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("dgcomp").addHandler(handler)
    model = ddp(SmallNet())
    optimizer = _sgd(model, momentum=0.9, nesterov=True, weight_decay=1e-4)
    state = dgcomp.attach(model, optimizer)
    told = "took momentum 0.9, weight_decay 0.0001, its Nesterov form of SGD group 0 over; the group is plain SGD now"
    assert state.changes == [told]
    assert records == ([f"dgcomp: {told}"] if rank == 0 else [])
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.0, 0.0, False)
    assert set(state.memory.slots[0].settings.__dict__.values()) == {0.9, True, 1e-4}

    adam = ddp(SmallNet())
    state = dgcomp.attach(adam, torch.optim.AdamW(adam.parameters()))
    assert state.changes == ["AdamW keeps its settings; the exchange uses error feedback alone"]
    assert state.memory.momentum is None


def _momentum_comes_back(rank: int) -> None:
    model = ddp(SmallNet())
    optimizer = _sgd(model, momentum=0.9)
    dgcomp.attach(model, optimizer)
    train(model, optimizer, 1)
    optimizer.param_groups[0]["momentum"] = 0.8  # as OneCycleLR does
    with pytest.raises(RuntimeError, match="cycle_momentum=False"):
        train(model, optimizer, 1)


def _by_hand(rank: int) -> None:
    """DGCState and register_comm_hook without attach: the config carries the momentum."""
    model = ddp(SmallNet())
    state = dgcomp.DGCState(model, dgcomp.DGCConfig(density=1.0, momentum=0.9, nesterov=True, weight_decay=1e-3))
    model.register_comm_hook(state, dgcomp.dgc_hook)
    plain = ddp(SmallNet())
    train(model, _sgd(model), 20)
    train(plain, _sgd(plain, momentum=0.9, nesterov=True, weight_decay=1e-3), 20)
    assert torch.allclose(values(model), values(plain), atol=1e-5)


def _learns(rank: int) -> None:
    """The hook with every default trains; a second model of the same script is independent."""
    losses = []
    model, other = ddp(SmallNet(width=64)), ddp(SmallNet(), seed=1)
    optimizer, other_optimizer = _sgd(model, momentum=0.9), _sgd(other, momentum=0.9)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.01))
    dgcomp.attach(other, other_optimizer, dgcomp.DGCConfig(density=0.05, exchange="owner"))
    for step in range(150):
        for net, own in ((model, optimizer), (other, other_optimizer)):
            x, y = batch(step, rank, size=32)
            own.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            own.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert same_on_all_ranks(values(model))
    assert same_on_all_ranks(values(other))
    stats = state.stats()
    assert stats["steps"] == 150
    assert 0.005 < stats["density"] < 0.02
    assert stats["bytes_dense"] == 150 * 4 * values(model).numel()
    assert stats["bytes_sent"] == stats["sparse_bytes_sent"] + stats["leftover_bytes_sent"]
    assert stats["bytes_sent"] * 8 < stats["bytes_dense"]
    assert {"agree", "compress", "exchange", "apply"} <= stats["milliseconds"].keys()


def _clipping(rank: int) -> None:
    """The local norm over all tensors together is what is clipped, at sqrt(N) times the global threshold."""
    model = ddp(SmallNet())
    state = dgcomp.attach(model, _sgd(model), dgcomp.DGCConfig(density=0.02, clip_norm=1e-3, codec="fp32"))
    x, y = batch(0, rank)
    nn.functional.cross_entropy(model(x), y).backward()
    local = ddp(SmallNet())
    with local.no_sync():
        nn.functional.cross_entropy(local(x), y).backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in local.parameters()]))
    factor = 1e-3 * 2**0.5 / norm
    sent = {name: p.grad for name, p in model.module.named_parameters()}
    for slot, p in zip(state.memory.slots, [s.parameter for s in state.memory.slots], strict=True):
        if p.dim() >= 2 and p.numel():
            own = dict(local.module.named_parameters())[slot.name].grad.reshape(-1) * factor
            kept = state.memory.residual_of(slot)
            is_sent = (kept == 0) & (own != 0)
            assert torch.allclose(kept[~is_sent], own[~is_sent], rtol=1e-4)
            assert sent[slot.name].count_nonzero() >= 1


def _all(rank: int) -> None:
    _refusals(rank)
    _changes(rank)
    _momentum_comes_back(rank)
    _by_hand(rank)
    _clipping(rank)
    _learns(rank)


def test_attach() -> None:
    run_ranks(_all, 2)


def _auto(rank: int) -> None:
    """exchange="auto" measures, chooses alike on all ranks, and re-plans at agreed steps."""
    model = ddp(SmallNet(width=64))
    optimizer = _sgd(model, momentum=0.9)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.01, exchange="auto", warmup_steps=5))
    state._auto.every = 10
    chosen = []
    for step in range(40):
        train(model, optimizer, 1, first=step)
        chosen.append(state.stats()["exchange"])
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, chosen)
    assert gathered[0] == gathered[1]
    assert set(chosen) <= {"dense", "dense_bf16", "all_gather", "owner"}
    assert same_on_all_ranks(values(model))


def test_auto_exchange() -> None:
    run_ranks(_auto, 2)
