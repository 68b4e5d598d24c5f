"""Run a GIL-free kernel over a range in as many threads as torch uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["run_in_threads", "split_evenly"]


def split_evenly(total: int, parts: int) -> list[tuple[int, int]]:
    """Cut range(total) into at most `parts` ranges (start, stop) of nearly equal length; none is empty."""
    parts = max(1, min(parts, total))
    return [(total * i // parts, total * (i + 1) // parts) for i in range(parts)]


def run_in_threads(kernel: Callable[[int, int], object], ranges: list[tuple[int, int]]) -> None:
    """Call `kernel(start, stop)` for every range, at most `torch.get_num_threads()` at a time.

    The kernels release the GIL (numba, nogil=True). Threads live for one call: a pool kept for longer would not
    survive the fork of a data-loader worker, and starting one costs some 50 microseconds.
    """
    num_threads = min(torch.get_num_threads(), len(ranges))
    if num_threads <= 1:
        for start, stop in ranges:
            kernel(start, stop)
        return
    with ThreadPoolExecutor(num_threads - 1) as pool:
        others = [pool.submit(kernel, start, stop) for start, stop in ranges[1:]]
        kernel(*ranges[0])  # in this thread, which would only wait
        for future in others:
            future.result()
