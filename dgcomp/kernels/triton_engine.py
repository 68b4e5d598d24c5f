"""The kernels on GPUs. Tested in Triton's interpreter and compiled to cubin for sm_80 and sm_90; not run on a GPU.

The update writes no positions, since a block cannot know how many hits come before its own. It counts them, the
counts are summed up, and a second kernel looks again into the blocks that have hits: at a density of 0.1 % it reads
2.5 bytes an element more than the 24 of the update, and the positions come out ascending without a sort.
"""

# Triton reads a kernel's annotations as its own types, so arguments of kernels have none for mypy.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dgcomp.kernels.rules import Rule
from dgcomp.kernels.torch_engine import is_finite, keep_largest, mask, scatter_add

__all__ = ["accumulate_select", "find_at_least", "is_finite", "keep_largest", "mask", "scatter_add"]

BLOCK = 1024

_MOMENTUM = tl.constexpr(int(Rule.MOMENTUM))
_NESTEROV = tl.constexpr(int(Rule.NESTEROV))
_ADDITIONAL_MOMENTUM = tl.constexpr(int(Rule.ADDITIONAL_MOMENTUM))


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
    numel = residual.numel()
    num_blocks = triton.cdiv(numel, BLOCK)
    counts = torch.empty(num_blocks, dtype=torch.int64, device=residual.device)
    if num_blocks:
        # a fused multiply-add would round once where the reference rounds twice
        update_kernel[(num_blocks,)](
            gradient,
            gradient if parameter is None else parameter,
            residual if momentum is None else momentum,
            residual,
            counts,
            numel,
            gradient_scale,
            momentum_factor,
            weight_decay,
            threshold,
            RULE=int(rule),
            HAS_MOMENTUM=momentum is not None,
            HAS_PARAMETER=parameter is not None,
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )
    return _positions(residual, counts, threshold)


def find_at_least(residual: Tensor, threshold: float) -> Tensor:
    num_blocks = triton.cdiv(residual.numel(), BLOCK)
    counts = torch.empty(num_blocks, dtype=torch.int64, device=residual.device)
    if num_blocks:
        count_kernel[(num_blocks,)](residual, counts, residual.numel(), threshold, BLOCK=BLOCK)
    return _positions(residual, counts, threshold)


def _positions(residual: Tensor, counts: Tensor, threshold: float) -> Tensor:
    ends = counts.cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0  # waits for the device: the caller needs the number anyway
    positions = torch.empty(total, dtype=torch.int64, device=residual.device)
    if total:
        position_kernel[(ends.numel(),)](residual, counts, ends, positions, residual.numel(), threshold, BLOCK=BLOCK)
    return positions


@triton.jit
def update_kernel(
    gradient,
    parameter,
    momentum,
    residual,
    counts,
    numel,
    scale,
    factor,
    decay,
    threshold,
    RULE: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    HAS_PARAMETER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update u and v, zero the gradient, and count the block's hits; the rules are those of kernels/rules.py."""
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * scale
    if HAS_PARAMETER:
        g += decay * tl.load(parameter + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(residual + at, mask=inside, other=0.0)
    if HAS_MOMENTUM:
        u = tl.load(momentum + at, mask=inside, other=0.0)
        if RULE == _MOMENTUM:
            u = factor * u + g
            v = v + u
        elif RULE == _NESTEROV:
            u = factor * (u + g)
            v = (v + u) + g
        elif RULE == _ADDITIONAL_MOMENTUM:
            u = u + g
            v = v + g
        else:
            decayed = factor * g
            u = u + decayed
            v = (v + decayed) + g
        tl.store(momentum + at, u, mask=inside)
    else:
        v = v + g
    tl.store(residual + at, v, mask=inside)
    tl.store(gradient + at, tl.zeros([BLOCK], gradient.dtype.element_ty), mask=inside)
    hits = _reaches(v, threshold, inside)
    tl.store(counts + block, tl.sum(hits.to(tl.int32)))


@triton.jit
def count_kernel(residual, counts, numel, threshold, BLOCK: tl.constexpr):
    """Count the hits of a block."""
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    hits = _reaches(tl.load(residual + at, mask=inside, other=0.0), threshold, inside)
    tl.store(counts + block, tl.sum(hits.to(tl.int32)))


@triton.jit
def position_kernel(residual, counts, ends, positions, numel, threshold, BLOCK: tl.constexpr):
    """Write the positions of a block's hits behind those of all earlier blocks."""
    block = tl.program_id(0)
    count = tl.load(counts + block)
    if count > 0:
        at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < numel
        hits = _reaches(tl.load(residual + at, mask=inside, other=0.0), threshold, inside)
        first = tl.load(ends + block) - count
        rank = tl.cumsum(hits.to(tl.int32), 0) - 1
        tl.store(positions + first + rank, at, mask=hits)


@triton.jit
def _reaches(v, threshold, inside):
    """Not below, so that NaN reaches every threshold."""
    return inside & ((tl.abs(v) < threshold) == 0)
