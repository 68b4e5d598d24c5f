"""The exchange that chooses itself: calibrate at start, plan, and re-check against measured steps while training."""

import logging
import statistics

import torch
import torch.distributed as dist

from dgcomp.exchange.calibrate import calibrate
from dgcomp.exchange.collectives import device_of
from dgcomp.exchange.planner import ExchangePlan, at_density, plan, replan

logger = logging.getLogger("dgcomp")

RECHECK_STEPS = 200


class AutoExchange:
    """Holds the current plan of one model; all ranks make it, and call `observe` after every step, alike.

    Calibration runs in the constructor (a collective call, under two seconds). `lossless_dense` keeps "dense_bf16"
    out of the choice. `every` is the number of steps between two checks.
    """

    def __init__(
        self,
        numel: int,
        density: float,
        group: dist.ProcessGroup | None = None,
        *,
        codec: str = "int4",
        leftover_numel: int = 0,
        leftover_codec: str = "int4",
        num_buckets: int = 1,
        workers_per_core: float = 1.0,
        lossless_dense: bool = False,
        every: int = RECHECK_STEPS,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.group, self.every = group, every
        link, host = calibrate(group, workers_per_core=workers_per_core)
        self.plan: ExchangePlan = plan(
            numel, density, dist.get_world_size(group), link, codec=codec, leftover_numel=leftover_numel,
            leftover_codec=leftover_codec, num_buckets=num_buckets, host=host, lossless_dense=lossless_dense,
        )  # fmt: skip
        self._observed_s: list[float] = []
        self._log(f"measured {link.bandwidth_gbit_per_s:.3g} Gbit/s and a round trip of {link.rtt_ms:.3g} ms")

    @property
    def name(self) -> str:
        """The method to use for the next step."""
        return self.plan.name

    def name_at(self, density: float) -> str:
        """The method for a step at another density, such as one of the warm-up, by the model alone."""
        return at_density(self.plan, density).name

    def observe(self, exchange_s: float) -> bool:
        """Take the seconds of one step's exchange; every so many steps plan anew. True if the method changed.

        Collective at a check: the slowest rank's median counts, so that all ranks decide alike.
        """
        self._observed_s.append(exchange_s)
        if len(self._observed_s) < self.every:
            return False
        median = torch.tensor(statistics.median(self._observed_s), dtype=torch.float64, device=device_of(self.group))
        self._observed_s.clear()
        dist.all_reduce(median, op=dist.ReduceOp.MAX, group=self.group)
        before = self.name
        self.plan = replan(self.plan, {before: float(median)})
        if self.name == before:
            return False
        self._log(f"{before} took {float(median) * 1e3:.1f} ms a step")
        return True

    def _log(self, reason: str) -> None:
        if dist.get_rank(self.group) == 0:
            logger.info("dgcomp: %s; gradients travel by %s\n%s", reason, self.name, self.plan.table())
