"""Exactly k positions per tensor, and a threshold that follows the tensor from step to step.

The update kernel finds the candidates, all entries of at least the threshold, in its one pass over memory. From them
`select_fixed` takes the k largest. `next_threshold` aims a little below this step's k-th magnitude, so that the next
step finds somewhat more than k candidates: too few cost a second pass over the tensor, too many cost little. This
replaces the sampling and the adaptation rounds in each step of Lin et al., ICLR 2018, sec. 5, of which only the sampled
first guess is left, `initial_threshold`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dgcomp import kernels

# Candidates per wanted entry that a threshold aims at, between 1 (a second pass every other step) and 2.
TARGET_RATIO = 1.5
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
    columns; s is chosen for 256 expected hits, which at a density of 0.1 % is 170,000 samples. Returns infinity for
    k = 0, and 0.0 if so many entries are zero. The paper samples 0.1 to 1 % (sec. 5).
    """
    numel = residual.numel()
    if k <= 0 or numel == 0:
        return math.inf
    wanted = min(TARGET_RATIO * k, numel)
    stride = int(wanted / _SAMPLED_HITS) | 1
    start = int(_generator(seed).integers(min(stride, numel)))
    sample = residual[start::stride].abs()
    num_hits = min(max(round(sample.numel() * wanted / numel), 1), sample.numel())
    threshold = float(_kth_largest(sample, num_hits))
    return math.inf if math.isnan(threshold) else threshold


def next_threshold(threshold: float, count: int, k: int, kth_magnitude: float) -> float:
    """Aim at 1.5 k candidates in the next step.

    Two points of the tail are known, `count` entries of at least `threshold` and k of at least `kth_magnitude`. The
    tail between them is taken as a power law, whose exponent is kept within [1, 8] where the points are too close.

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
    if kth_magnitude <= 0.0 or not math.isfinite(kth_magnitude):
        return 0.0
    exponent = _tail_exponent(threshold, count, k, kth_magnitude)
    return kth_magnitude * math.pow(TARGET_RATIO, -1.0 / exponent)


def _tail_exponent(threshold: float, count: int, k: int, kth_magnitude: float) -> float:
    """a in `count / k = (threshold / kth_magnitude) ** -a`."""
    if count <= 0 or not 0.0 < threshold < math.inf or threshold == kth_magnitude or count == k:
        return 3.0
    return min(max(math.log(count / k) / math.log(kth_magnitude / threshold), 1.0), 8.0)


def _search_everything(residual: Tensor, k: int, seed: int) -> Tensor:
    """A second pass with a sampled threshold; and a third over all that is not zero, should the sample have misled."""
    threshold = max(initial_threshold(residual, k, seed), _SMALLEST_FLOAT32)
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
