"""Per-vector scaling with two-level integer scales: VS-Quant (Dai et al., MLSys 2021).

A vector is V consecutive elements along one dimension, the one that a matmul reduces. Each vector has an unsigned
integer scale of M bits, and a coarse group (an output channel of a weight, a whole activation) one float gamma:

    x ~ code * scale_code * gamma,    code of N bits, scale_code of M bits

so that a dot product is integer arithmetic and one float multiplication at the end (dgcomp/quant/integer.py).

Roundings, from the same maximum per vector s = max|x| / Q and gamma = max s / (2**M - 1):

* "paper" (equations 7a-7j): scale_code = round(s / gamma); codes are rounded with the *unrounded* s. A vector with
  s < gamma / 2 vanishes, and one whose scale was rounded is stretched.
* "nearest": the same scale codes, but codes are rounded with the scale that will multiply them.
* "consistent": as "nearest", with scale_code the better of ceil(s / gamma) and one less by squared error. Same bits,
  same hardware, 0.7 dB (4-bit values, 4-bit scales) to 16 dB (8, 4) more signal; no non-zero vector vanishes.
* "search": as "consistent", from 16 more scale codes around the largest and below it, which clip: up to 0.4 dB more
  with 6 bits of scale, at several times the effort. Also chooses float scales (`scale_bits` None).

Shapes: R = rows (all other dimensions), K = elements along the dimension, V = vector, n = ceil(K / V) vectors a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dgcomp.quant.octav import code_range

__all__ = [
    "QuantizedVectors",
    "Rounding",
    "fake_per_vector",
    "least_error_reference",
    "load_vectors",
    "per_vector",
    "save_vectors",
]

Rounding = Literal["consistent", "search", "nearest", "paper"]

_NUM_CANDIDATES = 16  # scales of "search", from 6 % above the largest magnitude to 43 % below it at 4 bits
_TINY = 1e-37  # the reciprocal of a smaller scale overflows: it counts as zero


def per_vector(
    x: Tensor,
    bits: int = 4,
    scale_bits: int | None = 4,
    vector: int = 16,
    dim: int = -1,
    rounding: Rounding = "consistent",
    *,
    signed: bool = True,
    channel: int | None = None,
) -> "QuantizedVectors":
    """Quantize a tensor to integer codes with one integer scale per vector.

    Parameters
    ----------
    x : floating-point Tensor; computed in float32. Raises ValueError where an element is not finite.
    bits : N, 2 to 8; codes are +-(2**(N-1) - 1), or 0..2**N - 1 where not `signed` (negative elements become 0).
    scale_bits : M, 2 to 16, or None for float32 scales per vector.
    vector : V elements of `dim` share a scale. Where V does not divide the size, the last vector is padded with zeros:
        they cost storage (`QuantizedVectors.padding` of each row) and change no value.
    channel : dimension whose indices have a gamma each (0 for a weight); None for one gamma, as for activations.
    """
    if not bool(x.isfinite().all()):
        raise ValueError("x must be finite to be stored as integer codes; replace NaN and infinity first")
    codes, scale_codes, gamma = _quantize(x, bits, scale_bits, vector, dim, rounding, signed, channel)
    return QuantizedVectors(
        packed=pack_codes(codes, bits),
        scale_codes=scale_codes if scale_bits is None else scale_codes.to(_scale_dtype(scale_bits)),
        gamma=gamma,
        shape=tuple(x.shape),
        dim=dim % x.ndim,
        bits=bits,
        scale_bits=scale_bits,
        vector=vector,
        signed=signed,
    )


def fake_per_vector(
    x: Tensor,
    bits: int = 4,
    scale_bits: int | None = 4,
    vector: int = 16,
    dim: int = -1,
    rounding: Rounding = "consistent",
    *,
    signed: bool = True,
    channel: int | None = None,
) -> Tensor:
    """`per_vector(...).dequantize()` in x's dtype with a straight-through gradient, as in the paper's section 7."""
    with torch.no_grad():
        codes, scale_codes, gamma = _quantize(x, bits, scale_bits, vector, dim, rounding, signed, channel)
        value = _assemble(codes * (scale_codes * gamma)[..., None], tuple(x.shape), dim % x.ndim).to(x.dtype)
    return StraightThrough.apply(x, value)  # type: ignore[no-any-return]


class StraightThrough(torch.autograd.Function):
    """The second tensor's value with the first one's gradient."""

    @staticmethod
    def forward(ctx: object, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


@dataclass(frozen=True, eq=False)
class QuantizedVectors:
    """A tensor as integer codes, integer scales per vector and float scales per group, packed as hardware stores it.

    packed : uint8 (R, ceil(n V / 2)) with two codes to a byte, low nibble first, for bits <= 4; else int8 (R, n V),
        or uint8 where the codes are unsigned.
    scale_codes : uint8 or int16 (R, n); float32 where `scale_bits` is None.
    gamma : float32, broadcastable to (R, n).
    """

    packed: Tensor
    scale_codes: Tensor
    gamma: Tensor
    shape: tuple[int, ...]
    dim: int
    bits: int
    scale_bits: int | None
    vector: int
    signed: bool

    def dequantize(self) -> Tensor:
        """The float32 tensor (of the original shape) that the codes stand for."""
        scales = self.scale_codes.to(torch.float32) * self.gamma
        return _assemble(self.codes.to(torch.float32) * scales[..., None], self.shape, self.dim)

    @property
    def codes(self) -> Tensor:
        """Integer codes (R, n, V) as int16, padding included."""
        rows, num_vectors = self.scale_codes.shape
        return unpack_codes(self.packed, self.bits, self.signed, num_vectors * self.vector).reshape(
            rows, num_vectors, self.vector
        )

    @property
    def padding(self) -> int:
        """Zeros appended to each row to fill its last vector."""
        return -self.shape[self.dim] % self.vector

    @property
    def effective_bits(self) -> float:
        """Bits per element with the scale's share, N + M / V; the gammas and padding are left out, as in the paper."""
        return self.bits + (32 if self.scale_bits is None else self.scale_bits) / self.vector

    @property
    def nbytes(self) -> int:
        """Bytes of storage, everything included."""
        return sum(t.numel() * t.element_size() for t in (self.packed, self.scale_codes, self.gamma))


def save_vectors(path: str | Path, tensors: Mapping[str, QuantizedVectors]) -> None:
    """Write named tensors to a safetensors file, packed as they are; the formats travel in the file's metadata."""
    from safetensors.torch import save_file

    parts, metadata = {}, {}
    for name, q in tensors.items():
        parts.update({f"{name}.packed": q.packed, f"{name}.scale_codes": q.scale_codes, f"{name}.gamma": q.gamma})
        scale_bits = "-" if q.scale_bits is None else q.scale_bits
        shape = "x".join(map(str, q.shape))
        metadata[name] = f"{q.bits} {scale_bits} {q.vector} {q.dim} {int(q.signed)} {shape}"
    save_file({name: part.contiguous() for name, part in parts.items()}, path, metadata=metadata)


def load_vectors(path: str | Path) -> dict[str, QuantizedVectors]:
    """Read what `save_vectors` wrote."""
    from safetensors import safe_open

    result = {}
    with safe_open(path, "pt") as file:
        for name, text in (file.metadata() or {}).items():
            bits, scale_bits, vector, dim, signed, shape = text.split(" ")
            result[name] = QuantizedVectors(
                packed=file.get_tensor(f"{name}.packed"),
                scale_codes=file.get_tensor(f"{name}.scale_codes"),
                gamma=file.get_tensor(f"{name}.gamma"),
                shape=tuple(int(size) for size in shape.split("x")),
                dim=int(dim),
                bits=int(bits),
                scale_bits=None if scale_bits == "-" else int(scale_bits),
                vector=int(vector),
                signed=signed == "1",
            )
    return result


# --- the quantizer ----------------------------------------------------------------------------------------------------


def _quantize(
    x: Tensor,
    bits: int,
    scale_bits: int | None,
    vector: int,
    dim: int,
    rounding: Rounding,
    signed: bool,
    channel: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (R, n, V) and scale codes (R, n) as integers in float32, and gamma broadcastable to (R, n)."""
    low, high = code_range(bits, signed)
    _check(x, scale_bits, vector, dim, rounding, channel)
    values = _vectors(x.detach().to(torch.float32), vector, dim)
    largest = (values.abs() if signed else values.clamp(min=0)).amax(-1)
    scale = largest / high
    # x Q / max, not x / (max / Q): the division that is rounded once keeps ties where the equations have them.
    unrounded_codes = _round(values * high, largest, low, high)
    if scale_bits is None:
        one = torch.ones((), device=x.device)
        if rounding != "search":
            return unrounded_codes, scale, one
        return *_least_error(values, [scale, *(scale * factor for factor in _factors(high))], one, low, high), one
    top = 2**scale_bits - 1
    gamma = _group_maximum(scale, x, dim, channel) / top
    ratio = scale * _inverse(gamma)
    if rounding == "paper":
        return unrounded_codes, ratio.round(), gamma
    if rounding == "nearest":
        scale_codes = ratio.round()
        return _round(values, scale_codes * gamma, low, high), scale_codes, gamma
    return *_least_error(values, _candidates(ratio, top, rounding, high), gamma, low, high), gamma


def _candidates(ratio: Tensor, top: int, rounding: str, high: int) -> list[Tensor]:
    """Scale codes to choose from: the one that clips nothing, the next smaller one, and more for "search"."""
    # A hair is taken off before ceil: a ratio that is an integer but for rounding must not gain a whole code.
    upper = (ratio * (1 - 1e-6)).ceil().clamp(max=top)
    pair = [upper, (upper - 1).clamp(min=1).minimum(upper)]
    if rounding == "consistent":
        return pair
    return pair + [(ratio * factor).round().clamp(min=1, max=top).minimum(upper * top) for factor in _factors(high)]


def _factors(high: int) -> list[float]:
    """Shares of the largest magnitude to try as scales: clips pay off at few codes, alignment with the codes always."""
    spacing = 0.2 / high
    return [1 + spacing * i for i in (1, 2, *range(-1, 1 - _NUM_CANDIDATES, -1))]


def _least_error(values: Tensor, candidates: list[Tensor], gamma: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Codes and scale codes of the candidate with the least squared error in each vector; the earlier one in a tie."""
    if values.device.type == "cpu" and type(values) is Tensor and not torch.compiler.is_compiling():
        return _cpu_least_error(values, torch.stack(candidates, -1), gamma, low, high)
    return least_error_reference(values, candidates, gamma, low, high)


def _cpu_least_error(values: Tensor, candidates: Tensor, gamma: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    from dgcomp.quant import cpu_quantize  # numba takes a second to import

    codes, scale_codes = torch.empty_like(values), torch.empty(values.shape[:2])
    groups = gamma.expand(values.shape[0], 1)[:, 0].contiguous()
    cpu_quantize.least_error(
        values.contiguous().numpy(), candidates.numpy(), groups.numpy(), codes.numpy(), scale_codes.numpy(),
        np.float32(low), np.float32(high),
    )  # fmt: skip
    return codes, scale_codes


def least_error_reference(
    values: Tensor, candidates: list[Tensor], gamma: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """`_least_error` in torch operations: what the CPU loop must equal."""
    best_codes, best_scale_codes, least = None, candidates[0], None
    for scale_codes in candidates:
        codes = _round(values, scale_codes * gamma, low, high)
        error = (values - codes * (scale_codes * gamma)[..., None]).square().sum(-1)
        if best_codes is None or least is None:
            best_codes, least = codes, error
            continue
        better = error < least
        best_codes = torch.where(better[..., None], codes, best_codes)
        best_scale_codes = torch.where(better, scale_codes, best_scale_codes)
        least = torch.where(better, error, least)
    assert best_codes is not None  # there is at least one candidate
    return best_codes, best_scale_codes


def _check(x: Tensor, scale_bits: int | None, vector: int, dim: int, rounding: str, channel: int | None) -> None:
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be a floating-point tensor to be quantized, got {x.dtype}; convert it with x.float()")
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension to be cut into vectors, got a scalar")
    if scale_bits is not None and not 2 <= scale_bits <= 16:
        raise ValueError(f"scale_bits must be from 2 to 16, or None for float scales, got {scale_bits}")
    if vector < 1:
        raise ValueError(f"vector must be at least 1, got {vector}")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    if channel is not None and channel % x.ndim == dim % x.ndim:
        raise ValueError(f"channel must differ from dim, along which vectors run, got {channel} for both")


def _vectors(x: Tensor, vector: int, dim: int) -> Tensor:
    """(R, n, V), the last vector of each row padded with zeros."""
    rows = x.movedim(dim, -1)
    padding = -rows.shape[-1] % vector
    if padding:
        rows = torch.nn.functional.pad(rows, (0, padding))
    num_rows = math.prod(rows.shape[:-1])
    return rows.reshape(num_rows, rows.shape[-1] // vector, vector)


def _assemble(values: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """The inverse of `_vectors`."""
    others = [size for d, size in enumerate(shape) if d != dim]
    rows = values.reshape(*others, values.shape[1] * values.shape[2])[..., : shape[dim]]
    return rows.movedim(-1, dim).contiguous()


def _group_maximum(scale: Tensor, x: Tensor, dim: int, channel: int | None) -> Tensor:
    """Largest scale of each group, broadcastable to the scales (R, n)."""
    if channel is None:
        return scale.amax() if scale.numel() else scale.new_zeros(())
    others = [d for d in range(x.ndim) if d != dim % x.ndim]
    position = others.index(channel % x.ndim)
    grid = scale.reshape(*(x.shape[d] for d in others), scale.shape[1])
    reduced = [d for d in range(grid.ndim) if d != position]
    return grid.amax(reduced, keepdim=True).expand(*grid.shape[:-1], 1).reshape(-1, 1)


def _inverse(scale: Tensor) -> Tensor:
    usable = scale >= _TINY
    return torch.where(usable, 1.0 / torch.where(usable, scale, 1.0), 0.0)


def _round(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    usable = (scale >= _TINY)[..., None]
    return torch.where(usable, values / torch.where(usable, scale[..., None], 1.0), 0.0).round().clamp(low, high)


# --- storage ----------------------------------------------------------------------------------------------------------


def _scale_dtype(scale_bits: int) -> torch.dtype:
    return torch.uint8 if scale_bits <= 8 else torch.int32 if scale_bits == 16 else torch.int16


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (R, n, V) to bytes: two to a byte for at most 4 bits, low nibble first."""
    flat = codes.flatten(1)
    if bits > 4:
        return flat.to(torch.int16).to(torch.uint8).contiguous()  # the low byte: two's complement where negative
    nibbles = flat.to(torch.int16) & 15
    if nibbles.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1))
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int, signed: bool, size: int) -> Tensor:
    """The inverse of `pack_codes` for rows of `size` codes, int16."""
    if bits > 4:
        codes, half = packed.to(torch.int16), 128
    else:
        pairs = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
        codes, half = pairs[:, :size].to(torch.int16), 8
    return (codes ^ half) - half if signed else codes
