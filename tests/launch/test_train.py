"""Training runs on two ranks: every task and exchange, resume, stopping; and torchrun when a rank dies.

Two spawns and one torchrun: start-up is most of the cost.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from launch.options import CompressOptions, DataOptions, Options, RunOptions, TrainOptions, UsageError
from launch.train import train
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def _options(task: str, compress: str, max_steps: int = 4, model: str | None = None, **run: Any) -> Options:
    return Options(
        data=DataOptions(task=task, model=model, data="synthetic"),  # type: ignore[arg-type]
        compress=CompressOptions(compress=compress, density=0.05, warmup_epochs=0.01),  # type: ignore[arg-type]
        train=TrainOptions(batch_size=8, max_steps=max_steps, lr_warmup_epochs=0),
        run=RunOptions(progress="off", **run),
    )


def _state(folder: Path) -> dict[str, torch.Tensor]:
    step = json.loads((folder / "latest.json").read_text())["step"]
    model: dict[str, torch.Tensor] = torch.load(folder / f"step{step:08d}.pt", weights_only=True)["model"]
    return model


def _every_task(rank: int, folder: Path) -> dict[str, Any]:
    results = {
        "none": train(_options("image", "none", log_folder=folder / "logs", log_interval=2), CPU),
        "hardware": train(_options("image", "dgc", hardware="eie,vsquant:4/4/4/6,network:1gbit"), CPU),
        "fp16": train(_options("image", "fp16"), CPU),
        "powersgd": train(_options("char-lm", "powersgd", model="gpt"), CPU),
        "dgc": train(_options("image", "dgc", max_steps=8), CPU),
        "dgc adamw": train(_options("char-lm", "dgc", model="gpt"), CPU),
        "lstm": train(_options("word-lm", "dgc"), CPU),
        "speech": train(_options("speech", "dgc"), CPU),
    }
    demo = _options("char-lm", "demo-like", model="gpt")
    results["demo-like"] = train(replace(demo, train=replace(demo.train, optimizer="sgd", learning_rate=0.01)), CPU)
    with pytest.raises(UsageError, match="--compress demo-like takes the place of the momentum"):
        train(demo, CPU)
    adam = _options("char-lm", "dgc", model="gpt")
    adam = replace(adam, train=replace(adam.train, optimizer="sgd", learning_rate=0.01))
    results["local adam"] = train(replace(adam, compress=replace(adam.compress, local_adam=True)), CPU)
    quantized = _options("image", "dgc", model="vgg")
    quantized = replace(quantized, train=replace(quantized.train, quant="4/4"))
    results["quantized"] = train(quantized, CPU)
    dropping = _options("speech", "dgc")
    parts_left_out = replace(
        dropping.compress, mode="error_feedback", clipping="after", masking="off", late_rate="current"
    )
    dropping = replace(dropping, compress=parts_left_out)
    results["flushed"] = train(replace(dropping, compress=replace(dropping.compress, flush=True)), CPU)
    results["without DGC's parts"] = train(dropping, CPU)
    accumulated = _options("image", "none")
    accumulated = replace(accumulated, train=replace(accumulated.train, accumulate=2, amp="bf16"))
    results["accumulated"] = train(accumulated, CPU)
    with pytest.raises(UsageError, match="--batch-size 8 .* must be a multiple of ranks x --accumulate = 6"):
        train(replace(accumulated, train=replace(accumulated.train, accumulate=3)), CPU)
    return results


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_task_and_exchange(tmp_path: Path) -> None:
    results, other = run_ranks(_every_task, 2, tmp_path)
    for name, result in results.items():
        assert result["value"] == other[name]["value"], name
        assert result["value"] > 0, name
    dense, half = results["none"], results["fp16"]
    num_values = sum(p.numel() for p in _resnet_parameters())
    assert dense["bytes_per_step"]["bytes_sent"] == dense["bytes_per_step"]["bytes_dense"] == 4 * num_values
    assert half["ratio"]["whole_run"] == 2
    assert results["powersgd"]["ratio"]["steady_matrices"] > 10
    assert results["dgc"]["ratio"]["steady_matrices"] > 20
    assert 60 < results["demo-like"]["ratio"]["whole_run"] < 64 * 64 * 4 / (32 * 6)
    assert results["dgc"]["bytes_run"]["bytes_dense"] == 8 * 4 * num_values
    assert results["dgc"]["ratio"]["steady"] > results["dgc"]["ratio"]["whole_run"] > 1
    assert results["flushed"]["value"] == results["without DGC's parts"]["value"]
    assert results["flushed"]["flushed_value"] > 0
    assert results["flushed"]["bytes_run"]["bytes_sent"] > results["without DGC's parts"]["bytes_run"]["bytes_sent"]
    rows = (tmp_path / "logs" / "steps.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,learning_rate,bytes_sent")
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "4"]


def _resnet_parameters() -> Any:
    from launch.tasks.resnet import resnet

    return resnet(8, in_channels=1).parameters()


def _stop_and_resume(rank: int, folder: Path) -> None:
    for compress, task in (("none", "char-lm"), ("dgc", "char-lm")):
        whole, cut = folder / f"{compress}-whole", folder / f"{compress}-cut"
        train(_options(task, compress, max_steps=6, checkpoint_folder=whole), CPU)
        train(_options(task, compress, max_steps=3, checkpoint_folder=cut), CPU)
        train(_options(task, compress, max_steps=6, checkpoint_folder=cut, resume=True), CPU)
        one, other = _state(whole), _state(cut)
        assert all(torch.equal(one[name], other[name]) for name in one), compress
        torch.distributed.barrier()  # each rank removes its own files of older checkpoints
        # the one before the latest is kept as well
        assert {path.name for path in whole.iterdir()} < {path.name for path in cut.iterdir()}

    with pytest.raises(UsageError, match="was made with compress dgc, not none"):
        train(_options(task, "none", checkpoint_folder=cut, resume=True), CPU)

    # one rank alone gets a signal: both stop at the same step and leave a checkpoint
    stopped = folder / "stopped"
    if rank == 1:
        handler = signal.getsignal(signal.SIGTERM)
        _send_after_batch(step=2)
    result = train(_options("image", "dgc", max_steps=60, checkpoint_folder=stopped), CPU)
    assert result["steps"] == json.loads((stopped / "latest.json").read_text())["step"] == 8
    assert not result["is_finished"]
    if rank == 1:
        assert signal.getsignal(signal.SIGTERM) == handler


def _send_after_batch(step: int) -> None:
    """Make this process get a SIGTERM while its batch `step` is made."""
    from launch.tasks.image import ImageTask

    make_batch = ImageTask.batch

    def batch(self: ImageTask, epoch: int, number: int, part: Any) -> Any:
        if number == step:
            ImageTask.batch = make_batch  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(self, epoch, number, part)

    ImageTask.batch = batch  # type: ignore[method-assign]


def test_stop_and_resume(tmp_path: Path) -> None:
    run_ranks(_stop_and_resume, 2, tmp_path)


RANK_THAT_DIES = """
import os, signal, sys
import launch.train as script
save = script.save_checkpoint
def save_then_die(*arguments):
    save(*arguments)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
script.save_checkpoint = save_then_die
script.main()
"""


def test_a_rank_that_dies_ends_the_others_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(RANK_THAT_DIES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "dying.py")]
    options = ["--data", "synthetic", "--batch-size", "256", "--epochs", "50", "--checkpoint-folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command + options, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "epoch 1:" in done.stdout
    latest = json.loads((tmp_path / "latest.json").read_text())
    assert (latest["step"], latest["ranks"]) == (8, 2)
    for name in ("step00000008.pt", "step00000008-rank0.pt", "step00000008-rank1.pt"):
        torch.load(tmp_path / name, weights_only=True)
