"""Winograd: the transforms are right, products are counted pair by pair, and the published gains follow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.hwmodel.operation import Operation
from dgcomp.hwmodel.winograd import (
    PUBLISHED_GAINS,
    WinogradEngine,
    count_products,
    published_density_product,
    transform_images,
    transform_weights,
)

A_T = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])


def test_transforms_give_the_convolution() -> None:
    weight, images = torch.randn(5, 3, 3, 3), torch.randn(2, 3, 8, 6)
    u = transform_weights(weight)
    v = transform_images(torch.nn.functional.pad(images, (1,) * 4))
    m = torch.einsum("tck,tnc->tnk", u, v).reshape(4, 4, 2, 4, 3, 5)  # [4, 4, N, nH, nW, K]
    tiles = torch.einsum("ir,rsnhwk,js->nkhiwj", A_T, m, A_T)
    torch.testing.assert_close(tiles.reshape(2, 5, 8, 6), torch.conv2d(images, weight, padding=1), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_products_equal_the_loop(channels: int, outputs: int, tiles: int, density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = (torch.rand(16, channels, outputs, generator=generator) < density).float()
    v = (torch.rand(16, tiles, channels, generator=generator) < 0.5).float()
    expected = [
        sum(int((u[t, c] != 0).sum()) for n in range(tiles) for c in range(channels) if v[t, n, c] != 0)
        for t in range(16)
    ]
    assert count_products(u, v).tolist() == expected


def test_dense_winograd_saves_2_25_over_direct() -> None:
    u, v = torch.ones(16, 32, 48), torch.ones(16, 49, 32)
    direct, dense, sparse = (WinogradEngine(mode).run(u, v) for mode in ("direct", "dense", "sparse"))  # type: ignore[arg-type]
    assert direct.breakdown["multiplies_count"] == 36 * 32 * 48 * 49
    assert direct.breakdown["multiplies_count"] / dense.breakdown["multiplies_count"] == 2.25
    assert direct.cycles / dense.cycles == pytest.approx(2.25, rel=1e-3)
    assert sparse == dense


@pytest.mark.parametrize("name", PUBLISHED_GAINS)
def test_published_gains_from_their_density_products(name: str) -> None:
    gain = PUBLISHED_GAINS[name]
    product = published_density_product(gain)
    assert product == pytest.approx({"CIFAR-10": 0.216, "CIFAR-100": 0.331, "ImageNet": 0.208}[name], abs=0.0005)
    # Random layers with d_w * d_a = product; the split does not matter.
    generator = torch.Generator().manual_seed(0)
    weight_density = 0.45
    u = (torch.rand(16, 64, 64, generator=generator) < weight_density).float()
    v = (torch.rand(16, 196, 64, generator=generator) < product / weight_density).float()
    direct, sparse = (WinogradEngine(mode).run(u, v) for mode in ("direct", "sparse"))  # type: ignore[arg-type]
    measured = direct.breakdown["multiplies_count"] / sparse.breakdown["multiplies_count"]
    assert measured == pytest.approx(gain, rel=0.02)


def test_the_busiest_position_sets_the_time() -> None:
    u, v = torch.zeros(16, 8, 8), torch.ones(16, 10, 8)
    u[5] = 1
    cost = WinogradEngine(multipliers=16, adders=10_000).run(u, v)
    assert cost.breakdown["multiplier_cycles"] == 640
    assert cost.breakdown["balanced_cycles"] == 40


def test_price_of_a_convolution() -> None:
    weight, images = torch.randn(4, 3, 3, 3), torch.randn(2, 3, 8, 8)
    padded = torch.nn.functional.pad(images, (1,) * 4)
    operation = Operation("conv", "conv", "forward", 4, 27, 64 * 10, filters=weight, images=padded)
    cost = WinogradEngine().price(operation)
    assert cost is not None
    whole = WinogradEngine().run_convolution(weight, images)
    assert cost.breakdown["multiplies_count"] == pytest.approx(5 * whole.breakdown["multiplies_count"])
    assert cost.notes == ("from 2 of 10 images",)
    assert WinogradEngine().price(Operation("fc", "linear", "forward", 4, 27, 64)) is None


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="mode must be sparse, dense or direct, got 'fast'"):
        WinogradEngine("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multipliers must be a multiple of 16, got 20"):
        WinogradEngine(multipliers=20)
    with pytest.raises(ValueError, match=r"weight must be \[16, C, K\]"):
        count_products(torch.ones(3, 4), torch.ones(16, 2, 4))
    with pytest.raises(ValueError, match="weight and activation must agree in C, got 3 and 4"):
        count_products(torch.ones(16, 3, 4), torch.ones(16, 2, 4))
    with pytest.raises(ValueError, match=r"weight must have shape \[outputs, inputs, 3, 3\], got \(2, 2, 5, 5\)"):
        transform_weights(torch.ones(2, 2, 5, 5))
