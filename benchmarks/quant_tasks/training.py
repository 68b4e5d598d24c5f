"""Training from scratch at 4 bits: the tasks, models and recipes of launch/train.py, on one process.

The recipe (optimizer, peak learning rate, weight decay, batch, augmentation) is the one that launch/train.py uses for
the task by default, chosen in floating point, with a cosine over the given number of steps after 5 % of warm-up.
Every method gets the same one, and with the same seed the same first weights and the same batches.
"""

from argparse import Namespace
from pathlib import Path

import torch

from benchmarks.quant_tasks.base import FP32, Context, Experiment, quantized
from launch.options import DataOptions, Options, TrainOptions
from launch.tasks import Part, build_task
from launch.train import learning_rate_factor

__all__ = ["cifar10", "fashion", "gpt"]

WHOLE = Part(0, 1)

ESTIMATORS: dict[str, Context] = {
    "fp32": FP32,
    "max scaling": quantized(4, 4, method="max"),
    "octav, ste": quantized(4, 4, weight_estimator="ste", activation_estimator="ste"),
    "octav, pwl": quantized(4, 4, weight_estimator="pwl", activation_estimator="pwl"),
    "octav, mad": quantized(4, 4, weight_estimator="mad", activation_estimator="mad"),
    "octav, mph": quantized(4, 4),
}
"""The comparison of OCTAV's table 1; MPH is the default of `quant.autocast`."""

# The output layer shares the embedding's table: 8 bits, as for the last layer of a network of images.
_HEAD_AT_8 = {"first_last": None, "rules": {"embedding": 8}}
LANGUAGE: dict[str, Context] = {
    "fp32": FP32,
    "max scaling": quantized(4, 4, method="max", **_HEAD_AT_8),
    "octav, mph": quantized(4, 4, **_HEAD_AT_8),
    "4/4/4/4": quantized("4/4/4/4", **_HEAD_AT_8),
}


def fashion(arguments: Namespace) -> Experiment:
    """ResNet-8 on Fashion-MNIST, all estimators."""
    data = DataOptions(task="image", model="resnet8", data="fashion-mnist", data_folder=arguments.data)
    return _experiment(f"Fashion-MNIST, ResNet-8, 4 bits, {arguments.steps} steps", data, ESTIMATORS, arguments)


def cifar10(arguments: Namespace) -> Experiment:
    """ResNet-20 on CIFAR-10; a folder with cifar10_jpeg.npz holds a lossy copy, and the title says so."""
    is_lossy = arguments.data is not None and (Path(arguments.data) / "cifar10_jpeg.npz").exists()
    title = f"CIFAR-10{' (JPEG)' if is_lossy else ''}, ResNet-20, 4 bits, {arguments.steps} steps"
    methods = {name: ESTIMATORS[name] for name in ("fp32", "max scaling", "octav, mph")}
    data = DataOptions(task="image", model="resnet20", data="cifar10", data_folder=arguments.data)
    return _experiment(title, data, methods, arguments)


def gpt(arguments: Namespace) -> Experiment:
    """A GPT of 4 layers and width 128 over the characters of a text file; the score is the test perplexity."""
    data = DataOptions(task="char-lm", model="gpt", data="text", data_folder=arguments.data)
    name = Path(arguments.data).stem if arguments.data is not None else "text"
    return _experiment(f"characters of {name}, GPT, 4 bits, {arguments.steps} steps", data, LANGUAGE, arguments)


def _experiment(title: str, data: DataOptions, methods: dict[str, Context], arguments: Namespace) -> Experiment:
    metric = "perplexity" if data.task == "char-lm" else "top-1 (%)"

    def measure(context: Context, seed: int) -> float:
        return train(Options(data=data, train=TrainOptions(seed=seed)), arguments.steps, context)

    return Experiment(title, metric, methods, measure, {"steps": arguments.steps})


def train(options: Options, num_steps: int, context_of: Context) -> float:
    """Train from scratch for a number of optimizer steps; the score on the test set, in the same context."""
    task = build_task(options, torch.device("cpu"))
    context = context_of(task.model)
    clip_norm = options.train.clip_norm or task.clip_norm
    task.model.train()
    for step in range(num_steps):
        factor = learning_rate_factor(step, num_steps=num_steps, warmup_steps=num_steps // 20, schedule="cosine")
        for group in task.optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
        batch = task.batch(*divmod(step, task.steps_per_epoch), WHOLE)
        with context:
            loss = task.loss(task.model, batch)
        task.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), clip_norm)
        task.optimizer.step()
    task.model.eval()
    with context:
        total, count = task.evaluate(WHOLE).tolist()
    return task.score(total / count)
