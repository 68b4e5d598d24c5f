"""The kernels: against formulas written out one element at a time, and the engines against each other, to the bit."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgcomp import kernels
from dgcomp.kernels.numba_loops import BLOCK
from dgcomp.kernels.threads import MIN_PART, split

ENGINES = ("torch", "numba")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 3, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7)


def _case(numel: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g, u, v, w = (torch.randn(numel, generator=generator) for _ in range(4))
    return g.to(dtype), u, v, w


def _expected(kind: str, g: np.float32, u: np.float32, v: np.float32, m: np.float32) -> tuple[np.float32, np.float32]:
    """One element; NumPy rounds every float32 operation once."""
    if kind == "feedback":
        return u, v + g
    if kind == "momentum":
        u = m * u + g
        return u, v + u
    if kind == "nesterov":
        u = m * (u + g)
        return u, (v + u) + g
    if kind == "additional momentum":
        return u + g, v + g
    return u + m * g, (v + m * g) + g


KINDS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "feedback": (kernels.accumulate_select, False),
    "momentum": (kernels.accumulate_select, False),
    "nesterov": (kernels.accumulate_select, True),
    "additional momentum": (kernels.accumulate_additional, False),
    "additional nesterov": (kernels.accumulate_additional, True),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_update_is_the_formula_to_the_bit(kind: str, engine: str) -> None:
    call, nesterov = KINDS[kind]
    g, u, v, w = _case(BLOCK + 5, torch.bfloat16, seed=3)
    scale, m, decay = np.float32(0.37), np.float32(0.9), np.float32(0.01)
    scaled = [np.float32(a) * scale + np.float32(b) * decay for a, b in zip(g.float(), w, strict=True)]
    rows = [_expected(kind, a, b, c, m) for a, b, c in zip(scaled, u.numpy(), v.numpy(), strict=True)]
    found = call(
        g,
        None if kind == "feedback" else u,
        v,
        threshold=1.5,
        parameter=w,
        gradient_scale=0.37,
        momentum_factor=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        engine=engine,
    )
    np.testing.assert_array_equal(u.numpy(), [row[0] for row in rows])
    np.testing.assert_array_equal(v.numpy(), [row[1] for row in rows])
    assert found.tolist() == [i for i, row in enumerate(rows) if abs(row[1]) >= np.float32(1.5)]
    assert not g.any()


@settings(deadline=None, max_examples=60)
@given(
    numel=st.sampled_from(SIZES) | st.integers(0, 4 * BLOCK),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(sorted(KINDS)),
    weight_decay=st.sampled_from([0.0, 1e-4]),
    same_dtype=st.booleans(),
    threshold=st.sampled_from([0.0, 1e-30, 1.0, 3.0, 1e300, math.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_numba_equals_torch_to_the_bit(
    numel: int, dtype: torch.dtype, kind: str, weight_decay: float, same_dtype: bool, threshold: float, seed: int
) -> None:
    call, nesterov = KINDS[kind]
    results = []
    for engine in ENGINES:
        g, u, v, w = _case(numel, dtype, seed)
        momentum = None if kind == "feedback" else u
        w = w.to(dtype) if same_dtype else w
        found = call(
            g,
            momentum,
            v,
            parameter=w,
            nesterov=nesterov,
            weight_decay=weight_decay,
            gradient_scale=1 / 3,
            threshold=threshold,
            engine=engine,
        )
        assert found.dtype == torch.int64
        results.append((found, g, u, v))
    for ours, reference in zip(results[1], results[0], strict=True):
        assert torch.equal(ours, reference)


def test_two_calls_are_one_call_of_the_sum() -> None:
    for nesterov in (False, True):
        g1, u, v, _ = _case(100, torch.float32, 0)
        g2 = torch.randn(100)
        together = (u.double(), v.double())
        kernels.accumulate_select(g1 + g2, (u_sum := u.clone()), (v_sum := v.clone()), threshold=1.0, nesterov=nesterov)
        kernels.accumulate_select(g1, u, v, threshold=1.0, nesterov=nesterov)
        kernels.accumulate_additional(g2, u, v, threshold=1.0, nesterov=nesterov)
        # a handful of roundings of numbers below 8: 4 * 8 * 2**-24
        assert together[0].abs().max() < 8
        torch.testing.assert_close(u, u_sum, rtol=0, atol=2e-6)
        torch.testing.assert_close(v, v_sum, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    gradient, residual = numbers.clone(), torch.zeros(numbers.numel())
    kernels.accumulate_select(gradient, None, residual, threshold=math.inf, engine="numba")
    torch.testing.assert_close(residual, numbers.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_and_infinity_are_found_and_ranked_first(engine: str) -> None:
    residual = torch.tensor([1.0, math.nan, -math.inf, 0.0, 5.0] + [0.1] * 20)
    assert kernels.find_at_least(residual, math.inf, engine=engine).tolist() == [1, 2]
    positions = kernels.find_at_least(residual, 0.5, engine=engine)
    assert positions.tolist() == [0, 1, 2, 4]
    assert kernels.keep_largest(residual, positions, 3, engine=engine).tolist() == [1, 2, 4]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_finite(dtype: torch.dtype, engine: str) -> None:
    assert kernels.is_finite(torch.empty(0, dtype=dtype), engine=engine)
    for numel in (1, 17, 4097):
        largest = torch.full((numel,), torch.finfo(dtype).max, dtype=dtype)
        assert kernels.is_finite(largest, engine=engine)
        for bad in (math.inf, -math.inf, math.nan):
            for at in {0, numel // 2, numel - 1}:
                spoiled = largest.clone()
                spoiled[at] = bad
                assert not kernels.is_finite(spoiled, engine=engine)


@settings(deadline=None, max_examples=30)
@given(numel=st.integers(1, 200), k=st.integers(0, 220), num_values=st.integers(1, 50), seed=st.integers(0, 1000))
def test_keep_largest(numel: int, k: int, num_values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    residual = torch.from_numpy(rng.integers(-num_values, num_values + 1, numel).astype(np.float32))
    positions = kernels.find_at_least(residual, 0.0)
    magnitudes = sorted(residual.abs().tolist(), reverse=True)
    limit = max(magnitudes[min(k, numel) - 1], 1.0) if k else math.inf
    expected = [i for i, x in enumerate(residual.abs().tolist()) if x >= limit]
    for engine in ENGINES:
        assert kernels.keep_largest(residual, positions, k, engine=engine).tolist() == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_add_rounds_once(dtype: torch.dtype, engine: str) -> None:
    output = torch.randn(50).to(dtype)
    before, positions, values = output.clone(), torch.tensor([3, 0, 49]), torch.randn(3)
    kernels.scatter_add(output, positions, values, 0.3, engine=engine)
    expected = before.clone()
    expected[positions] = (before[positions].float() + values * 0.3).to(dtype)
    assert torch.equal(output, expected)
    kernels.scatter_add(output, positions[:0], values[:0], engine=engine)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_mask(engine: str) -> None:
    momentum, residual = torch.ones(9), torch.ones(9)
    kernels.mask(torch.tensor([0, 8]), momentum, residual, engine=engine)
    assert residual.tolist() == momentum.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    kernels.mask(torch.tensor([4]), None, residual, engine=engine)
    assert residual[4] == 0
    assert momentum[4] == 1


def test_positions_outside_are_refused_before_anything_is_written() -> None:
    for bad in (-1, 9):
        positions, residual = torch.tensor([0, bad]), torch.ones(9)
        for call in (
            lambda p=positions, r=residual: kernels.mask(p, None, r),
            lambda p=positions, r=residual: kernels.scatter_add(r, p, torch.ones(2)),
            lambda p=positions, r=residual: kernels.keep_largest(r, p, 1),
        ):
            with pytest.raises(IndexError, match=r"positions must be in \[0, 9\)"):
                call()
        assert torch.equal(residual, torch.ones(9))


def test_two_threads_give_the_bits_of_one() -> None:
    numel = 2 * MIN_PART + 777
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert len(split(numel)) == threads
        g, u, v, _ = _case(numel, torch.float32, 0)
        found = kernels.accumulate_select(g, u, v, threshold=4.0)
        assert kernels.is_finite(v)
        results.append((found, g, u, v, kernels.find_at_least(v, 2.0)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"threshold": -1.0}, ValueError, "threshold must be >= 0"),
        ({"threshold": math.nan}, ValueError, "threshold must be >= 0"),
        ({"engine": "cuda"}, ValueError, "engine must be one of torch, numba, triton, got 'cuda'"),
        ({"gradient": torch.zeros(4, dtype=torch.float64)}, TypeError, "gradient must be float32, bfloat16 or float16"),
        ({"gradient": torch.zeros(2, 2)}, ValueError, "gradient must be flat"),
        ({"gradient": torch.zeros(8)[::2]}, ValueError, "gradient must be flat and contiguous"),
        ({"momentum": torch.zeros(5)}, ValueError, "momentum must be flat and contiguous, with shape"),
        ({"residual": torch.zeros(4).half()}, TypeError, "residual must be float32"),
        ({"weight_decay": 0.1}, ValueError, "parameter must be given"),
        ({"weight_decay": 0.1, "parameter": torch.zeros(3)}, ValueError, "parameter must be flat"),
        ({"weight_decay": 0.1, "parameter": torch.zeros(4).half()}, TypeError, "parameter must be float32 or"),
    ],
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str) -> None:
    arguments = {name: torch.zeros(4) for name in ("gradient", "momentum", "residual")} | {"threshold": 1.0} | change
    with pytest.raises(error, match=message):
        kernels.accumulate_select(**arguments)


def test_parameter_may_require_grad() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    residual = torch.zeros(4)
    kernels.accumulate_select(torch.zeros(4), None, residual, parameter=parameter, weight_decay=0.5, threshold=1.0)
    assert torch.equal(residual, torch.full((4,), 0.5))
