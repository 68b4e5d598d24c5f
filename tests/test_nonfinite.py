"""One bad gradient on one rank leaves no trace on any, and loss scales never reach the residuals."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import dgcomp
from tests.ranks import run_ranks
from tests.training import SmallNet, batch, ddp, same_on_all_ranks, values

STEPS, BAD_STEP = 30, 20


def _train(
    config: dgcomp.DGCConfig,
    *,
    has_bad_step: bool,
    adam: bool = False,
    closure: bool = False,
    bad_value: float = float("inf"),
):
    model = ddp(SmallNet())
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-2)
        if adam
        else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    )
    state = dgcomp.attach(model, optimizer, config)
    rank = dist.get_rank()
    for step in range(STEPS):
        if step == BAD_STEP and not has_bad_step:
            continue
        x, y = batch(step, rank)
        if step == BAD_STEP and rank == 1:
            x = torch.full_like(x, bad_value)

        def backward(x=x, y=y):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            return loss

        if closure:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()
    return model, state


CASES = {
    "sparse": (dgcomp.DGCConfig(density=0.02), False),
    "sparse, clipped": (dgcomp.DGCConfig(density=0.02, clip_norm=0.5), False),
    "owner": (dgcomp.DGCConfig(density=0.02, exchange="owner"), False),
    "dense": (dgcomp.DGCConfig(density=1.0), False),
    "dense bf16": (dgcomp.DGCConfig(density=0.02, exchange="dense_bf16"), False),
    "error feedback": (dgcomp.DGCConfig(density=0.02), True),
}
CLOSURE = {"error feedback, closure": (dgcomp.DGCConfig(density=0.02), True)}


def _as_if_it_had_not_been(rank: int) -> None:
    for case, (config, adam) in (CASES | CLOSURE).items():
        with_it, state = _train(config, has_bad_step=True, adam=adam, closure=case in CLOSURE)
        without, other = _train(config, has_bad_step=False, adam=adam, closure=case in CLOSURE)
        assert torch.equal(values(with_it), values(without)), case
        assert torch.equal(state.memory.residual, other.memory.residual), case
        assert state.stats()["nonfinite_steps"] == 1, case
        assert other.stats()["nonfinite_steps"] == 0, case


def test_bad_step_leaves_no_trace() -> None:
    run_ranks(_as_if_it_had_not_been, 2)


def _scaled(rank: int) -> None:
    """With a GradScaler whose scale moves, the run is the unscaled one (powers of two are exact)."""
    for config in (dgcomp.DGCConfig(density=0.02, clip_norm=1.0), dgcomp.DGCConfig(density=1.0)):
        models = []
        for is_scaled in (False, True):
            model = ddp(SmallNet())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7, enabled=is_scaled)
            state = dgcomp.attach(model, optimizer, config, grad_scaler=scaler)
            for step in range(STEPS):
                x, y = batch(step, rank)
                optimizer.zero_grad()
                scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
            models.append(model)
            if is_scaled:
                assert scaler.get_scale() > 2.0**10, "the scale has moved"
        assert torch.allclose(values(models[0]), values(models[1]), atol=1e-7)

        x, y = batch(STEPS, rank)
        before, residual, scale = values(model).clone(), state.memory.residual.clone(), scaler.get_scale()
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y) * (float("nan") if rank == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() < scale, "the scaler has seen it"
        assert torch.equal(values(model), before)
        assert torch.equal(state.memory.residual, residual)
        assert same_on_all_ranks(values(model))


def _autocast(rank: int) -> None:
    model = ddp(SmallNet().to(torch.bfloat16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    state = dgcomp.attach(model, optimizer, dgcomp.DGCConfig(density=0.05))
    losses = []
    for step in range(60):
        x, y = batch(step, rank, size=32)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.bfloat16()).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert state.memory.residual.dtype == torch.float32
    assert same_on_all_ranks(values(model))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def _amp(rank: int) -> None:
    _scaled(rank)
    _autocast(rank)


def test_loss_scaling_and_bf16() -> None:
    run_ranks(_amp, 2)


@pytest.mark.parametrize("bad_value", [float("nan")])
def test_nan_is_seen_too(bad_value: float) -> None:
    run_ranks(_nan, 2, bad_value)


def _nan(rank: int, bad_value: float) -> None:
    model, state = _train(dgcomp.DGCConfig(density=0.02), has_bad_step=True, bad_value=bad_value)
    assert torch.isfinite(values(model)).all()
    assert state.stats()["nonfinite_steps"] == 1
