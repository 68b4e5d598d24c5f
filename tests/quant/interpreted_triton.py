"""The Triton kernels in Triton's interpreter; test_triton.py runs this file in a process with TRITON_INTERPRET=1.

A process of its own, because the interpreter must be on before anything imports triton.
"""

import pytest
import torch

from dgcomp.quant import BitHistogram, triton_quantize, triton_scale
from dgcomp.quant.estimators import estimate_gradient, quantize_values
from dgcomp.quant.octav import reference_steps

DISTRIBUTIONS = {
    "gauss": lambda n: torch.randn(n),
    "relu": lambda n: torch.randn(n).clamp(min=0),
    "laplace": lambda n: torch.distributions.Laplace(0.0, 1.0).sample((n,)),
    "equal": lambda n: torch.full((n,), 0.3),
    "zeros": lambda n: torch.zeros(n),
    "odd values": lambda n: torch.cat([torch.randn(n), torch.tensor([torch.inf, torch.nan, -0.0, 1e-45, -torch.inf])]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_histogram_equals_the_cpu_loop_to_the_integer(dtype: torch.dtype) -> None:
    for n in (1, 5000):
        for make in DISTRIBUTIONS.values():
            x = make(n).to(dtype)
            expected = BitHistogram().add(x)
            counts, residues = triton_scale.bit_histogram(x)
            # the interpreter's conversion of NaN chooses other payloads than torch's
            finite = (torch.arange(counts.numel()) >> triton_scale.MANTISSA_BITS) & 0xFF < 0xFF
            assert counts.sum() == x.numel()
            assert torch.equal(counts * finite, expected.counts * finite)
            assert torch.equal(residues * finite, expected.residues * finite)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_scale_of_a_tensor(name: str) -> None:
    x = DISTRIBUTIONS[name](20_000)
    for negative, positive, overload in ((7.0, 7.0, 0.5), (0.0, 3.0, 0.5), (1.0, 1.0, 0.5), (8.0, 8.0, 0.0)):
        found = triton_scale.tensor_step(x, negative, positive, overload)
        expected = reference_steps(x[None], negative, positive, overload)
        # few of so short a tensor's elements share a bin, inside which the sums are interpolated; equal ones all do
        torch.testing.assert_close(found, expected, rtol=1e-2 if name == "equal" else 3e-3, atol=0.0)


@pytest.mark.parametrize("size", [1, 16, 1100])
def test_scales_of_rows(size: int) -> None:
    rows = torch.stack([make(size)[:size] for make in DISTRIBUTIONS.values()])
    for negative, positive, overload in ((7.0, 7.0, 0.5), (0.0, 3.0, 0.5), (2.0, 1.0, 0.5), (8.0, 8.0, 0.0)):
        expected = reference_steps(rows, negative, positive, overload)
        found = triton_scale.row_steps(rows, negative, positive, overload)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    for factor in (0.97, 30.0):  # a good warm start, and one that clips nothing
        start = expected * factor
        found = triton_scale.row_steps(rows, negative, positive, overload, start)
        reference = reference_steps(rows, negative, positive, overload, start)
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cuts bfloat16 off
def test_fake_quantization_equals_torch(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 70).to(dtype)
    x[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    step = torch.tensor([0.1, 0.3, 0.0, 0.2, 1e-38])[:, None]
    for low, high in ((-7, 7), (0, 15)):
        found = triton_quantize.quantize(x, step.reshape(-1), low, high, (3, 5, 70))
        # float64 has no fast loop of its own: these are the torch operations
        expected = quantize_values(x.float().double(), step, low, high).to(dtype)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
        scale, gradient = step * high, torch.randn(x.shape).to(dtype)
        for estimator in ("pwl", "mad"):
            found = triton_quantize.clip_gradient(gradient, x, scale.reshape(-1), low, estimator == "mad", (3, 5, 70))
            wide = estimate_gradient(gradient.double(), x.double(), scale.double(), low, high, high, estimator, 0.0)
            torch.testing.assert_close(found, wide.to(dtype), rtol=1e-6, atol=1e-6, equal_nan=True)
