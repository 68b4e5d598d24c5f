"""A saved state resumes exactly on as many ranks, and from the conserved means on any other number."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import dgcomp
from dgcomp import errors
from tests.ranks import run_ranks
from tests.training import BranchedNet, SmallNet, ddp, train, values

CONFIG = dgcomp.DGCConfig(density=0.02, warmup_steps=6, clip_norm=0.5)


def _run() -> tuple[torch.nn.parallel.DistributedDataParallel, torch.optim.Optimizer, dgcomp.DGCState]:
    model = ddp(SmallNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, dgcomp.attach(model, optimizer, CONFIG)


def _through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _exact(rank: int) -> None:
    model, optimizer, state = _run()
    train(model, optimizer, 10)
    saved = _through_a_file({"model": model.state_dict(), "dgc": state.state_dict()})
    train(model, optimizer, 10, first=10)

    other, other_optimizer, other_state = _run()
    other.load_state_dict(saved["model"])
    other_state.load_state_dict(saved["dgc"])
    assert other_state.step == 10
    train(other, other_optimizer, 10, first=10)
    assert torch.equal(values(model), values(other))
    assert torch.equal(state.memory.residual, other_state.memory.residual)
    assert torch.equal(state.memory.momentum, other_state.memory.momentum)


def _bad(rank: int) -> None:
    _, _, state = _run()
    with pytest.raises(ValueError, match="must be what DGCState.state_dict"):
        state.load_state_dict({"memory": {}} if rank == 0 else state.config.to_dict())
    foreign = ddp(BranchedNet(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(foreign.parameters(), lr=0.1, momentum=0.9)
    saved = dgcomp.attach(foreign, optimizer, CONFIG).state_dict()
    own = state.state_dict()
    with pytest.raises(ValueError, match="the checkpoint is of another model: parameter"):
        state.load_state_dict(saved if rank == 1 else own)  # one wrong rank is enough, and all of them say so
    with pytest.raises(ValueError, match="version 99"):
        state.load_state_dict(own | {"version": 99})
    state.load_state_dict(own)


def _rank_0_alone(rank: int) -> None:
    """A state_dict() on rank 0 alone ends with the reason, not with the process group's timeout."""
    _, _, state = _run()
    errors.MEETING_TIMEOUT = timedelta(seconds=1)
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"state_dict\(\) is collective, and not all ranks called it"):
            state.state_dict()


def _exact_and_bad(rank: int) -> None:
    _exact(rank)
    _bad(rank)
    _rank_0_alone(rank)


def test_exact_on_as_many_ranks() -> None:
    run_ranks(_exact_and_bad, 2)


def _means(state: dgcomp.DGCState) -> list[Tensor]:
    means = []
    for flat in (state.memory.residual, state.memory.momentum, state.memory.leftover_momentum):
        total = flat.double()
        dist.all_reduce(total)
        means.append(total / dist.get_world_size())
    return means


def _save(rank: int, folder: Path) -> list[Tensor]:
    model, optimizer, state = _run()
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "dgc": state.state_dict()}, folder / f"rank{rank}.pt")
    return _means(state)


def _load(rank: int, folder: Path, file_of_rank: dict[int, int]) -> list[Tensor]:
    model, optimizer, state = _run()
    saved = torch.load(folder / f"rank{file_of_rank[rank]}.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    state.load_state_dict(saved["dgc"])
    means = _means(state)
    train(model, optimizer, 3, first=10)
    return means


@pytest.mark.parametrize(
    ("before", "after", "file_of_rank"),
    [(4, 2, {0: 3, 1: 0}), (2, 4, dict.fromkeys(range(4), 1)), (2, 2, {0: 1, 1: 1})],
    ids=["4 to 2", "2 to 4", "2 to 2 from one file"],
)
def test_means_are_conserved(tmp_path: Path, before: int, after: int, file_of_rank: dict[int, int]) -> None:
    saved = run_ranks(_save, before, tmp_path)[0]
    loaded = run_ranks(_load, after, tmp_path, file_of_rank)[0]
    for expected, found in zip(saved, loaded, strict=True):
        # The saved mean is a sum of 4 numbers in fp32, and its own mean over the new ranks another one.
        assert torch.allclose(expected, found, rtol=0, atol=8 * 2.0**-24 * float(expected.abs().max()))
