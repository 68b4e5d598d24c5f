"""The kernels on the CPU: torch memory goes to the compiled loops without a copy, in as many parts as torch threads."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgcomp.kernels import numba_loops as loops
from dgcomp.kernels import torch_engine
from dgcomp.kernels.rules import Rule
from dgcomp.kernels.threads import run, split


def accumulate_select(
    rule: Rule,
    gradient: Tensor,
    momentum: Tensor | None,
    residual: Tensor,
    parameter: Tensor | None,
    gradient_scale: float,
    momentum_factor: float,
    weight_decay: float,
    threshold: float,
) -> Tensor:
    buffer = np.empty(residual.numel(), np.int64)
    g, v = _array(gradient), _array(residual)
    u = None if momentum is None else _array(momentum)
    w = None if parameter is None else _array(parameter)

    number = int(rule)

    def work(first: int, last: int) -> int:
        count: int = loops.accumulate_select(
            g, w, u, v, number, first, last, gradient_scale, momentum_factor, weight_decay, threshold, buffer
        )
        return count

    parts = split(residual.numel())
    return _joined(buffer, parts, run(work, parts))


def find_at_least(residual: Tensor, threshold: float) -> Tensor:
    buffer = np.empty(residual.numel(), np.int64)
    v = _array(residual)
    parts = split(residual.numel())
    counts = run(lambda first, last: loops.find_at_least(v, first, last, threshold, buffer), parts)
    return _joined(buffer, parts, counts)


def keep_largest(residual: Tensor, positions: Tensor, k: int) -> Tensor:
    kept = np.empty(positions.numel(), np.int64)
    count = loops.keep_largest(_array(residual), positions.numpy(), k, kept)
    return torch.from_numpy(kept[: _in_range(count, residual)])


def is_finite(tensor: Tensor) -> bool:
    x = _array(tensor)
    return all(run(lambda first, last: loops.is_finite(x, first, last), split(tensor.numel())))


def mask(positions: Tensor, momentum: Tensor | None, residual: Tensor) -> None:
    u = None if momentum is None else _array(momentum)
    _in_range(loops.mask(positions.numpy(), u, _array(residual)), residual)


def scatter_add(output: Tensor, positions: Tensor, values: Tensor, scale: float) -> None:
    if output.dtype != torch.float32:  # a few thousand entries: not worth a second rounding routine
        torch_engine.scatter_add(output, positions, values, scale)
        return
    _in_range(loops.scatter_add(_array(output), positions.numpy(), values.numpy(), scale), output)


def _array(tensor: Tensor) -> Any:
    """A NumPy view; numba has no 16-bit floats, so bfloat16 comes as uint16 bits and float16 as int16 bits."""
    if tensor.dtype == torch.float32:
        return tensor.numpy()
    return tensor.view(torch.uint16 if tensor.dtype == torch.bfloat16 else torch.int16).numpy()


def _joined(buffer: Any, parts: list[tuple[int, int]], counts: list[int]) -> Tensor:
    """What the parts wrote: each filled the buffer from its own first element on, so they never meet.

    The buffer has room for every position. Only the pages that were written became real memory, so it costs little.
    """
    if len(parts) == 1:
        return torch.from_numpy(buffer[: counts[0]])
    pieces = [buffer[first : first + count] for (first, _), count in zip(parts, counts, strict=True)]
    return torch.from_numpy(np.concatenate(pieces))


def _in_range(count: int, tensor: Tensor) -> int:
    if count < 0:
        raise IndexError(f"positions must be in [0, {tensor.numel()}), got one outside; nothing was changed")
    return count
