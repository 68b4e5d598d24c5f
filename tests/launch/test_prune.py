"""--prune and --winograd of launch/train.py on two ranks: masks, resume, Deep Gradient Compression."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from dgcomp.sparse import WinogradReLUConv2d
from dgcomp.sparse.options import convert_to_winograd
from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions, UsageError
from launch.tasks import build_task
from launch.train import train
from tests.ranks import run_ranks

CPU = torch.device("cpu")
SCHEDULE = "0.5,0.2@2"


def _options(folder: Path, compress: str = "none", max_steps: int = 6, *, prune: str = SCHEDULE, **run: Any) -> Options:
    return Options(
        data=DataOptions(data="synthetic"),
        compress=CompressOptions(compress=compress, density=0.05, warmup_epochs=0.01),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=8, max_steps=max_steps, lr_warmup_epochs=0, prune=prune, winograd=True),
        run=RunOptions(progress="off", checkpoint_folder=folder, **run),
    )


def _checkpoint(folder: Path) -> dict[str, Any]:
    step = json.loads((folder / "latest.json").read_text())["step"]
    content: dict[str, Any] = torch.load(folder / f"step{step:08d}.pt", weights_only=True)
    return content


def _prune_and_resume(rank: int, folder: Path) -> dict[str, list[bool]]:
    plain, whole, cut = folder / "plain", folder / "whole", folder / "cut"
    train(_options(plain, "none", max_steps=3), CPU)
    train(_options(whole, "dgc"), CPU)
    train(_options(cut, "dgc", max_steps=3), CPU)
    train(_options(cut, "dgc", resume=True), CPU)
    one, other = _checkpoint(whole), _checkpoint(cut)
    assert other["pruner"]["num_steps"] == 6
    for mine, resumed in ((one["model"], other["model"]), (one["pruner"]["masks"], other["pruner"]["masks"])):
        assert all(torch.equal(mine[name], resumed[name]) for name in mine)
    for run in (_checkpoint(plain), one):
        for name, mask in run["pruner"]["masks"].items():
            assert mask.sum() == round(0.2 * mask.numel()), name
            assert not run["model"][f"{name}.weight"][~mask].any(), name
    with pytest.raises(UsageError, match="was made with prune 0.5,0.2@2, not 0.1"):
        train(_options(whole, "dgc", prune="0.1", resume=True), CPU)
    return {name: mask.flatten().tolist() for name, mask in one["pruner"]["masks"].items()}


def test_pruned_runs_resume_exactly(tmp_path: Path) -> None:
    first, second = run_ranks(_prune_and_resume, 2, tmp_path)
    assert first == second


def test_winograd_layers_are_what_the_optimizer_trains() -> None:
    task = build_task(_options(Path("unused")), CPU)
    layers = [module for module in task.model.modules() if isinstance(module, WinogradReLUConv2d)]
    assert len(layers) == 4  # of ResNet-8's seven, the first and the two of stride 2 stay
    trained = {id(parameter) for group in task.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in task.model.parameters()} == trained
    assert convert_to_winograd(task.model) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": "2"}, "--prune must look like 0.1, 0.1@500"),
        ({"winograd": True}, "--winograd is for --task image, not char-lm"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(data=DataOptions(task="char-lm"), train=TrainOptions(**options))
