"""VS-Quant: energy, area and time of a vector multiply-accumulate unit with a scale for every 16 elements.

Dai et al., "VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural Network Inference", MLSys 2021
(arXiv 2102.04503), sections 5 and 6. The processing element (PE) is MAGNet's: vectors of 16 integer products are summed
and, where scales are per vector, multiplied by the product of the two vectors' scales; the post-processing unit
finds the next layer's scales. A design is written W/A/ws/as: bits of weights, activations, weight scales and
activation scales; "-" stands for one scale per output channel (weights) or layer (activations).

The paper prints energy and performance per area of some twenty synthesized designs, relative to 8/8/-/-. Two smooth
laws are fitted to them (`fit_energy`, `fit_area`): area is a sum over the bits (1 % off at a design left out of the
fit, 2 % at worst), energy a product of powers (6 % off, 12 % at worst: synthesis is noisier than any smooth law). At
published designs the published figure is reproduced, and its residual fades within a bit or so.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.operation import Operation, Precision

__all__ = [
    "PUBLISHED_AREA",
    "PUBLISHED_ENERGY",
    "VSQuantPE",
    "datapath_bits",
    "gated_share",
    "parse_design",
    "scale_codes",
]

Array = npt.NDArray[Any]

VECTOR = 16  # elements that share a scale, in the whole hardware study

# Energy per operation relative to 8/8/-/-, full-width scale products. Figures 3 to 6, read from pixels (+-0.005 in
# Figure 3, +-0.01 in the others); the mean where two figures show a design. Figure 6's "6/8/10/8" is 3/8/4/10: it lies
# at that design's place in Figure 5 and scores its accuracy in Table 7.
PUBLISHED_ENERGY: Mapping[str, float] = {
    "4/4/-/-": 0.489,
    "4/4/4/4": 0.644,
    "6/6/-/-": 0.764,
    "6/6/4/4": 1.043,
    "6/8/-/-": 0.8225,
    "6/8/8/-": 0.980,
    "8/8/-/-": 1.0,
    "8/8/6/-": 1.043,
    "4/6/4/-": 0.573,
    "4/4/4/6": 0.761,
    "4/3/4/6": 0.72,
    "6/3/-/4": 0.552,
    "6/4/-/6": 1.079,
    "6/8/6/-": 0.986,
    "4/8/6/10": 1.346,
    "6/8/-/10": 1.221,
    "4/8/4/10": 1.225,
    "3/8/6/10": 1.189,
    "3/8/4/10": 1.043,
    "4/8/-/10": 0.9895,
    "4/8/-/8": 0.988,
    "3/6/6/10": 1.0,
    "3/6/4/10": 1.051,
}
# Reproduced like the others, but kept out of the smooth law: more energy than 8/8/-/- at the area of a 4-bit design.
ENERGY_OUTLIER = "6/4/-/6"

# Area per throughput relative to 8/8/-/-: 1 / (performance per area), Figures 4 to 6.
PUBLISHED_AREA: Mapping[str, float] = {
    "6/6/-/-": 1 / 1.284,
    "6/8/-/-": 1 / 1.2285,
    "6/8/8/-": 1 / 1.133,
    "8/8/-/-": 1.0,
    "4/6/4/-": 1 / 1.572,
    "4/4/4/6": 1 / 1.587,
    "4/3/4/6": 1 / 1.634,
    "6/3/-/4": 1 / 1.351,
    "6/4/-/6": 1 / 1.307,
    "6/8/6/-": 1 / 1.137,
    "4/8/6/10": 1 / 1.3465,
    "6/8/-/10": 1 / 1.1805,
    "4/8/4/10": 1 / 1.401,
    "3/8/6/10": 1 / 1.556,
    "3/8/4/10": 1 / 1.6075,
    "4/8/-/10": 1 / 1.5015,
    "4/8/-/8": 1 / 1.515,
    "3/6/6/10": 1 / 1.65,
    "3/6/4/10": 1 / 1.703,
}

# Energy with the scale product rounded to 4 and to 6 bits, relative to the full width. Figure 3.
ROUNDED_ENERGY: Mapping[str, Mapping[int, float]] = {
    "4/4/4/4": {4: 0.365 / 0.644, 6: 0.425 / 0.644},
    "6/6/4/4": {4: 0.629 / 1.043, 6: 0.741 / 1.043},
    "6/8/8/-": {4: 0.799 / 0.980, 6: 0.825 / 0.980},
    "8/8/6/-": {4: 0.859 / 1.043, 6: 1.040 / 1.043},
}

# Section 6: the baseline's 8-bit PE in 16 nm takes 69 fJ an operation and gives 2.1 TOPS/mm2; a MAC is 2 operations.
BASELINE_JOULES_PER_MAC = 2 * 69e-15
BASELINE_MM2_PER_MAC_PER_S = 2 / 2.1e12

RESIDUAL_REACH_BITS = 0.5
NO_SCALE_DISTANCE_BITS = 4.0  # between a design without a scale and one with it


def parse_design(text: str) -> Precision:
    """Read "4/4/4/6" or "6/8/-/10"; raises ValueError for anything else or bits outside the paper's design space."""
    if not re.fullmatch(r"\d+/\d+/(\d+|-)/(\d+|-)", text):
        raise ValueError(f'design must look like "4/4/4/6" or "6/8/-/10" (W/A/ws/as bits), got {text!r}')
    weight, activation, *scales = text.split("/")
    for name, bits in (("weight", int(weight)), ("activation", int(activation))):
        if not 3 <= bits <= 8:
            raise ValueError(f"{name} bits must be in [3, 8], the synthesized designs, got {bits} in {text!r}")
    for bits_text in scales:
        if bits_text != "-" and not 3 <= int(bits_text) <= 10:
            raise ValueError(f'scale bits must be "-" or in [3, 10], the synthesized designs, got {text!r}')
    weight_scale, activation_scale = (None if bits == "-" else int(bits) for bits in scales)
    return Precision(int(weight), int(activation), weight_scale, activation_scale)


def datapath_bits(precision: Precision, product_bits: int | None = None) -> dict[str, int]:
    """Widths inside the PE (section 5): a product, the dot product of a vector, the scales' product, a partial sum.

    N-bit operands and M-bit scales give 2N, 2N + log2(16), 2M and 2N + log2(16) + 2M bits; `product_bits` rounds the
    product of the scales.
    """
    product = precision.weight_bits + precision.activation_bits
    dot_product = product + (VECTOR - 1).bit_length()
    scales = (precision.weight_scale_bits or 0) + (precision.activation_scale_bits or 0)
    scales = scales if product_bits is None else min(scales, product_bits)
    return {
        "product": product,
        "dot_product": dot_product,
        "scale_product": scales,
        "partial_sum": dot_product + scales,
    }


# --- Fits to the published designs ------------------------------------------------------------------------------


def _fields(precision: Precision) -> tuple[int, int, int, int, int, int]:
    weight_scale, activation_scale = precision.weight_scale_bits or 0, precision.activation_scale_bits or 0
    has = int(weight_scale > 0), int(activation_scale > 0)
    return (precision.weight_bits, precision.activation_bits, weight_scale, activation_scale, *has)


def area_features(precision: Precision) -> list[float]:
    """Area is a constant, plus a share for each bit of W, A, ws and as, plus the scale multiplier's own."""
    w, a, ws, as_, has_ws, has_as = _fields(precision)
    return [1.0, w, a, ws, as_, has_ws * has_as]


def energy_features(precision: Precision) -> list[float]:
    """Log energy: multipliers grow with W * A; scale bits and the scale multiplier come on top."""
    w, a, ws, as_, has_ws, has_as = _fields(precision)
    return [1.0, float(np.log(w * a)), ws + as_, has_ws, has_ws * has_as]


@cache
def fit_area() -> Array:
    """Coefficients of `area_features`, by least relative squares."""
    designs = [parse_design(text) for text in PUBLISHED_AREA]
    features = np.array([area_features(design) for design in designs])
    values = np.array(list(PUBLISHED_AREA.values()))
    return np.asarray(np.linalg.lstsq(features / values[:, None], np.ones(len(values)), rcond=None)[0])


@cache
def fit_energy() -> Array:
    """Coefficients of `energy_features` for the logarithm, by least squares without the outlier."""
    texts = [text for text in PUBLISHED_ENERGY if text != ENERGY_OUTLIER]
    features = np.array([energy_features(parse_design(text)) for text in texts])
    logs = np.log([PUBLISHED_ENERGY[text] for text in texts])
    return np.asarray(np.linalg.lstsq(features, logs, rcond=None)[0])


def relative_area(precision: Precision) -> float:
    """Area per throughput relative to 8/8/-/-."""
    smooth = float(np.dot(area_features(precision), fit_area()))
    return smooth * float(np.exp(_residual(precision, "area")))


def relative_energy(precision: Precision, product_bits: int | None = None) -> float:
    """Energy per operation relative to 8/8/-/-; `product_bits` rounds the product of the scales (None: full width)."""
    smooth = float(np.exp(np.dot(energy_features(precision), fit_energy())))
    return smooth * float(np.exp(_residual(precision, "energy"))) * _rounding_factor(precision, product_bits)


@cache
def _residual_weights(quantity: str) -> tuple[Array, Array]:
    """Published designs, and weights with which their kernels add up to the log residuals of the smooth law."""
    published = PUBLISHED_AREA if quantity == "area" else PUBLISHED_ENERGY
    designs = [parse_design(text) for text in published]
    if quantity == "area":
        smooth = np.log([np.dot(area_features(design), fit_area()) for design in designs])
    else:
        smooth = np.array([np.dot(energy_features(design), fit_energy()) for design in designs])
    points = np.array([_point(design) for design in designs])
    residuals = np.log(list(published.values())) - smooth
    return points, np.linalg.solve(_kernel(points, points), residuals)


def _residual(precision: Precision, quantity: str) -> float:
    points, weights = _residual_weights(quantity)
    return float((_kernel(np.array([_point(precision)]), points) @ weights)[0])


def _point(precision: Precision) -> list[float]:
    w, a, ws, as_, has_ws, has_as = _fields(precision)
    return [w, a, ws, as_, NO_SCALE_DISTANCE_BITS * has_ws, NO_SCALE_DISTANCE_BITS * has_as]


def _kernel(p: Array, q: Array) -> Array:
    squared: Array = ((p[:, None, :] - q[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squared / (2 * RESIDUAL_REACH_BITS**2)))


def _rounding_factor(precision: Precision, product_bits: int | None) -> float:
    """Published factor of this design, or the mean of the published designs with as many scales."""
    full = (precision.weight_scale_bits or 0) + (precision.activation_scale_bits or 0)
    if product_bits is None or product_bits >= full:
        return 1.0
    if product_bits not in (4, 6):
        raise ValueError(f"product_bits must be 4, 6 or None (the widths synthesized), got {product_bits}")
    if str(precision) in ROUNDED_ENERGY:
        return ROUNDED_ENERGY[str(precision)][product_bits]
    both = precision.weight_scale_bits is not None and precision.activation_scale_bits is not None
    similar = ("4/4/4/4", "6/6/4/4") if both else ("6/8/8/-", "8/8/6/-")
    return float(np.mean([ROUNDED_ENERGY[text][product_bits] for text in similar]))


# --- Data gating, measured on data ------------------------------------------------------------------------------


def scale_codes(x: Tensor, bits: int, scale_bits: int, *, per_row: bool) -> Tensor:
    """Integer scales of every vector of 16 along the last dimension, as the hardware stores them.

    x: [rows, inner] -> int64 [rows, ceil(inner / 16)]. Equations 7a to 7d: the vector's largest magnitude over the
    largest code of `bits`, in units of gamma, which is one per row (weights) or one for the tensor (activations).
    """
    padded = torch.nn.functional.pad(x.detach().float().abs(), (0, -x.shape[-1] % VECTOR))
    scale = padded.reshape(x.shape[0], -1, VECTOR).amax(dim=2) / (2 ** (bits - 1) - 1)
    largest = scale.amax(dim=1, keepdim=True) if per_row else scale.amax()
    gamma = largest / (2**scale_bits - 1)
    return torch.where(gamma > 0, scale / gamma, torch.zeros_like(scale)).round().long()


def gated_share(weight_scales: Tensor, activation_scales: Tensor, full_bits: int, product_bits: int) -> float:
    """Share of vector products whose scale product rounds to zero, so that the multiplier need not switch.

    weight_scales: int [rows, vectors], activation_scales: int [columns, vectors] (see `scale_codes`);
    the product of `full_bits` is rounded to nearest at `product_bits`.
    """
    threshold = 2 ** (full_bits - product_bits) / 2  # below half a step of the rounded product
    gated = sum(
        int((weight_scales[:, j, None] * activation_scales[None, :, j] < threshold).sum())
        for j in range(weight_scales.shape[1])
    )
    return gated / (weight_scales.shape[0] * activation_scales.shape[0] * weight_scales.shape[1])


@dataclass(frozen=True, slots=True)
class VSQuantPE:
    """Processing elements of one design, such as `VSQuantPE("4/4/4/6")`; "auto" takes each operation's own precision.

    Energy and area are those of the published PE (16 nm): multipliers, buffers, accumulators and post-processing.
    Memory outside the PEs is not in them. Clock and size are this package's choice: the paper prints ratios.
    """

    design: str = "4/4/4/6"
    product_bits: int | None = None
    """Bits that the product of the two scales is rounded to: 4, 6 or None for its full width."""
    num_pes: int = 16
    lanes: int = 16
    """Vector units of a PE; each takes 16 products a cycle."""
    clock_ghz: float = 1.0

    def __post_init__(self) -> None:
        if self.design != "auto":
            relative_energy(parse_design(self.design), self.product_bits)  # raises for what is out of range
        if self.num_pes < 1 or self.lanes < 1:
            raise ValueError(f"num_pes and lanes must be at least 1, got {self.num_pes} and {self.lanes}")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"vsquant-{self.design}" + (f"-p{self.product_bits}" if self.product_bits else "")

    @property
    def macs_per_cycle(self) -> int:
        """Multiply-accumulates of all PEs in one cycle."""
        return self.num_pes * self.lanes * VECTOR

    def run(self, weight: Tensor, activation: Tensor) -> Cost:
        """Cost of `activation` [..., inner] times `weight` [rows, inner] transposed, and the gating its data allow.

        Raises ValueError where the inner dimensions differ.
        """
        if weight.ndim != 2 or activation.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"weight must be [rows, inner] and activation [..., inner], got {tuple(weight.shape)} and "
                f"{tuple(activation.shape)}"
            )
        if self.design == "auto":
            raise ValueError('design must be given, such as "4/4/4/6", to run two tensors; "auto" is for profiles')
        vectors = activation.detach().reshape(-1, weight.shape[1])
        cost = self.gemm(parse_design(self.design), weight.shape[0], weight.shape[1], len(vectors))
        return cost + Cost(breakdown=self._gating(parse_design(self.design), weight, vectors, cost))

    def gemm(
        self,
        precision: Precision,
        rows: int,
        inner: int,
        columns: int,
        copies: int = 1,
        *,
        channels: int | None = None,
    ) -> Cost:
        """Cost of [rows, inner] times [inner, columns], dense, with the inner dimension padded to whole vectors.

        A vector lies within the channels of one kernel position (section 3), so a convolution pads at each of its
        `inner / channels` positions: three input channels fill 3 of 16 elements.
        """
        channels = channels or inner
        vectors = inner // channels * -(-channels // VECTOR)
        vector_products = rows * vectors * columns * copies
        cycles = copies * -(-rows * columns // (self.num_pes * self.lanes)) * vectors
        joules = vector_products * VECTOR * BASELINE_JOULES_PER_MAC * relative_energy(precision, self.product_bits)
        macs_per_s = self.macs_per_cycle * self.clock_ghz * 1e9
        useful = rows * inner * columns * copies
        return Cost(
            cycles=cycles,
            seconds=cycles / (self.clock_ghz * 1e9),
            joules=joules,
            area_mm2=macs_per_s * BASELINE_MM2_PER_MAC_PER_S * relative_area(precision),
            breakdown={
                "pe_joules": joules,
                "multiplies_count": useful,
                "padding_multiplies_count": vector_products * VECTOR - useful,
                "vector_products_count": vector_products,
            },
        )

    def _gating(self, precision: Precision, weight: Tensor, vectors: Tensor, cost: Cost) -> dict[str, float]:
        scales = precision.weight_scale_bits, precision.activation_scale_bits
        if scales[0] is None or scales[1] is None:
            return {}
        full = scales[0] + scales[1]
        share = gated_share(
            scale_codes(weight, precision.weight_bits, scales[0], per_row=True),
            scale_codes(vectors, precision.activation_bits, scales[1], per_row=False),
            full,
            full if self.product_bits is None else min(full, self.product_bits),
        )
        return {"gated_vector_products_count": share * cost.breakdown["vector_products_count"]}

    def price(self, operation: Operation) -> Cost | None:
        """Cost of one operation of a training step, dense; None at "auto" for precisions outside the designs."""
        try:
            precision = parse_design(str(operation.precision) if self.design == "auto" else self.design)
        except ValueError:
            return None
        shape = operation.rows, operation.inner, operation.columns, operation.copies
        return self.gemm(precision, *shape, channels=operation.channels)
