"""2:4 weights: two of every four kept, packed for the CPU, or handed to torch's semi-structured tensors on a GPU.

The newer form of sparsity that EIE's ISCA-50 retrospective points to: a fixed pattern that vector units can use.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.sparse.patterns import NM
from dgcomp.sparse.threads import run_in_threads, split_evenly

__all__ = ["Packed24", "to_semi_structured"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Packed24:
    """A weight [rows, columns] with at most two nonzeros in four columns: half the values and 2-bit positions.

    float32 or float64 products in `torch.get_num_threads()` threads. The packed form takes 0.56 of a float32 weight:
    a byte of positions for four columns, half of its bits unused.
    """

    values: Array
    """[rows, columns / 2]"""
    positions: Array
    """uint8 [rows, columns / 4]: bits 0-1 and 2-3 are the places of the two values within their four columns."""

    @classmethod
    def from_dense(cls, weight: Tensor) -> "Packed24":
        """Pack a weight exactly; raises ValueError where a group of four has more than two nonzeros."""
        if weight.ndim != 2 or weight.shape[1] % 4 or weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"weight must be a float32 or float64 matrix with a multiple of 4 columns, got {weight.dtype} "
                f"{tuple(weight.shape)}"
            )
        groups = weight.detach().cpu().unflatten(1, (-1, 4))
        most = int((groups != 0).sum(dim=2).max())
        if most > 2:
            raise ValueError(
                f"weight must have at most 2 nonzeros in 4 columns, got {most}; prune with pattern NM(2, 4)"
            )
        kept = NM(2, 4)(weight.detach().cpu(), 0.5).view(groups.shape)
        places = kept.nonzero()[:, 2].view(weight.shape[0], -1, 2)
        values = groups.gather(2, places).flatten(1)
        positions = (places[..., 0] | places[..., 1] << 2).to(torch.uint8)
        return cls(values.numpy(), positions.numpy())

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight."""
        return self.values.shape[0], 2 * self.values.shape[1]

    def to_dense(self) -> Tensor:
        """The weight [rows, columns]."""
        rows, columns = self.shape
        places = torch.from_numpy(np.stack([self.positions & 3, self.positions >> 2], axis=2).astype(np.int64))
        groups = torch.zeros(rows, columns // 4, 4, dtype=torch.from_numpy(self.values).dtype)
        return groups.scatter_(2, places, torch.from_numpy(self.values).view(places.shape)).flatten(1)

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] -> x W^T [..., rows]."""
        rows, columns = self.shape
        if x.shape[-1] != columns or x.dtype != torch.from_numpy(self.values).dtype:
            raise ValueError(f"x must be {self.values.dtype} [..., {columns}], got {x.dtype} {tuple(x.shape)}")
        inputs = np.ascontiguousarray(x.detach().reshape(-1, columns).numpy().T)
        out = np.zeros((rows, inputs.shape[1]), inputs.dtype)
        kernel = partial(_multiply, self.values, self.positions, inputs, out)
        run_in_threads(kernel, split_evenly(rows, torch.get_num_threads()))
        return torch.from_numpy(np.ascontiguousarray(out.T)).view(*x.shape[:-1], rows)


@numba.njit(cache=True, nogil=True)
def _multiply(values: Array, positions: Array, x: Array, out: Array, start: int, stop: int) -> None:
    """out[rows, batch] += W x for the rows [start, stop); x [columns, batch]."""
    batch = x.shape[1]
    for row in range(start, stop):
        for group in range(positions.shape[1]):
            place = np.int64(positions[row, group])
            first, second = 4 * group + (place & 3), 4 * group + (place >> 2)
            a, b = values[row, 2 * group], values[row, 2 * group + 1]
            for column in range(batch):
                out[row, column] += a * x[first, column] + b * x[second, column]


def to_semi_structured(weight: Tensor) -> Tensor | Packed24:
    """torch's semi-structured tensor where a GPU of compute capability 8.0 or more holds the weight, else `Packed24`.

    The GPU branch was not run on a GPU by this project.
    """
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device) >= (8, 0):
        from torch.sparse import to_sparse_semi_structured

        return to_sparse_semi_structured(weight)
    return Packed24.from_dense(weight)
