"""A compressor's state in a checkpoint folder: one file for each rank, because every rank has residuals of its own.

Each rank writes and reads its own file, so that nothing travels and folders need not be shared between machines.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from dgcomp.compressor import Compressor
from dgcomp.errors import raise_together


def save_own(state: Compressor, folder: str | Path) -> None:
    """Write this rank's state into `folder`, which is made if need be; collective."""
    folder, rank = Path(folder), dist.get_rank(state.group)
    content = state.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _name(rank, state.world_size)
    partial = path.with_suffix(f".partial{rank}")
    torch.save(content, partial)
    os.replace(partial, path)
    dist.barrier(group=state.group)
    # What a run of another number of ranks left in the same folder would be taken for a part of this checkpoint.
    for old in folder.glob("dgcomp-*.pt"):
        if not old.name.endswith(f"-of-{state.world_size}.pt"):
            old.unlink(missing_ok=True)


def load_own(state: Compressor, folder: str | Path) -> None:
    """Continue from what `save_own` wrote; collective.

    Exact if every rank finds its own file of a run of as many ranks; otherwise all start from the means, which any one
    of the files holds. Raises ValueError on every rank alike where a rank finds none, or one of another model.
    """
    folder = Path(folder)
    own = folder / _name(dist.get_rank(state.group), state.world_size)
    found = [own] if own.exists() else sorted(folder.glob("dgcomp-*.pt"))
    complaint = None if found else f"there is no dgcomp-*.pt in {folder}; give the checkpoint that holds the residuals"
    raise_together(complaint, group=state.group, device=state.memory.residual.device)
    state.load_state_dict(torch.load(found[0], map_location="cpu", weights_only=True))


def _name(rank: int, world_size: int) -> str:
    return f"dgcomp-{rank}-of-{world_size}.pt"
