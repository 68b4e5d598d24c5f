"""W4A16: 4-bit weights with one scale for a group of columns, activations in 16 bits or more.

EIE's recipe (4-bit weights, 16-bit arithmetic) as language models use it today: the codebook has become a uniform
grid, the codebook's place is taken by group-wise scales. The nibbles are stored by `dgcomp.quant.vector`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dgcomp.quant.vector import pack_codes, unpack_codes

__all__ = ["GroupWeights"]

LARGEST = 7  # symmetric grid -7..7: +x and -x round alike


@dataclass(frozen=True, eq=False)
class GroupWeights:
    """A weight [rows, columns] in 4 bits a value and one float16 scale for `group` columns of a row."""

    packed: Tensor
    """uint8 [rows, columns / 2]; two's complement in four bits, the even column in the low ones."""
    scales: Tensor
    """float16 [rows, columns / group]"""

    @classmethod
    def from_dense(cls, weight: Tensor, *, group: int = 128) -> "GroupWeights":
        """Round each weight to the nearest of 15 steps; the largest magnitude of a group is exact up to float16.

        Raises ValueError for a weight that is no finite matrix, and unless `group` is even and divides the columns.
        """
        if weight.ndim != 2 or group < 2 or group % 2 or weight.shape[1] % group:
            raise ValueError(
                f"group must be even and divide the columns of a matrix, got {group}, {tuple(weight.shape)}"
            )
        if not torch.isfinite(weight).all():
            raise ValueError("weight must be finite, got NaN or infinity")
        groups = weight.detach().float().unflatten(1, (-1, group))
        scales = (groups.abs().amax(dim=2) / LARGEST).clamp(min=torch.finfo(torch.float16).tiny).half()
        codes = (groups / scales.float()[..., None]).round().clamp(-LARGEST, LARGEST)
        return cls(pack_codes(codes, bits=4), scales)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight."""
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight: 4.125 at groups of 128."""
        return 8 * (self.packed.nbytes + self.scales.nbytes) / (self.shape[0] * self.shape[1])

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The rounded weight [rows, columns]."""
        codes = unpack_codes(self.packed, 4, True, self.shape[1]).to(dtype)
        groups = codes.view(self.shape[0], self.scales.shape[1], -1)
        return (groups * self.scales.to(dtype)[..., None]).flatten(1)

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., columns] -> x W^T [..., rows], in the type of x (bfloat16, float16 or float32)."""
        return x @ self.to_dense(x.dtype).T
