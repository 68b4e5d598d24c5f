"""Checkpoints that are whole or not there, and that another number of ranks can go on from.

One file for what all ranks share (`step00000123.pt`: model, optimizer, progress) and one per rank for what differs
(`step00000123-rank0.pt`: the exchange's residuals, hidden states). Each is written to a temporary name and renamed.
`latest.json` is renamed last and names the step, so that until every file is in place the older checkpoint holds.
Ranks on machines without a common disk are served: the shared file is read by rank 0 and broadcast.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.options import UsageError

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(folder: Path, step: int, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Write a checkpoint; call it on every rank with the same `step` and `shared`, each with its `own` part."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / _name(step, rank), own)
    if rank == 0:
        _save(folder / _name(step), shared)
    dist.barrier()  # every file is in place
    if rank == 0:
        _write_text(folder / "latest.json", json.dumps({"step": step, "ranks": world_size}))
    dist.barrier()  # the older files are no longer needed
    for old in folder.glob("step*.pt" if rank == 0 else f"step*-rank{rank}.pt"):
        if not old.name.startswith(_name(step).removesuffix(".pt")):
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bool] | None:
    """Newest checkpoint as (shared, own, same number of ranks), or None where there is none; call it on every rank.

    With another number of ranks than at saving, `own` is rank 0's part on every rank. Raises UsageError on every
    rank if a file is missing or can't be read on one.
    """
    latest = _from_rank0(lambda: _read_json(folder / "latest.json"))
    if latest is None:
        return None
    step, rank = latest["step"], dist.get_rank()
    shared = _from_rank0(lambda: _load(folder / _name(step)))
    if latest["ranks"] != dist.get_world_size():
        return shared, _from_rank0(lambda: _load(folder / _name(step, 0))), False
    own, errors = None, [""] * dist.get_world_size()
    try:
        own, error = _load(folder / _name(step, rank)), ""
    except UsageError as problem:
        error = str(problem)
    dist.all_gather_object(errors, error)
    if any(errors):
        raise UsageError(next(filter(None, errors)))
    assert own is not None  # no error, so it was read
    return shared, own, True


def _name(step: int, rank: int | None = None) -> str:
    return f"step{step:08d}.pt" if rank is None else f"step{step:08d}-rank{rank}.pt"


def _save(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(f"checkpoint file {path} is missing: give the folder that all files were saved to")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise UsageError(f"checkpoint file {path} can't be read ({error}): remove the folder or take a copy") from error
    return content


def _from_rank0(read: Any) -> Any:
    """What `read()` returns on rank 0, on every rank; a UsageError there is raised on every rank."""
    answer: list[Any] = [None, ""]
    if dist.get_rank() == 0:
        try:
            answer[0] = read()
        except UsageError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1]:
        raise UsageError(answer[1])
    return answer[0]
