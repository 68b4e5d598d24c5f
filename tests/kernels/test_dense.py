"""The dense momentum step against its formulas in float64, and compiled against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.kernels import dense


def _expected(g, u, w, scale, factor, nesterov, decay, additional):
    g = g.double() * scale + decay * w.double()
    if u is None:
        return g, None
    u = u.double()
    part = factor * g if nesterov else g
    new = (u if additional else factor * u) + part
    update = part if additional else new
    return update + (g if nesterov else 0), new


@settings(deadline=None, max_examples=60)
@given(
    numel=st.sampled_from([0, 1, 7, 64, 1001]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    has_momentum=st.booleans(),
    nesterov=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
    additional=st.booleans(),
    seed=st.integers(0, 100),
)
def test_formulas(numel, dtype, has_momentum, nesterov, decay, additional, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient, w = (torch.randn(numel, generator=generator).to(dtype) for _ in range(2))
    u = torch.randn(numel, generator=generator) if has_momentum else None
    update, new = _expected(gradient, u, w, 0.25, 0.9, nesterov, decay, additional)
    dense.update_dense(
        gradient,
        u,
        parameter=w,
        gradient_scale=0.25,
        output_scale=8.0,
        momentum_factor=0.9,
        nesterov=nesterov,
        weight_decay=decay,
        is_additional=additional,
    )
    epsilon = torch.finfo(dtype).eps
    assert torch.allclose(gradient.double(), update * 8.0, rtol=4 * epsilon, atol=64 * epsilon)
    if u is not None:
        assert torch.allclose(u.double(), new, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_make_no_difference(threads: int) -> None:
    torch.set_num_threads(threads)
    gradient, u = torch.randn(300_001), torch.randn(300_001)
    expected = gradient * 0.5, u * 0.9 + gradient * 0.5
    dense.update_dense(gradient, u, gradient_scale=0.5)
    assert torch.equal(u, expected[1])
    assert torch.equal(gradient, u)
