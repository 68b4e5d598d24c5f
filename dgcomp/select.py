"""Exactly k positions per tensor, and a threshold that follows the tensor from step to step.

The update kernel finds the candidates, all entries of at least the threshold, in its one pass over memory. From them
`select_fixed` takes the k largest. `next_threshold` aims a little below this step's k-th magnitude, so that the next
step finds more than k candidates: too few cost a second pass over the tensor, a few too many cost almost nothing. This
replaces the sampling and the adaptation rounds in each step of Lin et al., ICLR 2018, sec. 5, of which only the sampled
first guess is left, `initial_threshold`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dgcomp import kernels

_TARGET_RATIO = 2.0  # candidates per wanted entry that a reused threshold aims at
_SAMPLED_RATIO = 1.5  # the same for a sampled one, which is for this step and knows no noise but its own
_FIRST_MARGIN = 0.035  # in log magnitude, where nothing is known yet
_SMALL_MARGIN, _SMALL_SURPLUS = 0.01, 0.05  # in log magnitude, and in log candidates
# Entries of a sample that should lie above the threshold: their number has a standard deviation of a sixteenth.
_SAMPLED_HITS = 256
_SMALLEST_FLOAT32 = 2.0**-149  # every entry that is not zero reaches it


def select_fixed(residual: Tensor, positions: Tensor, k: int, *, generator_seed: int) -> Tensor:
    """Choose the k entries of largest magnitude, exactly, from candidates that may be too many or too few.

    Parameters
    ----------
    residual : Tensor of float32, shape (N,), contiguous
        v; not modified.
    positions : Tensor of int64, shape (C,)
        Ascending positions of every entry of at least some magnitude, as `kernels.accumulate_select` returns them.
        If fewer than k are not zero, the rest of the tensor is searched.
    k : int, k >= 0
    generator_seed : int, >= 0
        Decides which of the entries that share the k-th magnitude are chosen, all with equal probability. The same seed
        gives the same choice, so a counter of steps makes a resumed run repeat the original.

    Returns
    -------
    Tensor of int64, shape (min(k, number of entries that are not zero),)
        Ascending positions. NaN and infinity count as larger than every number.
    """
    chosen = kernels.keep_largest(residual, positions, k)
    if chosen.numel() < k and positions.numel() < residual.numel():
        chosen = _search_everything(residual, k, generator_seed)
    if chosen.numel() > k:
        chosen = _drop_ties(residual, chosen, chosen.numel() - k, generator_seed)
    return chosen


def initial_threshold(residual: Tensor, k: int, seed: int) -> float:
    """Estimate from a sample a threshold that about 1.5 k entries of `residual` reach.

    Every s-th entry from a random start is looked at, s odd so that rows of even length do not put all samples into few
    columns; s is chosen for 256 expected hits, 170,000 samples at a density of 0.1 %. Returns infinity for
    k = 0, and the smallest positive float32 if too many entries are zero. The paper samples 0.1 to 1 % (sec. 5).
    """
    numel = residual.numel()
    if k <= 0 or numel == 0:
        return math.inf
    wanted = min(_SAMPLED_RATIO * k, numel)
    stride = int(wanted / _SAMPLED_HITS) | 1
    start = int(_generator(seed).integers(min(stride, numel)))
    sample = residual[start::stride].abs()
    num_hits = min(max(round(sample.numel() * wanted / numel), 1), sample.numel())
    threshold = float(_kth_largest(sample, num_hits))
    return math.inf if math.isnan(threshold) else max(threshold, _SMALLEST_FLOAT32)


def next_threshold(threshold: float, count: int, k: int, kth_magnitude: float) -> float:
    """Aim at somewhat under twice k candidates in the next step; more while residuals still grow from step to step.

    Just below the k-th magnitude the tail is steep (at a density of 0.1 % a threshold lower by 1 % gives some 4 times
    the candidates), and how steep depends on density and momentum. So the margin in log magnitude that this step had,
    and the log of the surplus that it gave, set the next margin; two small constants keep the quotient tame where both
    vanish. After a miss the margin is four times the shortfall. benchmarks/kernels.py counts the misses.

    Parameters
    ----------
    threshold : float
        The one that this step used; infinity if there was none.
    count : int
        Candidates that it found.
    k : int
    kth_magnitude : float
        Smallest magnitude among the entries chosen in this step (0.0 if none was).
    """
    if k <= 0:
        return math.inf
    if not 0.0 < kth_magnitude < math.inf:
        return _SMALLEST_FLOAT32 if kth_magnitude <= 0.0 else threshold
    if count <= 0 or not 0.0 < threshold < math.inf:
        return kth_magnitude * math.exp(-_FIRST_MARGIN)
    margin = math.log(kth_magnitude / threshold)
    if count < k:
        return kth_magnitude * math.exp(-max(-4.0 * margin, _SMALL_MARGIN))
    per_surplus = (max(margin, 0.0) + _SMALL_MARGIN * _SMALL_SURPLUS) / (math.log(count / k) + _SMALL_SURPLUS)
    return kth_magnitude * math.exp(-math.log(_TARGET_RATIO) * per_surplus)


def _search_everything(residual: Tensor, k: int, seed: int) -> Tensor:
    """A second pass with a sampled threshold; and a third over all that is not zero, should the sample have misled."""
    threshold = initial_threshold(residual, k, seed)
    chosen = kernels.keep_largest(residual, kernels.find_at_least(residual, threshold), k)
    if chosen.numel() < k:
        chosen = kernels.keep_largest(residual, kernels.find_at_least(residual, _SMALLEST_FLOAT32), k)
    return chosen


def _drop_ties(residual: Tensor, chosen: Tensor, surplus: int, seed: int) -> Tensor:
    """Leave out `surplus` of the entries that share the smallest magnitude, each with equal probability."""
    magnitudes = residual[chosen].view(torch.int32) & 0x7FFFFFFF  # as integers, so that NaN has its place
    tied = (magnitudes == magnitudes.min()).nonzero().flatten()
    dropped = _generator(seed).choice(tied.numel(), size=surplus, replace=False, shuffle=False)
    kept = torch.ones(chosen.numel(), dtype=torch.bool, device=chosen.device)
    kept[tied[torch.from_numpy(dropped).to(chosen.device)]] = False
    return chosen[kept]


def _kth_largest(values: Tensor, k: int) -> Tensor:
    if values.device.type == "cpu":  # NumPy's quickselect is an order of magnitude faster than topk here
        return torch.from_numpy(np.partition(values.numpy(), values.numel() - k)[values.numel() - k :])[0]
    return values.topk(k, sorted=False).values.min()


def _generator(seed: int) -> np.random.Generator:
    """Counter-based, so that nearby seeds give unrelated streams and nothing needs to be saved."""
    return np.random.Generator(np.random.Philox(key=seed))
