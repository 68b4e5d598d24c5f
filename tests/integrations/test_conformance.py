"""One suite for all trainers: parity at density 1, conservation, equal replicas, exact resume, non-finite gradients."""

from pathlib import Path

from tests.integrations.conformance import conform
from tests.integrations.loops import train_ddp, train_fsdp
from tests.ranks import run_ranks


def _ddp(rank: int, folder: Path) -> None:
    conform(train_ddp, folder)


def test_ddp(tmp_path: Path) -> None:
    run_ranks(_ddp, 2, tmp_path)


def _fsdp(rank: int, folder: Path) -> None:
    conform(train_fsdp, folder)


def test_fsdp(tmp_path: Path) -> None:
    run_ranks(_fsdp, 4, tmp_path)
