"""exchange="auto": measure the link once, choose by the cost model, and check the choice while training."""

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp import kernels
from dgcomp.config import DGCConfig
from dgcomp.exchange.calibrate import calibrate
from dgcomp.exchange.planner import ExchangePlan, plan, replan
from dgcomp.memory import GradientMemory
from dgcomp.select import initial_threshold, select_fixed
from dgcomp.wire import encode

CHECK_EVERY = 200
"""Steps between two comparisons of the plan with what was observed."""

SETTLING_STEPS = 10
"""Steps after a change of method that are not observed: caches, thresholds and compilation settle."""

EXCHANGES = {
    "dense_fp32": "dense",
    "dense_bf16": "dense_bf16",
    "all_gather": "all_gather",
    "owner": "owner",
}


class AutoExchange:
    """Chooses the exchange of each step; the same on all ranks, since every input is agreed between them."""

    def __init__(self, memory: GradientMemory, config: DGCConfig, group: dist.ProcessGroup | None):
        self._memory, self._config, self._group = memory, config, group
        self._world_size = dist.get_world_size(group)
        self.link, self.host = calibrate(group, compress=self._compress)
        self.plan = self._plan(config.density)
        self._observed: list[float] = []
        self._settling = SETTLING_STEPS

    def choose(self, density: float) -> str:
        """Exchange of a step at `density`, one of DGCConfig's names."""
        if density >= 1.0:
            return "dense"
        if density != self._config.density:  # warming up: no observation reaches as far as the next step
            return EXCHANGES[self._plan(density).name]
        return EXCHANGES[self.plan.name]

    def observe(self, number: int, density: float, seconds: float) -> None:
        """Take the seconds that step `number` spent in its exchange, and plan again now and then; collective."""
        if density != self._config.density:
            return
        if self._settling:
            self._settling -= 1
            return
        self._observed.append(seconds)
        if len(self._observed) < CHECK_EVERY:
            return
        typical = torch.tensor(sorted(self._observed)[CHECK_EVERY // 2], device=self._memory.residual.device)
        dist.all_reduce(typical, op=dist.ReduceOp.MAX, group=self._group)
        before = self.plan.name
        self.plan = replan(self.plan, {before: float(typical)})
        self._observed.clear()
        self._settling = SETTLING_STEPS if self.plan.name != before else 0

    def _plan(self, density: float) -> ExchangePlan:
        leftover_numel = self._memory.leftover_numel
        numel = max(1, self._memory.sparse_numel)
        codec = self._config.codec.split("+")[0]
        return plan(
            numel,
            density,
            self._world_size,
            self.link,
            codec="fp32" if codec == "auto" else codec,
            leftover_numel=leftover_numel,
            host=self.host,
        )

    def _compress(self, gradient: Tensor) -> None:
        """What a step does to a gradient before it travels, on scratch memory."""
        gradient = gradient.to(self._memory.residual.device)
        momentum = None if self._memory.momentum is None else torch.zeros_like(gradient)
        residual = gradient.clone()
        k = max(1, round(self._config.density * gradient.numel()))
        threshold = initial_threshold(residual, k, seed=0)
        candidates = kernels.accumulate_select(gradient, momentum, residual, threshold=threshold)
        chosen = select_fixed(residual, candidates, k, generator_seed=0)
        encode(residual[chosen], chosen, residual.numel(), self._config.codec)
