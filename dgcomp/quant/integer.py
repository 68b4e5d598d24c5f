"""The integer arithmetic that hardware would do on per-vector codes, exact to the bit (VS-Quant section 5)."""

import math

import torch
from torch import Tensor

from dgcomp.quant.vector import QuantizedVectors

__all__ = ["integer_matmul"]


def integer_matmul(x: QuantizedVectors, w: QuantizedVectors, *, scale_product_bits: int | None = None) -> Tensor:
    """x @ w.T for x (R, K) and w (C, K) in integer arithmetic, as the hardware computes it; float32 (R, C).

    Both must be quantized along K with the same vector size and integer scales. The integers are carried in float32
    while K max(code scale_code)**2 stays below 2**24, where every partial sum is exact, else in float64 (2**53).
    `scale_product_bits` rounds the product of the two scale codes to its leading bits (VS-Quant section 5), which
    needs a partial sum per vector. Raises ValueError for operands that do not fit and for less than one such bit.
    """
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[1] or x.dim != 1 or w.dim != 1:
        raise ValueError(f"x and w must be (R, K) and (C, K), quantized along K, got {x.shape} and {w.shape}")
    if x.vector != w.vector or x.scale_bits is None or w.scale_bits is None:
        raise ValueError(
            f"x and w must share the vector size and have integer scales, got vectors {x.vector} and {w.vector}, "
            f"scale bits {x.scale_bits} and {w.scale_bits}"
        )
    if scale_product_bits is not None and scale_product_bits < 1:
        raise ValueError(f"scale_product_bits must be None or at least 1, got {scale_product_bits}")
    if scale_product_bits is None:
        total = _exact_matmul(x, w)
    else:
        total = _matmul_with_rounded_scales(x, w, x.scale_bits + w.scale_bits - scale_product_bits)
    gamma = x.gamma.double().expand(x.shape[0], 1) * w.gamma.double().expand(w.shape[0], 1).T
    return (total.double() * gamma).to(torch.float32)


def _exact_matmul(x: QuantizedVectors, w: QuantizedVectors) -> Tensor:
    operands = [(q.codes.to(torch.int64) * q.scale_codes.to(torch.int64)[..., None]).flatten(1) for q in (x, w)]
    bound = operands[0].shape[1] * math.prod(int(t.abs().max()) if t.numel() else 0 for t in operands)
    if bound >= 2**53:
        raise ValueError(f"the accumulator needs {bound.bit_length()} bits, more than 53; split the reduction")
    dtype = torch.float32 if bound < 2**24 else torch.float64
    return operands[0].to(dtype) @ operands[1].to(dtype).T


def _matmul_with_rounded_scales(x: QuantizedVectors, w: QuantizedVectors, drop: int) -> Tensor:
    dots = torch.einsum("rnv,cnv->rcn", x.codes.double(), w.codes.double())
    products = torch.einsum("rn,cn->rcn", x.scale_codes.double(), w.scale_codes.double())
    return (dots * ((products / 2.0**drop).round() * 2.0**drop if drop > 0 else products)).sum(-1)
