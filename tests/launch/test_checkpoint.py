"""Checkpoints of two ranks: cut short, damaged, lost, on a full disk, on disks of their own; and messages as data.

One spawn: start-up is most of the cost.
"""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launch.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from launch.messages import gather_texts, share_bytes
from launch.options import UsageError
from tests.ranks import run_ranks


def test_checkpoints_of_two_ranks(tmp_path: Path) -> None:
    run_ranks(_all, 2, tmp_path)


def _all(rank: int, folder: Path) -> None:
    _messages(rank)
    _unfinished(rank, folder / "unfinished")
    _damaged(rank, folder / "damaged")
    _lost(rank, folder / "lost")
    _full_disk(rank, folder / "full")
    _separate_disks(rank, folder / f"disk{rank}", folder / f"disk{1 - rank}")
    _not_code(rank, folder / "code")


def _messages(rank: int) -> None:
    assert gather_texts("é" * rank) == ["", "é"]
    assert gather_texts("") == ["", ""]
    assert share_bytes(b"" if rank else b"\x00\xff", source=0) == b"\x00\xff"
    assert share_bytes(b"", source=1) == b""


def _save(folder: Path, step: int) -> None:
    save_checkpoint(folder, step, {"step": step}, {"rank": dist.get_rank(), "step": step})


def _found(step: int) -> Checkpoint:
    return Checkpoint({"step": step}, {"rank": dist.get_rank(), "step": step}, True)


def _names(folder: Path) -> list[str]:
    dist.barrier()
    return sorted(path.name for path in folder.iterdir())


def _unfinished(rank: int, folder: Path) -> None:
    """Files of a checkpoint that was cut short change nothing, and the next one clears them away."""
    assert load_checkpoint(folder) is None
    _save(folder, 1)
    (folder / f"step00000002-rank{rank}.partial").write_bytes(b"half")
    if rank == 0:
        (folder / "step00000002.pt").write_bytes(b"whole, but latest.json does not name it")
        (folder / "notes.txt").write_text("the user's own")
    assert load_checkpoint(folder) == _found(1)
    _save(folder, 3)
    _save(folder, 5)
    kept = [f"step0000000{n}{part}.pt" for n in (3, 5) for part in ("-rank0", "-rank1", "")]
    assert _names(folder) == ["latest.json", "notes.txt", *sorted(kept)]
    assert load_checkpoint(folder) == _found(5)
    latest = json.loads((folder / "latest.json").read_text())
    assert [entry["step"] for entry in latest["older"]] == [3]
    assert "older" not in latest["older"][0]


def _damaged(rank: int, folder: Path) -> None:
    """One changed bit of what all need: the checkpoint before serves; damage to both is told on every rank."""
    for step in (1, 3):
        _save(folder, step)
    _flip_a_bit(rank, folder / "step00000003.pt")
    found = load_checkpoint(folder)
    assert found is not None
    assert found[:3] == _found(1)[:3]
    assert "step 3" in found.remark
    assert "step00000003.pt is damaged" in found.remark
    _flip_a_bit(rank, folder / "step00000001.pt")
    with pytest.raises(UsageError, match=r"step 3 .*step 1 .*remove the folder or restore a copy"):
        load_checkpoint(folder)
    for content in ("", "[1, 2]", '{"step": 3, "ranks": 2}'):
        dist.barrier()
        if rank == 0:
            (folder / "latest.json").write_text(content)
        dist.barrier()
        with pytest.raises(UsageError, match="restore latest.json or give another folder"):
            load_checkpoint(folder)


def _flip_a_bit(rank: int, path: Path) -> None:
    dist.barrier()
    if rank == 0:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    dist.barrier()


def _lost(rank: int, folder: Path) -> None:
    """Without the file of rank 1, or with another number of ranks, all get rank 0's part."""
    _save(folder, 7)
    if rank == 1:
        (folder / "step00000007-rank1.pt").unlink()
    dist.barrier()
    found = load_checkpoint(folder)
    assert found is not None
    assert found[:3] == ({"step": 7}, {"rank": 0, "step": 7}, False)
    assert "step00000007-rank1.pt" in found.remark
    assert "starts from the mean" in found.remark
    dist.barrier()
    if rank == 1:
        latest = json.loads((folder / "latest.json").read_text())
        (folder / "latest.json").write_text(json.dumps({**latest, "ranks": 5}))
    dist.barrier()
    assert load_checkpoint(folder) == Checkpoint({"step": 7}, {"rank": 0, "step": 7}, False)


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _full_disk(rank: int, folder: Path) -> None:
    """A rank that can't write: every rank is told, the older checkpoint holds, nothing half-written stays."""
    _save(folder, 1)
    before = _names(folder)
    dist.barrier()
    big: dict[str, Any] = {"tensor": torch.zeros(100_000), "more": torch.zeros(1000)}
    limit = _file_size_limit(20_000) if rank == 1 else _file_size_limit(resource.RLIM_INFINITY)
    with limit, pytest.raises(UsageError, match=r"step 2 can't be written .* still holds.*File too large"):
        save_checkpoint(folder, 2, {"step": 2}, big)
    assert _names(folder) == before
    assert load_checkpoint(folder) == _found(1)
    save_checkpoint(folder, 3, {"step": 3}, {"rank": rank, "step": 3})
    assert load_checkpoint(folder) == _found(3)


def _separate_disks(rank: int, own: Path, other: Path) -> None:
    """Each rank on its own disk; after a restart the ranks have changed places, and rank 0 has no latest.json."""
    _save(own, 4)
    _save(own, 6)
    assert (own / "latest.json").exists() == (rank == 0)
    assert load_checkpoint(own) == _found(6)
    found = load_checkpoint(other)
    assert found is not None
    assert found[:3] == ({"step": 6}, {"rank": 0, "step": 6}, False)
    # a newer run from the start beats what an older one left on the other disk, though its step is smaller
    _save(other, 2)
    assert load_checkpoint(other) == _found(2)
    dist.barrier()


class _Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def _not_code(rank: int, folder: Path) -> None:
    """A file with code in it, its digest made to fit, is refused and not run."""
    save_checkpoint(folder, 1, {"step": _Evil(folder / "ran")}, {"rank": rank})
    with pytest.raises(UsageError, match="something else than tensors and numbers"):
        load_checkpoint(folder)
    assert not (folder / "ran").exists()
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder)
    dist.barrier()
    save_checkpoint(folder, 1, {"step": 1}, {"rank": _Evil(folder / "ran") if rank else 0})
    found = load_checkpoint(folder)
    assert found is not None
    assert not found.is_own
    assert not (folder / "ran").exists()
