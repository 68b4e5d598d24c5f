"""What four accelerators add to a training step of ResNet-20 that they watch: plain and profiled blocks in turn."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dgcomp import hwmodel
from launch.tasks.resnet import resnet

__all__ = ["overhead"]

OVERHEAD = "eie,vsquant:4/4/4/6,sparch,winograd"

Times = tuple[float, float]
"""Seconds by the wall clock, and of this process's processor time, which other processes disturb less."""


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternating blocks of plain and profiled steps, of which the first is sampled; four accelerators."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet(20).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(arguments.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (arguments.batch,))
    length = arguments.block_steps
    with hwmodel.profile(model, OVERHEAD, every=1) as warm:
        _train_step(model, optimizer, images, labels)
        warm.step()
    plain: list[Times] = []
    profiled: list[Times] = []
    sampled: list[Times] = []
    unsampled: list[Times] = []
    for _ in range(arguments.blocks):
        plain.append(_sum([_timed(lambda: _train_step(model, optimizer, images, labels)) for _ in range(length)]))
        block = []
        # A profiler of its own for each block: one that stays would be looking at the plain steps that come after it.
        with hwmodel.profile(model, OVERHEAD, every=length) as prof:
            for _ in range(length):
                start = _now()
                _train_step(model, optimizer, images, labels)
                report = prof.step()
                block.append(_since(start))
                (sampled if report else unsampled).append(block[-1])
        profiled.append(_sum(block))
    counted = []
    for _ in range(3):
        with FlopCounterMode(display=False):
            counted.append(_timed(lambda: _train_step(model, optimizer, images, labels)))
    rows = []
    for index, clock in enumerate(("wall clock", "processor time")):
        step_s = _median(plain, index) / length
        rows.append(
            {
                "clock": clock,
                "plain_step_ms": step_s * 1e3,
                "unsampled_step_ms": _median(unsampled, index) * 1e3,
                "sampled_step_ms": _median(sampled, index) * 1e3,
                "overhead_of_blocks": _median(profiled, index) / _median(plain, index) - 1,
                "overhead_at_every_50": (_median(sampled, index) / step_s - 1) / 50,
                "torch_flop_counter_every_step": _median(counted, index) / step_s - 1,
                "blocks": f"{arguments.blocks} x {length} steps",
            }
        )
    return {f"Overhead on a ResNet-20 training step, batch {arguments.batch}, one thread, four accelerators": rows}


def _now() -> Times:
    return time.perf_counter(), time.process_time()


def _since(start: Times) -> Times:
    wall, busy = _now()
    return wall - start[0], busy - start[1]


def _sum(times: list[Times]) -> Times:
    return sum(wall for wall, _ in times), sum(busy for _, busy in times)


def _median(times: list[Times], clock: int) -> float:
    return statistics.median(pair[clock] for pair in times)


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def _timed(run: Callable[[], None]) -> Times:
    start = _now()
    run()
    return _since(start)
