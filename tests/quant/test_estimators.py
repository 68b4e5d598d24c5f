"""Fake quantization: values on the grid, gradients as their closed forms say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dgcomp.quant import code_range, fake_quantize
from dgcomp.quant.estimators import quantize_values
from dgcomp.quant.octav import scale_code


def _gradient(x: torch.Tensor, scale: float, estimator: str, **options: object) -> torch.Tensor:
    x = x.clone().requires_grad_()
    fake_quantize(x, scale, estimator=estimator, **options).sum().backward()  # type: ignore[arg-type]
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
def test_values_are_codes_in_range(bits: int, signed: bool, narrow: bool) -> None:
    x = torch.randn(1000) * 2
    low, high = code_range(bits, signed, narrow)
    step = 1.5 / scale_code(bits, signed, narrow)
    y = fake_quantize(x, 1.5, bits, signed, narrow=narrow)
    codes = y / step
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    assert codes.min().round() >= low
    assert codes.max().round() == high
    inside = (x >= low * step) & (x <= high * step)
    assert (x - y)[inside].abs().max() <= step / 2 * (1 + 1e-5)
    torch.testing.assert_close(fake_quantize(y, 1.5, bits, signed, narrow=narrow), y)


@given(
    st.sampled_from([(7,), (3, 5), (2, 3, 4), (2, 3, 4, 5)]),
    st.integers(0, 3),
    st.integers(2, 8),
    st.sampled_from(["ste", "pwl", "mad"]),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_cpu_loops_equal_torch_operations(
    shape: tuple[int, ...], channel: int, bits: int, estimator: str, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(shape, generator=generator, dtype=torch.float32)
    sizes = [1] * len(shape)
    sizes[channel % len(shape)] = shape[channel % len(shape)]
    scale = torch.rand(sizes, generator=generator) + 0.3
    g = torch.randn(shape, generator=generator)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 takes the torch operations
        leaf = x.to(dtype).requires_grad_()
        y = fake_quantize(leaf, scale, bits, estimator=estimator)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(y, leaf, g.to(dtype))
        results.append((y.float(), gradient.float()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_gradients_of_each_estimator() -> None:
    x = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0])
    assert _gradient(x, 1.0, "ste").tolist() == [1] * 7
    assert _gradient(x, 1.0, "pwl").tolist() == [0, 1, 1, 1, 1, 1, 0]
    torch.testing.assert_close(_gradient(x, 1.0, "mad"), torch.tensor([1 / 3, 1, 1, 1, 1, 1, 0.5]))
    assert _gradient(x, 1.0, "pwl", signed=False).tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert _gradient(x, 1.0, "mad", signed=False).tolist() == [0, 0, 0, 1, 1, 1, 0.5]
    step = 1 / 7
    rounding = (x - fake_quantize(x, 1.0)) / step
    inside = torch.tensor([0, 1, 1, 1, 1, 1, 0])
    torch.testing.assert_close(_gradient(x, 1.0, "ewgs", delta=0.2), inside * (1 + 0.2 * rounding))


def test_mad_is_continuous_at_the_clip() -> None:
    gradient = _gradient(torch.tensor([1.0, 1.0 + 1e-6]), 1.0, "mad")
    assert gradient[0] == 1
    assert gradient[1].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "pwl_square", "mad", "mad_square"),
    [(1.0, 0.682689, 0.906007, 0.849320), (2.0, 0.954500, 0.993517, 0.988463), (2.56209, 0.989596, 0.998939, 0.998054)],
)
def test_second_moments_under_a_gaussian(scale: float, pwl_square: float, mad: float, mad_square: float) -> None:
    x = torch.tensor(norm.ppf((np.arange(200_000) + 0.5) / 200_000), dtype=torch.float32)
    assert _gradient(x, scale, "pwl").square().mean().item() == pytest.approx(pwl_square, abs=2e-5)
    gradient = _gradient(x, scale, "mad").double()
    assert gradient.mean().item() == pytest.approx(mad, abs=2e-5)
    assert gradient.square().mean().item() == pytest.approx(mad_square, abs=2e-5)


def test_lsq_scale_gradient() -> None:
    """The closed form of equation 3 of LSQ for the step, D = scale / Q, with its gradient scale 1 / sqrt(N Q)."""
    x = torch.randn(50) * 2
    scale = torch.tensor(1.4, requires_grad=True)
    g = torch.randn(50)
    fake_quantize(x, scale, 3, estimator="lsq").backward(g)
    v = x / (1.4 / 3)
    inside = (v > -3) & (v < 3)
    expected = (g * torch.where(inside, v.round() - v, v.clamp(-3, 3))).sum() / 3 / (50 * 3) ** 0.5
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, expected)
    channels = torch.full((5, 1), 1.4, requires_grad=True)
    fake_quantize(x.view(5, 10), channels, 3, estimator="lsq").backward(g.view(5, 10))
    assert channels.grad is not None
    assert channels.grad.shape == (5, 1)


def test_other_estimators_leave_the_scale_without_gradient() -> None:
    scale = torch.tensor(1.0, requires_grad=True)
    x = torch.randn(5, requires_grad=True)
    fake_quantize(x, scale, estimator="mad").sum().backward()
    assert scale.grad is None


def test_not_finite_values_zero_and_denormal_scales() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.3])
    y = fake_quantize(x, 1.0)
    assert y[0].isnan()
    assert y[1:3].tolist() == [1, -1]
    for scale in (0.0, 1e-40):
        assert fake_quantize(torch.randn(4), scale).tolist() == [0] * 4
        assert fake_quantize(torch.randn(4).double(), scale).tolist() == [0] * 4
    assert fake_quantize(torch.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(100).to(dtype).requires_grad_()
    y = fake_quantize(x, 1.5)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), fake_quantize(x.detach().float(), 1.5).to(dtype).float())
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_memory_formats_and_views() -> None:
    x = torch.randn(2, 4, 5, 5)
    expected = fake_quantize(x, 1.0)
    last = x.to(memory_format=torch.channels_last)
    assert fake_quantize(last, 1.0).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fake_quantize(last, 1.0), expected)
    torch.testing.assert_close(fake_quantize(x.transpose(1, 2), 1.0), expected.transpose(1, 2))
    torch.testing.assert_close(fake_quantize(x[:, ::2], 1.0), expected[:, ::2])
    expanded = torch.randn(3, 1).expand(3, 4)
    torch.testing.assert_close(fake_quantize(expanded, 1.0), fake_quantize(expanded.contiguous(), 1.0))
    leaf = last.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fake_quantize(leaf, 0.5, estimator="pwl"), leaf, torch.ones(2, 4, 5, 5))
    torch.testing.assert_close(gradient, (x.abs() <= 0.5).float())


def test_codes_given_as_tensors() -> None:
    x, step = torch.randn(100), torch.tensor(0.1)
    expected = quantize_values(x, step, -7, 7)
    assert torch.equal(quantize_values(x, step, torch.tensor(-7.0), torch.tensor(7.0)), expected)


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="floating-point tensor"):
        fake_quantize(torch.arange(4), 1.0)
    with pytest.raises(ValueError, match='"mph" is "mad" for weights'):
        fake_quantize(torch.randn(4), 1.0, estimator="mph")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8, got 16"):
        fake_quantize(torch.randn(4), 1.0, 16)
