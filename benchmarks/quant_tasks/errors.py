"""Errors on known distributions: OCTAV's clips beside the best ones, VS-Quant's formats in decibels."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import laplace, norm
from torch import Tensor

from dgcomp import quant

__all__ = ["Figures", "measure_clips", "measure_vectors"]

Figures = dict[str, float | str]
NUM_QUANTILES = 200_001


def measure_clips() -> list[Figures]:
    """Squared error above that of the best step of the same narrow grid, in percent."""
    positions = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    rows: list[Figures] = []
    for bits in range(2, 9):
        high = quant.code_range(bits)[1]
        row: Figures = {"bits": bits}
        for name, density in (("Gauss", norm), ("Laplace", laplace)):
            x = torch.tensor(density.ppf(positions), dtype=torch.float32)
            start = quant.octav_scale(x, bits).item() / high
            best = minimize_scalar(lambda d, x=x, high=high: _error(x, d, high), bounds=(0.7 * start, 1.3 * start))
            for label, grid in (("published recursion", "paper"), ("exact grid", "exact")):
                step = quant.octav_scale(x, bits, grid=grid).item() / high  # type: ignore[arg-type]
                row[f"{name}, {label} (%)"] = round(100 * (_error(x, step, high) / best.fun - 1), 2)
            row[f"{name}, maximum (%)"] = round(100 * (_error(x, float(x.abs().max()) / high, high) / best.fun - 1))
        rows.append(row)
    return rows


def _error(x: Tensor, step: float, high: int) -> float:
    return float((x - (x / step).round().clamp(-high, high) * step).double().square().mean())


def measure_vectors() -> list[Figures]:
    """Signal to noise of 256 x 1024 values, 16 to a vector and a gamma per row, in dB."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(256, 1024, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    rows: list[Figures] = []
    for name, density in (("Gauss", norm), ("Laplace", laplace)):
        x = torch.from_numpy(density.ppf(uniform.numpy())).float()
        for bits, scale_bits in ((4, 4), (4, 6), (4, None), (6, 4), (6, 6), (8, 4), (8, 6), (8, 10)):
            row: Figures = {"data": name, "bits": bits, "scale bits": scale_bits or "float"}
            for rounding in ("paper", "nearest", "consistent", "search"):
                q = quant.per_vector(x, bits, scale_bits, rounding=rounding, channel=0)  # type: ignore[arg-type]
                noise = (x - q.dequantize()).double().square().mean()
                row[f"{rounding} (dB)"] = round(10 * float(torch.log10(x.double().square().mean() / noise)), 2)
            rows.append(row)
    return rows
