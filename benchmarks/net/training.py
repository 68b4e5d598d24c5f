"""One real training over the emulated links: a wide perceptron learns a teacher network's labels.

Synthetic data, so that nothing need be downloaded: inputs are Gaussian, labels come from a fixed random network that
the student cannot copy exactly. 4.3 million parameters: enough that 1 Gbit/s is the bottleneck for dense exchange.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.net.methods import Wrapped

INPUTS, HIDDEN, CLASSES, BATCH = 256, 1536, 10, 32
LEARNING_RATE = 0.02
TARGET_LOSS = 1.0
_AVERAGED = 20  # steps in the running mean of the loss


def teacher() -> nn.Module:
    """The fixed network that makes the labels; the same on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        return nn.Sequential(nn.Linear(INPUTS, 64), nn.Tanh(), nn.Linear(64, CLASSES))


def student() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU(), nn.Linear(HIDDEN // 2, CLASSES),
        )  # fmt: skip


class Training:
    """Data of one rank and the loop; `run` trains from the same start with any method."""

    def __init__(self, rank: int) -> None:
        self.teacher = teacher()
        self.generator = torch.Generator().manual_seed(100 + rank)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(size, INPUTS, generator=generator)
        with torch.no_grad():
            return inputs, self.teacher(inputs).argmax(1)

    def run(
        self, method: Callable[[nn.Module, float], Wrapped], steps: int, counters: Callable[[], list[int]]
    ) -> dict[str, Any]:
        """Train for `steps` steps; seconds include forward, backward, exchange and update."""
        from benchmarks.net.worker import summary

        model, optimizer = method(student(), LEARNING_RATE)
        seconds, counted, losses = [], [], []
        for _ in range(steps):
            inputs, labels = self.batch(self.generator, BATCH)
            before, begin = counters(), time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
            counted.append([after - early for early, after in zip(before, counters(), strict=True)])
            losses.append(loss.detach())
        held_out = torch.Generator().manual_seed(99)
        with torch.no_grad():
            inputs, labels = self.batch(held_out, 4096)
            scores = model.module(inputs)
            loss, accuracy = cross_entropy(scores, labels), (scores.argmax(1) == labels).double().mean()
        mean = torch.stack(losses)
        dist.all_reduce(mean)
        mean = (mean / dist.get_world_size()).unfold(0, min(_AVERAGED, steps), 1).mean(1)
        return {
            **summary(seconds[3:], counted[3:]),
            "training_s": sum(seconds),
            "held_out_loss": float(loss),
            "held_out_accuracy": float(accuracy),
            "last_training_loss": float(mean[-1]),
        }
