"""At density 1 the hook and plain SGD are torch.optim.SGD after dense DDP, to fp32 round-off, for 50 steps."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dgcomp
from tests.ranks import run_ranks
from tests.training import BranchedNet, SmallNet, TiedNet, batch, ddp, same_on_all_ranks, train, values

STEPS = 50
# 50 steps of fp32 sums in another order: 50 * 2^-24 * |w| of about 1, with momentum's factor of 10.
TOLERANCE = 5e-5

DENSE = dgcomp.DGCConfig(density=1.0)


def _sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, **options)


def _two_groups(model: nn.Module) -> torch.optim.SGD:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.SGD(
        [
            {"params": matrices, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
            {"params": others, "momentum": 0.5, "lr": 0.1},
        ],
        lr=0.05,
    )


OPTIMIZERS = {
    "plain": lambda m: _sgd(m),
    "momentum": lambda m: _sgd(m, momentum=0.9),
    "nesterov": lambda m: _sgd(m, momentum=0.9, nesterov=True),
    "weight decay": lambda m: _sgd(m, momentum=0.9, weight_decay=1e-2),
    "weight decay without momentum": lambda m: _sgd(m, weight_decay=1e-2),
    "two groups": _two_groups,
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
}


def _compare(case: str, plain: nn.Module, compressed: nn.Module) -> None:
    difference = (values(plain) - values(compressed)).abs().max().item()
    assert difference <= TOLERANCE, f"{case}: parameters differ by {difference}"
    assert same_on_all_ranks(values(compressed)), f"{case}: ranks differ"


def _optimizers(rank: int) -> None:
    for case, make in OPTIMIZERS.items():
        plain, compressed = ddp(SmallNet()), ddp(SmallNet(), gradient_as_bucket_view=True)
        plain_optimizer, optimizer = make(plain), make(compressed)
        state = dgcomp.attach(compressed, optimizer, DENSE)
        assert all(not g.get("momentum") for g in optimizer.param_groups)
        train(plain, plain_optimizer, STEPS)
        train(compressed, optimizer, STEPS)
        _compare(case, plain, compressed)
        assert state.stats()["steps"] == STEPS


def test_optimizers() -> None:
    run_ranks(_optimizers, 2)


def _clipping(rank: int) -> None:
    plain, compressed = ddp(SmallNet()), ddp(SmallNet())
    plain_optimizer, optimizer = (_sgd(m, momentum=0.9, weight_decay=1e-3) for m in (plain, compressed))
    dgcomp.attach(compressed, optimizer, dgcomp.DGCConfig(density=1.0, clip_norm=0.3))
    train(plain, plain_optimizer, STEPS, after_backward=lambda _: nn.utils.clip_grad_norm_(plain.parameters(), 0.3))
    train(compressed, optimizer, STEPS)
    _compare("clipping", plain, compressed)


def _accumulate(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, *, with_no_sync: bool, set_to_none: bool = True
) -> None:
    rank = dist.get_rank()
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=set_to_none)
        x, y = batch(step, rank)
        for part in range(2):
            inputs, labels = x[part::2], y[part::2]
            if with_no_sync and part == 0:
                with model.no_sync():
                    nn.functional.cross_entropy(model(inputs), labels).backward()
            else:
                nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def _accumulation(rank: int) -> None:
    for case, options in {
        "no_sync": {"with_no_sync": True},
        "two synchronized passes": {"with_no_sync": False},
        "two passes, zeroed in place": {"with_no_sync": False, "set_to_none": False},
    }.items():
        for is_view in (False, True):
            plain, compressed = ddp(SmallNet()), ddp(SmallNet(), gradient_as_bucket_view=is_view)
            plain_optimizer, optimizer = (
                _sgd(m, momentum=0.9, nesterov=True, weight_decay=1e-3) for m in (plain, compressed)
            )
            state = dgcomp.attach(compressed, optimizer, DENSE)
            _accumulate(plain, plain_optimizer, **options)
            _accumulate(compressed, optimizer, **options)
            _compare(f"{case}, bucket view {is_view}", plain, compressed)
            assert state.step == STEPS


def _zero_after_forward(model: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        x, y = batch(step, dist.get_rank())
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()  # here .grad still holds the update of the last step
        loss.backward()
        optimizer.step()


def _closures(model: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
    for step in range(STEPS):
        x, y = batch(step, dist.get_rank())

        def closure(x=x, y=y):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            return loss

        optimizer.step(closure)


def _orders_of_calls(rank: int) -> None:
    """Loops that zero the gradients between forward and backward, or hand the optimizer a closure (Lightning)."""
    for loop in (_zero_after_forward, _closures):
        plain, compressed = ddp(SmallNet()), ddp(SmallNet())
        plain_optimizer, optimizer = (_sgd(m, momentum=0.9, weight_decay=1e-3) for m in (plain, compressed))
        dgcomp.attach(compressed, optimizer, DENSE)
        loop(plain, plain_optimizer)
        loop(compressed, optimizer)
        _compare(loop.__name__, plain, compressed)


def _unused_parameters(rank: int) -> None:
    """Branches that no rank uses keep their momentum and get no decay, as torch.optim.SGD leaves them alone."""
    plain, compressed = (ddp(BranchedNet(), find_unused_parameters=True) for _ in range(2))
    plain_optimizer, optimizer = (_sgd(m, momentum=0.9, weight_decay=1e-2) for m in (plain, compressed))
    dgcomp.attach(compressed, optimizer, DENSE)
    for model, own in ((plain, plain_optimizer), (compressed, optimizer)):
        for step in range(STEPS):
            x, y = batch(step, rank)
            branch = (step // 3) % 2 if step % 5 else (step + rank) % 2  # mostly one branch, at times one on each rank
            own.zero_grad()
            nn.functional.cross_entropy(model(x, branch), y).backward()
            own.step()
    _compare("unused parameters", plain, compressed)


def _static_graph_and_ties(rank: int) -> None:
    plain, compressed = ddp(TiedNet()), ddp(TiedNet(), static_graph=True)
    plain_optimizer, optimizer = (_sgd(m, momentum=0.9) for m in (plain, compressed))
    state = dgcomp.attach(compressed, optimizer, DENSE)
    assert [slot.name for slot in state.memory.sparse] == ["embedding.weight", "hidden.weight"]
    for model, own in ((plain, plain_optimizer), (compressed, optimizer)):
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(10 * step + rank)
            tokens = torch.randint(0, 12, (16,), generator=generator)
            own.zero_grad()
            nn.functional.cross_entropy(model(tokens), (tokens + 1) % 12).backward()
            own.step()
    _compare("tied weights, static graph", plain, compressed)


def _frozen_and_late(rank: int) -> None:
    """Frozen parameters are left out; momentum that the optimizer gathered before attach is taken over."""
    models = []
    for _ in range(2):
        model = SmallNet()
        model.first.weight.requires_grad_(False)
        models.append(ddp(model))
    plain, compressed = models
    for nesterov in (False, True):
        plain_optimizer, optimizer = (_sgd(m, momentum=0.9, nesterov=nesterov) for m in (plain, compressed))
        train(plain, plain_optimizer, 10)
        train(compressed, optimizer, 10)
        if not nesterov:
            state = dgcomp.attach(compressed, optimizer, DENSE)
            assert "first.weight" not in [slot.name for slot in state.memory.slots]
            train(plain, plain_optimizer, STEPS, first=10)
            train(compressed, optimizer, STEPS, first=10)
            _compare("frozen, attached late", plain, compressed)
            plain, compressed = ddp(SmallNet()), ddp(SmallNet())
    dgcomp.attach(compressed, optimizer, DENSE)
    train(plain, plain_optimizer, STEPS, first=10)
    train(compressed, optimizer, STEPS, first=10)
    _compare("attached late with Nesterov", plain, compressed)


def _more(rank: int) -> None:
    _clipping(rank)
    _accumulation(rank)
    _orders_of_calls(rank)
    _unused_parameters(rank)
    _static_graph_and_ties(rank)
    _frozen_and_late(rank)


def test_clipping_accumulation_unused_static_frozen() -> None:
    run_ranks(_more, 2)
