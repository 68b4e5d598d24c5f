"""Sparse Winograd convolution: products, transforms and gathers of F(2x2, 3x3), against direct and dense baselines.

Liu et al., "Efficient Sparse-Winograd Convolutional Neural Networks", ICLR 2018 (arXiv 1802.06367). An output tile of
2x2 needs 16 products per pair of channels instead of 36. They form 16 independent matrix products, one for each
position t of the transformed 4x4 tile, and only pairs of a non-zero weight U[t, c, k] and a non-zero activation
V[t, tile, c] are multiplied. With independent densities the gain over direct convolution is 2.25 / (d_w * d_a); here
pairs are counted, so whatever weights and activations have in common is in the figure.

The paper counts multiplications and names no chip. `WinogradEngine` is therefore a generic one, this package's own:
16 equal groups of multipliers, one for each t, which wait for the busiest of them.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.energy import EIE_TABLE_1
from dgcomp.hwmodel.operation import Operation

__all__ = ["WinogradEngine", "count_products", "published_density_product", "transform_images", "transform_weights"]

Array = npt.NDArray[Any]

POSITIONS = 16
DIRECT_MULTIPLIES_PER_TILE = 36  # 4 outputs of 9 products
# Additions of B^T d B on a 4x4 tile: 4 in each of 4 columns and 4 rows. Of A^T M A: 4 in each of 4 columns and 2 rows.
INPUT_TRANSFORM_ADDS = 32
OUTPUT_TRANSFORM_ADDS = 24

_B_T = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

# Reductions of multiplications in the abstract, against direct dense convolution.
PUBLISHED_GAINS = {"CIFAR-10": 10.4, "CIFAR-100": 6.8, "ImageNet": 10.8}


def published_density_product(gain: float) -> float:
    """d_w * d_a that a published gain implies: 2.25 / gain."""
    return DIRECT_MULTIPLIES_PER_TILE / POSITIONS / gain


def transform_weights(weight: Tensor) -> Tensor:
    """G g G^T of spatial weights [outputs K, inputs C, 3, 3]: [16, C, K]."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must have shape [outputs, inputs, 3, 3], got {tuple(weight.shape)}")
    g = _G.to(weight)
    return torch.einsum("ir,kcrs,js->ijck", g, weight.detach(), g).reshape(POSITIONS, weight.shape[1], -1)


def transform_images(images: Tensor) -> Tensor:
    """B^T d B of every 4x4 tile, stride 2, of padded images [N, C, H, W]: [16, tiles, C].

    Odd output sizes are rounded up to whole tiles with zeros, as hardware does.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 3:
        raise ValueError(f"images must have shape [N, C, H >= 3, W >= 3], got {tuple(images.shape)}")
    padded = torch.nn.functional.pad(images.detach().float(), (0, images.shape[3] % 2, 0, images.shape[2] % 2))
    tiles = padded.unfold(2, 4, 2).unfold(3, 4, 2)  # [N, C, nH, nW, 4, 4]
    transformed = torch.einsum("ir,nchwrs,js->ijnhwc", _B_T, tiles, _B_T)
    return transformed.reshape(POSITIONS, -1, images.shape[1])


def count_products(weight: Tensor, activation: Tensor) -> Array:
    """Pairs of non-zero factors at each of the 16 positions: int64 [16].

    weight: [16, C, K] in the Winograd domain; activation: [16, tiles, C]. Raises ValueError for other shapes.
    """
    if weight.ndim != 3 or activation.ndim != 3 or weight.shape[0] != POSITIONS or activation.shape[0] != POSITIONS:
        raise ValueError(
            f"weight must be [16, C, K] and activation [16, tiles, C], got {tuple(weight.shape)} and "
            f"{tuple(activation.shape)}"
        )
    if weight.shape[1] != activation.shape[2]:
        raise ValueError(f"weight and activation must agree in C, got {weight.shape[1]} and {activation.shape[2]}")
    weights = (weight != 0).sum(dim=2).long()
    activations = (activation != 0).sum(dim=1).long()
    return np.asarray((weights * activations).sum(dim=1).cpu().numpy())


@dataclass(frozen=True, slots=True)
class WinogradEngine:
    """A generic fp32 engine for 3x3 convolutions with stride 1; energies of EIE's Table I (45 nm).

    `mode` is "sparse" (pairs of nonzeros), "dense" (all 16 products) or "direct" (36 per tile, no transforms).
    """

    mode: Literal["sparse", "dense", "direct"] = "sparse"
    multipliers: int = 256
    adders: int = 256
    """Adders of the two transforms; a product's own addition belongs to its multiplier."""
    clock_ghz: float = 0.8

    def __post_init__(self) -> None:
        if self.mode not in ("sparse", "dense", "direct"):
            raise ValueError(f"mode must be sparse, dense or direct, got {self.mode!r}")
        if self.multipliers < POSITIONS or self.multipliers % POSITIONS:
            raise ValueError(f"multipliers must be a multiple of {POSITIONS}, got {self.multipliers}")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"winograd-{self.mode}"

    def run(self, weight: Tensor, activation: Tensor) -> Cost:
        """Cost of a layer with weights [16, C, K] and activations [16, tiles, C], both in the Winograd domain.

        Raises ValueError for other shapes.
        """
        pairs = count_products(weight, activation)
        channels, outputs, tiles = weight.shape[1], weight.shape[2], activation.shape[1]
        if self.mode == "direct":
            return self._cost(
                np.full(POSITIONS, DIRECT_MULTIPLIES_PER_TILE / POSITIONS * channels * outputs * tiles), 0, 0
            )
        products = pairs if self.mode == "sparse" else np.full(POSITIONS, channels * outputs * tiles)
        adds = tiles * (INPUT_TRANSFORM_ADDS * channels + OUTPUT_TRANSFORM_ADDS * outputs)
        nonzeros = int((activation != 0).sum()) if self.mode == "sparse" else activation.numel()
        return self._cost(products, adds, nonzeros)

    def run_convolution(self, weight: Tensor, images: Tensor, *, padding: int = 1) -> Cost:
        """Cost of an ordinary 3x3 convolution [K, C, 3, 3] of images [N, C, H, W], transformed as it is."""
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        return self.run(transform_weights(weight), transform_images(padded))

    def _cost(self, products: Array, adds: float, gathered: float) -> Cost:
        multiplier_cycles = float(np.ceil(products.max(initial=0) / (self.multipliers / POSITIONS)))
        transform_cycles = float(np.ceil(adds / self.adders))
        cycles = max(multiplier_cycles, transform_cycles)  # tiles stream through, so the slower stage sets the pace
        multiplies = float(products.sum())
        joules = {
            "multiplier_joules": EIE_TABLE_1.joules("fp32_mul", multiplies),
            "accumulate_joules": EIE_TABLE_1.joules("fp32_add", multiplies),
            "transform_joules": EIE_TABLE_1.joules("fp32_add", adds),
            # One word per operand pair for the weight, and each gathered activation once.
            "gather_joules": EIE_TABLE_1.joules("sram_32b", multiplies + gathered),
        }
        return Cost(
            cycles=cycles,
            seconds=cycles / (self.clock_ghz * 1e9),
            joules=sum(joules.values()),
            breakdown={
                **joules,
                "multiplier_cycles": multiplier_cycles,
                "transform_cycles": transform_cycles,
                "balanced_cycles": multiplies / self.multipliers,
                "multiplies_count": multiplies,
                "transform_adds_count": float(adds),
                "gathered_count": float(gathered),
            },
        )

    def price(self, operation: Operation) -> Cost | None:
        """Cost of one 3x3 convolution with stride 1, spatial or in the Winograd domain; None for all else.

        Priced from its weights and sampled images or tiles. The gradient of the weight is no convolution of this
        shape: not priced.
        """
        if operation.winograd is not None:
            weights, tiles = operation.winograd
            note = f"from {tiles.shape[1]} of {operation.columns} tiles"
            return replace(self.run(weights, tiles) * (operation.columns / tiles.shape[1]), notes=(note,))
        if operation.filters is None or operation.images is None:
            return None
        activation = transform_images(operation.images)
        positions = (operation.images.shape[2] - 2) * (operation.images.shape[3] - 2) * operation.images.shape[0]
        cost = self.run(transform_weights(operation.filters.float()), activation) * (operation.columns / positions)
        note = (
            f"from {operation.images.shape[0]} of {operation.columns * operation.images.shape[0] // positions} images"
        )
        return replace(cost, notes=(note,))
