"""`--quant` on two ranks: training, reports, resume, together with DGC; a spawn of its own, as it patches torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions, UsageError
from launch.report import render
from launch.train import train
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def _options(quant: str | None, compress: str = "dgc", max_steps: int = 6, **run: Any) -> Options:
    return Options(
        data=DataOptions(task="image", data="synthetic"),
        compress=CompressOptions(compress=compress, density=0.05, warmup_epochs=0.01),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=8, max_steps=max_steps, lr_warmup_epochs=0, quant=quant),
        run=RunOptions(progress="off", **run),
    )


def _model(folder: Path) -> dict[str, torch.Tensor]:
    step = json.loads((folder / "latest.json").read_text())["step"]
    model: dict[str, torch.Tensor] = torch.load(folder / f"step{step:08d}.pt", weights_only=True)["model"]
    return model


def _train(rank: int, folder: Path) -> dict[str, Any]:
    results = {
        "4/4": train(_options("4/4", checkpoint_folder=folder / "whole"), CPU),
        "fp32": train(_options(None), CPU),
        "dense": train(_options("4/4/4/4", compress="none", max_steps=2), CPU),
    }
    train(_options("4/4", max_steps=3, checkpoint_folder=folder / "cut"), CPU)
    train(_options("4/4", checkpoint_folder=folder / "cut", resume=True), CPU)
    whole, cut = _model(folder / "whole"), _model(folder / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(UsageError, match="was made with quant 4/4, not 8/8"):
        train(_options("8/8", checkpoint_folder=folder / "cut", resume=True), CPU)
    lstm = replace(_options("4/4"), data=DataOptions(task="char-lm", model="lstm", data="synthetic"))
    with pytest.raises(UsageError, match="--quant does not reach into --model lstm"):
        train(lstm, CPU)
    return results


def test_quantized_training_with_dgc(tmp_path: Path) -> None:
    results, other = run_ranks(_train, 2, tmp_path)
    assert all(other[name]["value"] == result["value"] for name, result in results.items())
    quantized, plain = results["4/4"], results["fp32"]
    assert quantized["history"] != plain["history"]  # the flag did something
    assert quantized["bytes_run"] == plain["bytes_run"]  # and not to the exchange
    assert quantized["options"]["train"]["quant"] == quantized["quant"] == "4/4"
    assert "4/4, in training and in the test" in render(quantized)
    assert "quantization" not in render(plain)
