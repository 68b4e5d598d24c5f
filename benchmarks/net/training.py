"""One real training over the emulated links: a wide perceptron learns to tell clusters of points apart.

Synthetic data, so that nothing need be downloaded: every class is a mixture of Gaussian clusters, which overlap a
little. Four million parameters: enough that a dense exchange at 1 Gbit/s is the bottleneck.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.net.methods import Wrapped
from benchmarks.net.timing import counters, gather, step, summary

INPUTS, HIDDEN, CLASSES, BATCH = 256, 1536, 10, 32
CLUSTERS, CENTRE_SCALE = 2, 0.3
LEARNING_RATE = 0.05
HELD_OUT = 4096
_WARMUP_STEPS = 3


class Perceptron(nn.Module):
    """The network that is trained; its output is its loss. It starts alike on every rank and for every method."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
                nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU(), nn.Linear(HIDDEN // 2, CLASSES),
            )  # fmt: skip

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.layers(inputs), labels)


class Clusters:
    """Endless labelled data; `seed` differs between ranks, the cluster centres do not."""

    def __init__(self, seed: int) -> None:
        centres = torch.randn(CLASSES, CLUSTERS, INPUTS, generator=torch.Generator().manual_seed(1234))
        self.centres = centres * CENTRE_SCALE
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (size,), generator=self.generator)
        cluster = torch.randint(CLUSTERS, (size,), generator=self.generator)
        noise = torch.randn(size, INPUTS, generator=self.generator)
        return self.centres[labels, cluster] + noise, labels


def train(method: Callable[[nn.Module, float], Wrapped], rank: int, steps: int, interface: str) -> dict[str, Any]:
    """Train from the same start with any method; seconds include forward, backward, exchange and update."""
    network, data = Perceptron(), Clusters(seed=100 + rank)
    model, optimizer = method(network, LEARNING_RATE)
    seconds, counted = [], []
    for _ in range(steps):
        inputs, labels = data.batch(BATCH)
        before = counters(interface)
        seconds.append(step(model, optimizer, inputs, labels))
        counted.append([after - early for early, after in zip(before, counters(interface), strict=True)])
    inputs, labels = Clusters(seed=99).batch(HELD_OUT)
    with torch.no_grad():
        scores = network.layers(inputs)
    whole = sum(total for total, _ in seconds)
    return {
        **summary(seconds[_WARMUP_STEPS:], counted[_WARMUP_STEPS:]),
        "training_s": float(gather(torch.tensor(whole)).max()),
        "held_out_loss": float(cross_entropy(scores, labels)),
        "held_out_accuracy": float((scores.argmax(1) == labels).double().mean()),
    }
