"""Split a loop over elements among as many threads as torch may use in this process, and never more.

The compiled loops release the GIL, so plain Python threads run them in parallel. They sleep between calls. numba's own
pools would not: its OpenMP layer keeps a second team of threads beside torch's, and each team spins on the cores that
the other needs. One thread, or a tensor too small to share, takes the direct call with no pool at all.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

MIN_PART = 1 << 17  # elements; a hand-over costs some 50 us, the time in which one thread updates 100,000 elements
_ALIGNMENT = 64  # elements; parts begin on cache lines of their own

R = TypeVar("R")
_pool: ThreadPoolExecutor | None = None


def split(numel: int) -> list[tuple[int, int]]:
    """Ranges (first, last) that cover `numel` elements: one, or one for each of torch's threads if it is worth it."""
    num_parts = min(torch.get_num_threads(), numel // MIN_PART)
    if num_parts <= 1:
        return [(0, numel)]
    edges = [part * numel // num_parts // _ALIGNMENT * _ALIGNMENT for part in range(num_parts)] + [numel]
    return list(pairwise(edges))


def run(work: Callable[[int, int], R], parts: list[tuple[int, int]]) -> list[R]:
    """Call `work(first, last)` for every part, the first one on this thread, and return the results in order."""
    if len(parts) == 1:
        return [work(*parts[0])]
    pool = _get_pool()
    others = [pool.submit(work, *part) for part in parts[1:]]
    mine = work(*parts[0])
    return [mine, *(other.result() for other in others)]


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        # threads start only when a task finds none idle, so a rank with two threads starts one
        _pool = ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="dgcomp-kernels")
    return _pool


def _forget_pool() -> None:
    """A forked child (a data loader's worker) inherits the pool object without its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)
