"""The DeMo-like baseline: an orthonormal transform, and nothing lost between the momentum and the message."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from launch.demo_like import COMPONENTS, DECAY, SIDE, DeMoLikeState, demo_like_hook
from tests.ranks import run_ranks


def test_the_transform_is_orthonormal() -> None:
    cosines = DeMoLikeState().cosines
    assert torch.allclose(cosines @ cosines.t(), torch.eye(SIDE), atol=1e-5)


def _two_steps(rank: int) -> dict[str, Any]:
    state, parameters = DeMoLikeState(), [torch.zeros(5000)]
    gradient = torch.randn(5000, generator=torch.Generator().manual_seed(rank))
    updates = []
    for _ in range(2):
        buffer = gradient.clone()
        bucket = SimpleNamespace(buffer=lambda b=buffer: b, parameters=lambda: parameters)
        updates.append(demo_like_hook(state, bucket).value())  # type: ignore[arg-type]
    assert state.momentum is not None
    norms = [float(gradient.norm()), float(state.momentum.norm())]
    return {"updates": updates, "bytes": state.bytes_sent, "norms": norms, "ranks": dist.get_world_size()}


def test_ranks_agree_and_the_momentum_keeps_what_is_not_sent() -> None:
    one, other = run_ranks(_two_steps, 2)
    for mine, theirs in zip(one["updates"], other["updates"], strict=True):
        assert torch.equal(mine, theirs)
        assert set(mine.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert one["bytes"] == 2 * 2 * COMPONENTS * 6  # two steps, two blocks
    sent_first, momentum = one["norms"]
    # 1.6 % of the components, the largest, leave in every step: less than all, more than their share
    assert (1 + DECAY) * sent_first * 0.7 < momentum < (1 + DECAY) * sent_first
