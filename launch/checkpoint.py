"""Checkpoints that are whole or not there, and that another number of ranks can go on from.

One file for what all ranks share (`step00000123.pt`: model, optimizer, progress) and one per rank for what differs
(`step00000123-rank0.pt`: the exchange's residuals, hidden states). Each is written to a temporary name and renamed.
`latest.json` is renamed last; it names the step and every file's SHA-256. Until then the older checkpoint holds, and a
file that is damaged later is noticed, which torch.load alone does not: it reads changed bytes as other weights. The
checkpoint before the latest is kept, so that a damaged one is not the end of a run.

Ranks on machines without a common disk are served: what all need is read by a rank that has it and broadcast. Files
are read as data, never as code (`weights_only`).
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from launch.messages import gather_texts, share_bytes
from launch.options import UsageError

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

LATEST = "latest.json"

T = TypeVar("T")


class Checkpoint(NamedTuple):
    """What `load_checkpoint` found.

    `is_own` says whether `own` is this rank's own part; otherwise it is rank 0's, whose means over all ranks serve
    everyone. `remark` is a sentence on what had to be left aside, or empty.
    """

    shared: dict[str, Any]
    own: dict[str, Any]
    is_own: bool
    remark: str = ""


def save_checkpoint(folder: Path, step: int, shared: dict[str, Any], own: dict[str, Any]) -> None:
    """Write a checkpoint; call it on every rank with the same `step` and `shared`, each with its `own` part.

    Raises UsageError on every rank if one of them can't write; the latest checkpoint is then what it was before.
    """
    rank = dist.get_rank()
    cure = (
        f"the checkpoint of step {step} can't be written to {folder}; the one before still holds, make room and retry"
    )

    parts = {_name(step, rank): own} | ({_name(step): shared} if rank == 0 else {})

    def write_parts() -> dict[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        return {name: _save(folder / name, part) for name, part in parts.items()}

    try:
        digests = [json.loads(text) for text in gather_texts(json.dumps(_on_all_or_none(write_parts, cure)))]
    except UsageError:
        for name in parts:  # of no use without those that could not be written
            (folder / name).unlink(missing_ok=True)
        raise
    entry = {
        "step": step,
        "ranks": len(digests),
        "saved_at": time.time(),
        "sha256": {name: digest for part in digests for name, digest in part.items()},
    }

    def point_to_it() -> list[int]:
        if rank > 0:
            return []
        older = [one for one in _read_latest(folder) if one["step"] < step][:1]
        text = json.dumps({**entry, "older": older}, indent=1)
        _write(folder / LATEST, lambda file: file.write(text.encode()))
        return [one["step"] for one in (entry, *older)]

    kept = json.loads(gather_texts(json.dumps(_on_all_or_none(point_to_it, cure)))[0])
    _remove_all_but(folder, kept)
    dist.barrier()  # or a fast rank's next files could be taken for leftovers


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Newest checkpoint that can be read, or None where there never was one; call it on every rank.

    With another number of ranks than at saving, or if a rank's own file is lost, every rank gets rank 0's part.
    Raises UsageError on every rank if there are checkpoints but none can be read.
    """
    cure = f"the checkpoints in {folder} can't be found; restore {LATEST} or give another folder"
    entries = _on_all_or_none(lambda: _read_latest(folder), cure)
    # after a restart rank 0 may sit on another machine, whose disk holds nothing or an older run's files
    newest = [float(text) for text in gather_texts(str(entries[0]["saved_at"] if entries else -1.0))]
    source = newest.index(max(newest))
    if newest[source] < 0:
        return None
    problems = []
    for entry in json.loads(share_bytes(json.dumps(entries).encode(), source)):
        try:
            found = _load(folder, entry, source)
        except UsageError as error:
            problems.append(str(error))
            continue
        return found._replace(remark="; ".join(filter(None, [*problems, found.remark])))
    raise UsageError("; ".join(problems))


def _load(folder: Path, entry: dict[str, Any], source: int) -> Checkpoint:
    """One checkpoint; raises UsageError on every rank if rank `source` can't read what all ranks need."""
    step, rank = entry["step"], dist.get_rank()

    def read(name: str) -> bytes:
        raw = (folder / name).read_bytes()
        if hashlib.sha256(raw).hexdigest() != entry["sha256"].get(name):
            raise OSError(f"{name} is damaged or of another run: its SHA-256 is not the one in {LATEST}")
        return raw

    def share(name: str) -> dict[str, Any]:
        cure = f"the checkpoint of step {step} in {folder} can't be read; remove the folder or restore a copy"
        raw = _on_all_or_none(lambda: read(name) if rank == source else b"", cure)
        return _unpack(share_bytes(raw, source))

    own, problem = None, ""
    if entry["ranks"] == dist.get_world_size():
        try:
            own = _unpack(read(_name(step, rank)))
        except (OSError, UsageError) as error:
            problem = f"{error}: every rank starts from the mean over the ranks"
    remark = next(filter(None, gather_texts(problem)), "")
    shared = share(_name(step))
    if own is not None and not remark:
        return Checkpoint(shared, own, True)
    return Checkpoint(shared, share(_name(step, 0)), False, remark)


def _on_all_or_none(action: Callable[[], T], cure: str) -> T:
    """What `action()` returns on this rank; an OSError or ValueError on one rank is a UsageError on every rank."""
    answer, problem = None, ""
    try:
        answer = action()
    except (OSError, ValueError) as error:
        problem = f"{cure} ({error})"
    problem = next(filter(None, gather_texts(problem)), "")
    if problem:
        raise UsageError(problem)
    return answer  # type: ignore[return-value]  # None only if T is


def _name(step: int, rank: int | None = None) -> str:
    return f"step{step:08d}.pt" if rank is None else f"step{step:08d}-rank{rank}.pt"


def _read_latest(folder: Path) -> list[dict[str, Any]]:
    """Entries of the latest checkpoint and the one before; empty where there is none."""
    path = folder / LATEST
    if not path.exists():
        return []
    latest = json.loads(path.read_text())
    # without `older` in the entry itself: it would be kept as part of the next one's, and the file would grow
    entries = [latest, *latest.pop("older", [])] if isinstance(latest, dict) else [latest]
    types = {"step": int, "ranks": int, "saved_at": float, "sha256": dict}
    for entry in entries:
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in types.items()):
            raise ValueError(f"{LATEST} is not what this version of launch/train.py writes")
    return entries


def _unpack(raw: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the content leads to
        raise UsageError(f"a checkpoint file holds something else than tensors and numbers ({error})") from error
    return content


def _save(path: Path, content: dict[str, Any]) -> str:
    """Write a file whole or not at all; its SHA-256."""
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        target = _Hashed(file, digest.update)
        try:
            torch.save(content, target)  # type: ignore[arg-type]  # IO[bytes] is what typing calls it
        except RuntimeError:  # torch's words for a full disk are about positions; the operating system's are clear
            if target.error is not None:
                raise target.error from None
            raise

    _write(path, write)
    return digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A file that also hands what is written to `update`, and remembers what went wrong."""

    def __init__(self, file: BinaryIO, update: Callable[[Any], None]) -> None:
        self._file, self._update = file, update
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file, and rename it when it is on the disk; nothing stays if that fails."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, survives a power cut
    finally:
        os.close(folder)


def _remove_all_but(folder: Path, steps: list[int]) -> None:
    """Remove files of other checkpoints and of writes that were cut short: rank 0 everyone's, others their own."""
    kept = {_name(step).removesuffix(".pt") for step in steps}
    pattern = "step*" if dist.get_rank() == 0 else f"step*-rank{dist.get_rank()}.*"
    for path in folder.glob(pattern):
        is_file_of_ours = path.suffix in (".pt", ".partial")
        if is_file_of_ours and (path.suffix == ".partial" or path.stem.split("-")[0] not in kept):
            path.unlink(missing_ok=True)
