"""The task patchnet: repeatable batches, a loss that falls, two ranks with and without DGC, low precision, hardware."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgcomp import hwmodel, quant
from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions, UsageError
from launch.tasks import Part, build_task
from launch.train import train
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def options(compress: str = "none", folder: Path | None = None, **run: Any) -> Options:
    data = "synthetic" if folder is None else "frames"
    return Options(
        data=DataOptions(task="patchnet", data=data, data_folder=folder, offline=True),  # type: ignore[arg-type]
        compress=CompressOptions(compress=compress, density=0.2, warmup_epochs=0),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=4, max_steps=6, lr_warmup_epochs=0, learning_rate=0.01),
        run=RunOptions(progress="off", **run),
    )


def test_the_global_batch_is_the_same_for_any_number_of_parts() -> None:
    task = build_task(options(), CPU)
    whole = task.batch(1, 3, Part(0, 1))
    halves = [task.batch(1, 3, Part(n, 2)) for n in range(2)]
    for index, tensor in enumerate(whole):
        assert torch.equal(torch.cat([half[index] for half in halves]), tensor)
    assert not torch.equal(task.batch(1, 4, Part(0, 1))[0], whole[0])


def test_learns_in_low_precision_and_is_priced() -> None:
    """The same task under quant.autocast; the profiler sees PatchNet's layers and counts what they multiply."""
    task = build_task(options(), CPU)
    batch = task.batch(0, 0, Part(0, 1))
    losses = []
    with hwmodel.profile(task.model, "eie,vsquant:4/4/4/6", every=100) as prof:
        for step in range(8):
            with quant.autocast(8, 8, model=task.model):
                loss = task.loss(task.model, batch)
            task.optimizer.zero_grad()
            loss.backward()
            task.optimizer.step()
            losses.append(loss.item())
            if step == 0:
                report = prof.step()
            else:
                prof.step()
    assert losses[-1] < losses[0]
    assert report is not None
    text = prof.table()
    for layer in ("correlation", "conv2", "conv3reg", "conv4reg"):
        assert layer in text
    assert not report.unknown


def test_evaluation_adds_up() -> None:
    task = build_task(options(), CPU)
    whole = task.evaluate(Part(0, 1))
    thirds = sum(task.evaluate(Part(n, 3)) for n in range(3))
    assert torch.allclose(whole, thirds, rtol=1e-6)
    assert whole[1] == 240
    assert 50 < task.score(float(whole[0] / whole[1])) < 100


def test_frames_of_a_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="images are read with Pillow")
    with pytest.raises(UsageError, match="--data-folder: .*it is not there"):
        build_task(options(folder=tmp_path / "missing"), CPU)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 60, 80, 3), dtype=np.uint8)
    image.fromarray(pixels[0]).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match="must hold at least 2 frames, got 1"):
        build_task(options(folder=tmp_path), CPU)
    image.fromarray(pixels[1]).save(tmp_path / "1.png")
    assert build_task(options(folder=tmp_path), CPU).label == f"pairs cut from {tmp_path.name}"


def _train(rank: int) -> dict[str, Any]:
    results = {compress: train(options(compress), CPU) for compress in ("none", "dgc")}
    low = options("dgc")
    results["dgc, 8 bits"] = train(replace(low, train=replace(low.train, quant="8/8")), CPU)
    return results


def test_two_ranks() -> None:
    results = run_ranks(_train, 2)[0]
    for compress in ("none", "dgc", "dgc, 8 bits"):
        assert results[compress]["steps"] == 6
        assert 50 < results[compress]["history"][-1] < 100
