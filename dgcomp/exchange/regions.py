"""Which owner sums which part of the vector: contiguous regions that hold equally many of the selected positions."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dgcomp.exchange.collectives import device_of

I64 = NDArray[np.int64]

_BINS_PER_RANK = 16
_MIN_BINS, _MAX_BINS = 1024, 65536


class Regions:
    """Boundaries of the owners' regions, kept between steps and re-balanced every `every` exchanges.

    Keep one object per vector, made alike on all ranks and used in every exchange; re-balancing costs one small
    all-reduce of a histogram, so all ranks get the same boundaries.
    """

    def __init__(self, *, every: int = 64) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 exchange, got {every}")
        self.every = every
        self._age = 0
        self._boundaries = np.empty(0, np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Age and boundaries, so that a resumed run re-balances when the uninterrupted one would have."""
        return {"age": self._age, "boundaries": self._boundaries.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict; boundaries of another number of ranks are replaced at the next exchange."""
        self._age = int(state["age"])
        self._boundaries = np.array(state["boundaries"], np.int64)

    def update(self, positions: I64, numel: int, group: dist.ProcessGroup | None) -> tuple[I64, int]:
        """Boundaries (ranks + 1,) from 0 to numel for this exchange, and the number of collectives it took."""
        ranks = dist.get_world_size(group)
        current = self._boundaries.size == ranks + 1 and self._boundaries[-1] == numel
        if current and self._age < self.every:
            self._age += 1
            return self._boundaries, 0
        counts = torch.from_numpy(histogram(positions, numel, ranks)).to(device_of(group))
        dist.all_reduce(counts, group=group)
        self._boundaries, self._age = balanced(counts.cpu().numpy(), numel, ranks), 1
        return self._boundaries, 1


def histogram(positions: I64, numel: int, ranks: int) -> I64:
    """Counts of positions in equal bins, fine enough to cut them into `ranks` parts."""
    bins = min(max(_BINS_PER_RANK * ranks, _MIN_BINS), _MAX_BINS)
    return np.bincount(positions // -(-numel // bins), minlength=bins).astype(np.int64)


def balanced(counts: I64, numel: int, ranks: int) -> I64:
    """Boundaries between which the counts are as equal as linear interpolation in the bins makes them.

    Integer arithmetic only, so that all machines agree. Every region has at least one element (numel >= ranks).
    """
    width = -(-numel // counts.size)
    below = np.concatenate(([0], np.cumsum(counts)))
    total = int(below[-1])
    boundaries = np.empty(ranks + 1, np.int64)
    boundaries[0], boundaries[-1] = 0, numel
    for rank in range(1, ranks):
        if total == 0:
            cut = numel * rank // ranks
        else:
            index = int(np.searchsorted(below, total * rank // ranks, side="right")) - 1
            cut = index * width + width * (total * rank - ranks * int(below[index])) // (ranks * int(counts[index]))
        boundaries[rank] = min(max(cut, boundaries[rank - 1] + 1), numel - (ranks - rank))
    return boundaries


def region_count(count: int, ranks: int) -> int:
    """Entries that one rank may send to one owner: an equal share, an eighth for drift, two deviations for chance."""
    share = -(-count // ranks)
    return min(count, share + share // 8 + isqrt(4 * share) + 2)


def owner_count(count: int, ranks: int) -> int:
    """Entries that an owner selects from its sums: an equal share."""
    return -(-count // ranks)
