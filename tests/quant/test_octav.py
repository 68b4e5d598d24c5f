"""OCTAV's scale against closed forms, brute force and its own slow reference.

Golden values: fixed points of the published recursion for known distributions, and steps of least error of a uniform
quantizer (Max 1960 and exact integrals of the densities), each to the digits given.
"""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import laplace, norm, t

from dgcomp.quant import BitHistogram, code_range, octav_scale
from dgcomp.quant.octav import _levels, reference_steps

N = 250_001  # just too small for the sampled start of large tensors: exact
GAUSS = torch.tensor(norm.ppf((np.arange(N) + 0.5) / N), dtype=torch.float32)
LAPLACE = torch.tensor(laplace.ppf((np.arange(N) + 0.5) / N), dtype=torch.float32)
STUDENT = torch.tensor(t.ppf((np.arange(N) + 0.5) / N, 3), dtype=torch.float32)
UNIFORM = torch.tensor((np.arange(N) + 0.5) / N, dtype=torch.float32)

# s / b solves u (e**u - 1) = 3 4**B; Gauss: c s (2 Phi(s) - 1) + 2 s (1 - Phi(s)) = 2 phi(s). B = 2..8.
LAPLACE_FIXED_POINTS = (2.873734, 3.913293, 5.034090, 6.206505, 7.413658, 8.645778, 9.896805)
GAUSS_FIXED_POINTS = (1.738835, 2.161117, 2.562090, 2.937070, 3.287162, 3.615183, 3.924054)
# ACIQ weighs the uniform noise of all elements, clipped ones too: u = W(3 4**B) solves u e**u = 3 4**B; Gauss likewise.
LAPLACE_ACIQ = (2.830683, 3.897229, 5.028640, 6.204766, 7.413126, 8.645620, 9.896760)
GAUSS_ACIQ = (1.710635, 2.151593, 2.559136, 2.936201, 3.286914, 3.615114, 3.924036)
# Step of least mean squared error and that error, narrow grids +-(2**(B-1) - 1).
GAUSS_NARROW = {
    2: (1.224006, 0.1901740),
    3: (0.650770, 4.685997e-2),
    4: (0.353411, 1.288939e-2),
    5: (0.193249, 3.693220e-3),
}
LAPLACE_NARROW = {2: (2.0, 0.5284822), 3: (1.162134, 0.1661730), 4: (0.688559, 5.479044e-2), 5: (0.406536, 1.817026e-2)}
# The published excess of the grid-aware recursion over the best step, in parts of one (2 bits: after a Lloyd step).
GAUSS_EXCESS = {2: 0.025, 3: 0.0023, 4: 0.0004, 5: 0.0001}
LAPLACE_EXCESS = {2: 0.006, 3: 0.0031, 4: 0.0004, 5: 0.0001}


def _reference(x: torch.Tensor, bits: int, signed: bool = True, grid: str = "exact", narrow: bool = True) -> float:
    negative, positive, unit, overload = _levels(bits, signed, narrow, grid)
    return float(reference_steps(x.reshape(1, -1).float(), negative, positive, overload)[0] * unit)


@functools.cache
def _stratum_means(density: str, count: int = 1_000_000) -> torch.Tensor:
    """A sample whose elements are the means of equally likely strata, signs alternating: its tail sums are exact."""
    tail = np.linspace(1, 0, count + 1)
    if density == "gauss":
        edges = norm.isf(tail / 2)
        means = 2 * count * -np.diff(norm.pdf(edges))
    elif density == "laplace":
        edges = -np.log(np.maximum(tail, 1e-300))
        moment = np.append((1 + edges[:-1]) * tail[:-1], 0.0)
        means = count * -np.diff(moment)
    else:
        means = 1 - (tail[1:] + tail[:-1]) / 2
    return torch.tensor(means * np.where(np.arange(count) % 2, 1, -1), dtype=torch.float32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_published_fixed_points_to_1e_5(bits: int) -> None:
    start = torch.tensor(1.0)  # a start of one's own is iterated to the end on all of the data, however large
    for density, golden in (("gauss", GAUSS_FIXED_POINTS), ("laplace", LAPLACE_FIXED_POINTS)):
        x = _stratum_means(density)
        assert octav_scale(x, bits, grid="paper", start=start).item() == pytest.approx(golden[bits - 2], rel=1e-5)
        if bits > 2:  # an unsigned grid has one more bit for its magnitudes
            unsigned = octav_scale(x.abs(), bits - 1, signed=False, grid="paper", start=start)
            assert unsigned.item() == pytest.approx(golden[bits - 2], rel=1e-5)
    c = 4.0**-bits / 3
    uniform = octav_scale(_stratum_means("uniform"), bits, grid="paper", start=start * 0.7)
    assert uniform.item() == pytest.approx(1 / (1 + (2 * c) ** 0.5), rel=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_aciq_constants_and_their_distance_from_octav(bits: int) -> None:
    """ACIQ's clips are zeros of its derivative, and OCTAV's come closer to them with every bit."""
    c, gauss, exponential = 4.0**-bits / 3, GAUSS_ACIQ[bits - 2], LAPLACE_ACIQ[bits - 2]
    assert c * gauss == pytest.approx(2 * (norm.pdf(gauss) - gauss * norm.sf(gauss)), rel=1e-5)
    assert c * exponential == pytest.approx(np.exp(-exponential), rel=1e-5)
    for density, aciq, fixed_points in (
        ("gauss", gauss, GAUSS_FIXED_POINTS),
        ("laplace", exponential, LAPLACE_FIXED_POINTS),
    ):
        s = octav_scale(_stratum_means(density), bits, grid="paper", start=torch.tensor(1.0)).item()
        assert 0 < s / aciq - 1 < 0.02 * 4.0 ** (2 - bits) * 1.5
        assert s == pytest.approx(fixed_points[bits - 2], rel=1e-5)


# Half-distributions on 0..2**B - 1: (step, error) of least squares.
HALF_NORMAL = {2: (0.650770, 4.68600e-2), 3: (0.353411, 1.28894e-2), 4: (0.193249, 3.69322e-3),
               6: (0.057261, 3.08622e-4), 8: (0.016528, 2.50081e-5)}  # fmt: skip
EXPONENTIAL = {2: (1.162134, 0.166173), 3: (0.688559, 5.47904e-2), 4: (0.406536, 1.81703e-2),
               6: (0.136791, 1.91989e-3), 8: (0.043747, 1.88065e-4)}  # fmt: skip
TWO_COMPLEMENT = {
    "gauss": ((1.048385, 1.494311e-1), (0.601824, 4.063825e-2), (0.338608, 1.186404e-2), (0.188792, 3.525959e-3),
              (0.104179, 1.042853e-3), (0.056887, 3.045785e-4), (0.030766, 8.770692e-5)),
    "laplace": ((1.717034, 4.139893e-1), (1.078271, 1.439891e-1), (0.661353, 5.052055e-2), (0.397785, 1.738135e-2),
                (0.234640, 5.819651e-3), (0.135962, 1.896240e-3), (0.077571, 6.027284e-4)),
}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_unsigned_grids_of_half_distributions(bits: int) -> None:
    for density, golden in (("gauss", HALF_NORMAL), ("laplace", EXPONENTIAL)):
        x = _stratum_means(density).abs()
        high, (best_step, best_error) = 2**bits - 1, golden[bits]
        least = _error(x, best_step, 0, high)
        assert least == pytest.approx(best_error, rel=1e-2)  # at 8 bits the outermost stratum hides some
        step = octav_scale(x, bits, signed=False).item() / high
        assert _error(x, step, 0, high) <= least * (1.01 if bits == 2 else 1.004)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("density", TWO_COMPLEMENT)
def test_grids_of_two_complement_codes(density: str, bits: int) -> None:
    """The noise model splits at both ends, so 2 bits, codes -2..1, stay a few percent above the best."""
    low, high = code_range(bits, narrow=False)
    best_step, best_error = TWO_COMPLEMENT[density][bits - 2]
    x = _stratum_means(density)
    least = _error(x, best_step, low, high)
    assert least == pytest.approx(best_error, rel=1e-2)
    step = octav_scale(x, bits, narrow=False).item() / -low
    assert _error(x, step, low, high) <= least * {2: 1.12, 3: 1.02}.get(bits, 1.005)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("x", [GAUSS[::3], LAPLACE[::3], STUDENT[::3]], ids=["gauss", "laplace", "student"])
def test_the_scale_is_a_fixed_point_of_the_published_map(bits: int, x: torch.Tensor) -> None:
    s = octav_scale(x, bits, grid="paper").double()
    magnitudes = x.double().abs()
    clipped = magnitudes >= s * (1 - 1e-7)
    image = magnitudes[clipped].sum() / (4.0**-bits / 3 * ((magnitudes > 0) & ~clipped).sum() + clipped.sum())
    assert s.item() == pytest.approx(image.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "bits", "signed", "iterates"),
    [
        ([0, 0.1, -0.2, 0.4, 1, -3, 0.05, -0.6], 4, True, (0.764285714, 1.993510707, 2.976744186, 2.976744186)),
        ([0, 0.1, -0.2, 0.4, 1, -3, 0.05, -0.6], 2, True, (0.764285714, 1.900990099, 2.666666667, 2.666666667)),
        ([0, 0, 0.1, 0.2, 0.4, 1, 3, 0.05], 4, False, (0.791666667, 1.998698764, 2.995125122, 2.995125122)),
        ([1, 1, 1, 2], 4, True, (1.25, 1.992218, 1.992218, 1.992218)),
    ],
)
def test_published_iterates_of_tiny_tensors(
    values: list[float], bits: int, signed: bool, iterates: tuple[float, ...]
) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    for count, expected in enumerate(iterates[1:], start=1):
        assert octav_scale(x, bits, signed, grid="paper", max_iterations=count).item() == pytest.approx(
            expected, rel=1e-6
        )
    assert octav_scale(x, bits, signed, grid="paper").item() == pytest.approx(iterates[-1], rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("x", "golden", "excess"), [(GAUSS, GAUSS_NARROW, GAUSS_EXCESS), (LAPLACE, LAPLACE_NARROW, LAPLACE_EXCESS)]
)
def test_exact_grid_excess_error(
    bits: int, x: torch.Tensor, golden: dict[int, tuple[float, float]], excess: dict[int, float]
) -> None:
    _, high = code_range(bits)
    best_step, best_error = golden[bits]
    assert _error(x, best_step, -high, high) == pytest.approx(best_error, rel=5e-3)  # the sample ends early
    step = octav_scale(x, bits).item() / high
    assert _error(x, step, -high, high) <= _error(x, best_step, -high, high) * (1 + excess[bits] + 1e-4)


def _error(x: torch.Tensor, step: float, low: int, high: int) -> float:
    x = x.double()
    return float((x - (x / step).round().clamp(low, high) * step).square().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("grid", ["exact", "paper"])
@pytest.mark.parametrize("signed", [True, False])
def test_large_tensors_histogram_and_warm_start_agree_with_the_reference(bits: int, grid: str, signed: bool) -> None:
    for x in {2: (LAPLACE,), 4: (GAUSS, STUDENT), 8: (LAPLACE,)}[bits]:
        shuffled = torch.cat([x, x])[torch.randperm(2 * N)]
        expected = _reference(x, bits, signed, grid)
        found = octav_scale(shuffled, bits, signed, grid=grid)
        # Above 6 bits fewer than one in a thousand elements clips; the tolerance is that of one element of the sample.
        assert found.item() == pytest.approx(expected, rel=1e-3 if bits < 8 else 3e-3)
        histogram = BitHistogram().add(shuffled).octav_scale(bits, signed, grid)
        assert histogram == pytest.approx(expected, rel=2e-3 if bits < 8 else 5e-3)
        warm = octav_scale(shuffled, bits, signed, grid=grid, start=found * 1.02)
        assert warm.item() == pytest.approx(expected, rel=1e-3 if bits < 8 else 3e-3)
        far = octav_scale(shuffled, bits, signed, grid=grid, start=torch.tensor(1e6))
        assert far.item() == pytest.approx(expected, rel=1e-3 if bits < 8 else 3e-3)


@given(
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([(True, "paper"), (True, "exact"), (False, "exact")]),
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=7, max_size=7), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_cpu_loops_equal_the_torch_reference(
    bits: int, signed: bool, form: tuple[bool, str], rows: list[list[float]]
) -> None:
    """Equal scale, or equally good: near-ties between candidates may fall either way in the last place."""
    narrow, grid = form
    x = torch.tensor(rows)
    x = torch.where(x.abs() < 1e-30, 0.0, x)
    found = octav_scale(x, bits, signed, dim=1, grid=grid, narrow=narrow)
    low, high = code_range(bits, signed, narrow)
    for row, scale in zip(x, found.flatten(), strict=True):
        expected = _reference(row, bits, signed, grid, narrow)
        if grid == "exact" and expected > 0:
            unit = max(-low, high)
            errors = [_error(row, s / unit, low, high) for s in (scale.item(), expected)]
            assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-6 * float(row.abs().max()) ** 2)
        else:
            assert scale.item() == pytest.approx(expected, rel=1e-4)


def test_per_channel_equals_a_loop_and_shapes_broadcast() -> None:
    x = torch.randn(5, 3, 4, 4)
    scale = octav_scale(x, 4, dim=(1, 2, 3))
    assert scale.shape == (5, 1, 1, 1)
    torch.testing.assert_close(scale.flatten(), torch.stack([octav_scale(row, 4) for row in x]))
    assert octav_scale(x).shape == ()
    inner = octav_scale(x, 4, dim=1)
    assert inner.shape == (5, 1, 4, 4)
    assert inner[2, 0, 1, 3].item() == pytest.approx(octav_scale(x[2, :, 1, 3], 4).item(), rel=1e-6)


@pytest.mark.parametrize("grid", ["exact", "paper"])
def test_invariances(grid: str) -> None:
    x = torch.randn(4000)
    scale = octav_scale(x, grid=grid)
    assert octav_scale(x * 2**-20, grid=grid) == scale * 2**-20
    torch.testing.assert_close(octav_scale(x[torch.randperm(4000)], grid=grid), scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(octav_scale(torch.cat([x, torch.zeros(9000)]), grid=grid), scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grid", ["exact", "paper"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unusual_inputs(grid: str, bits: int) -> None:
    assert octav_scale(torch.zeros(10), bits, grid=grid) == 0
    assert octav_scale(torch.zeros(0), bits, grid=grid) == 0
    assert octav_scale(torch.zeros(3, 0), bits, dim=1, grid=grid).tolist() == [[0], [0], [0]]
    assert octav_scale(torch.full((8,), 1.0), bits, grid=grid) == 1
    assert octav_scale(torch.full((300,), 1.1), bits, grid=grid).item() == pytest.approx(1.1, rel=1e-6)
    assert octav_scale(torch.tensor([-0.75]), bits, grid=grid).item() == pytest.approx(0.75, rel=1e-6)
    assert octav_scale(torch.tensor([torch.nan, torch.inf, -torch.inf]), bits, grid=grid) == 0
    clean = torch.randn(100)
    dirty = torch.cat([clean, torch.tensor([torch.nan, torch.inf, -torch.inf])])
    torch.testing.assert_close(octav_scale(dirty, bits, grid=grid), octav_scale(clean, bits, grid=grid))
    assert octav_scale(torch.full((5,), 1e-41), bits, grid=grid).item() == pytest.approx(1e-41, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(5000).to(dtype)
    assert octav_scale(x).dtype == torch.float32
    torch.testing.assert_close(octav_scale(x), octav_scale(x.float()))


def test_short_rows_try_candidates() -> None:
    x = torch.randn(4096, 16)
    scale = octav_scale(x, 4, dim=1)
    error = (x - (x / (scale / 7)).round().clamp(-7, 7) * (scale / 7)).square().mean()
    absmax = x.abs().amax(1, keepdim=True)
    absmax_error = (x - (x / (absmax / 7)).round().clamp(-7, 7) * (absmax / 7)).square().mean()
    assert 10 * torch.log10(x.square().mean() / error) > 21.9  # 21.39 dB for the maximum, 22.04 dB for the best scale
    assert 10 * torch.log10(x.square().mean() / absmax_error) < 21.5


def test_max_scaling_grows_with_the_sample_and_octav_does_not() -> None:
    errors = []
    for n in (1000, 100_000):
        x = torch.tensor(norm.ppf((np.arange(n) + 0.5) / n), dtype=torch.float32)
        step = float(x.abs().max()) / 7
        errors.append(_error(x, step, -7, 7))
        assert _error(x, octav_scale(x).item() / 7, -7, 7) < 1.31e-2
    assert errors[1] > 1.3 * errors[0] > 1.3 * 1.5e-2


def test_non_contiguous_and_permuted_tensors() -> None:
    x = torch.randn(4, 8, 6, 6)
    for view in (x.to(memory_format=torch.channels_last), x.transpose(1, 3), x[:, ::2], x[:, :, 1:]):
        torch.testing.assert_close(octav_scale(view), octav_scale(view.contiguous()), rtol=1e-5, atol=0)


def test_histograms_merge_exactly() -> None:
    parts = [torch.randn(1000), LAPLACE[:5000] * 100, torch.zeros(7), torch.randn(100) * 1e-39]
    merged = BitHistogram()
    for part in parts:
        merged.merge(BitHistogram().add(part))
    whole = BitHistogram().add(torch.cat(parts))
    assert torch.equal(merged.counts, whole.counts)
    assert torch.equal(merged.residues, whole.residues)
    values, counts = whole._means()
    assert values @ counts == pytest.approx(torch.cat(parts).double().sum().item(), rel=1e-9)


def test_histogram_quantiles_and_least_error() -> None:
    histogram = BitHistogram().add(GAUSS)
    for fraction in (0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(fraction) == pytest.approx(norm.ppf(0.5 + fraction / 2), rel=3e-3)
    step = histogram.mse_scale(4, candidates=400) / 7
    assert _error(GAUSS, step, -7, 7) < GAUSS_NARROW[4][1] * 1.005
    assert BitHistogram().mse_scale(4) == BitHistogram().octav_scale(4) == BitHistogram().quantile(0.9) == 0


@pytest.mark.parametrize("bits", [0, 1, 9, 4.0, True])
def test_bits_out_of_range(bits: object) -> None:
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
        octav_scale(torch.randn(4), bits)  # type: ignore[arg-type]


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="floating-point tensor"):
        octav_scale(torch.arange(4))
    with pytest.raises(ValueError, match='grid must be "exact" or "paper"'):
        octav_scale(torch.randn(4), grid="sloppy")  # type: ignore[arg-type]
