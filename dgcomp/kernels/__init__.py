"""One pass over memory from gradient to candidate positions, in three engines with one signature."""

from dgcomp.kernels.dense import update_dense
from dgcomp.kernels.dispatch import (
    accumulate_additional,
    accumulate_select,
    find_at_least,
    is_finite,
    keep_largest,
    mask,
    scatter_add,
)

__all__ = [
    "accumulate_additional",
    "accumulate_select",
    "find_at_least",
    "is_finite",
    "keep_largest",
    "mask",
    "scatter_add",
    "update_dense",
]
