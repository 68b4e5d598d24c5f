"""Warm-up of the density, driven by the count of optimizer steps alone.

The paper (section 4.1) raises the sparsity from 75 % by factors of four, an epoch each. That ramp sends most of a
run's bytes in its first epochs, so two other forms are offered: a smooth exponential from the same start, which
costs about half as much, and a dense one that leaves compression off until the warm-up is over.
"""

from dgcomp.config import DGCConfig

START_DENSITY = 0.25  # paper, section 4.1: 75 % sparsity in the first epoch
STAGE_FACTOR = 4.0  # ... and a quarter of the entries in each further one


def density_at(step: int, config: DGCConfig) -> float:
    """Density of optimizer step `step` (counted from 0); 1.0 means a dense exchange."""
    if step >= config.warmup_steps:
        return config.density
    if config.warmup == "dense":
        return 1.0
    start = max(START_DENSITY, config.density)
    if config.warmup == "paper":
        stages = paper_stages(config.density)
        return stages[step * len(stages) // config.warmup_steps]
    return float(start * (config.density / start) ** (step / config.warmup_steps))


def paper_stages(density: float) -> list[float]:
    """Densities of the paper's warm-up stages, the final one left out: 25 %, 6.25 %, 1.5625 %, 0.39 % for 0.1 %."""
    stages = [max(START_DENSITY, density)]
    # The factor keeps 0.1 % from getting a fifth stage of 0.0977 %, just as the paper goes from 0.4 % to 0.1 %.
    while stages[-1] / STAGE_FACTOR > density * 1.5:
        stages.append(stages[-1] / STAGE_FACTOR)
    return stages
