"""Value formats: exact where they promise it, otherwise within the half step that the format allows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.wire import WireError, values
from dgcomp.wire.values import BLOCK, FORMATS

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _round_trip(form: str, x: np.ndarray) -> np.ndarray:
    payload = values.encode(form, x)
    assert payload.size == values.num_bytes(form, x.size)
    return values.decode(form, payload, x.size)


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(FLOATS, max_size=300))
def test_any_finite_values_stay_finite_and_keep_their_sign(form: str, numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    back = _round_trip(form, x)
    assert np.isfinite(back).all()
    assert (np.signbit(back) == np.signbit(x)).all()
    if form == "fp32":
        np.testing.assert_array_equal(back, x)


@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(FLOATS, max_size=100))
def test_bf16_is_torch_s_rounding_except_that_nothing_becomes_infinite(numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float32)
    expected = x.to(torch.bfloat16).float()
    expected = torch.where(expected.isinf(), x.sign() * torch.finfo(torch.bfloat16).max, expected)
    np.testing.assert_array_equal(_round_trip("bf16", x.numpy()), expected.numpy())


@pytest.mark.parametrize(("form", "top"), [("int8", 127), ("int4", 7)])
def test_codes_are_the_nearest_of_quadratically_spaced_levels(form: str, top: int) -> None:
    x = np.random.default_rng(0).standard_normal(3 * BLOCK + 17).astype(np.float32)
    back = _round_trip(form, x)
    for start in range(0, x.size, BLOCK):
        magnitude = np.abs(x[start : start + BLOCK])
        bounds = np.array([magnitude.min(), magnitude.max()])
        # the bounds are bfloat16 numbers, rounded outwards by at most 2**-7
        levels = bounds[0] + (bounds[1] - bounds[0]) * (np.arange(top + 1) / top) ** 2
        nearest = np.abs(magnitude[:, None] - levels).min(1)
        error = np.abs(magnitude - np.abs(back[start : start + BLOCK]))
        assert (error <= nearest + 0.01 * bounds[1]).all()


def test_sign_sends_the_mean_magnitude() -> None:
    x = np.array([1.0, -2.0, 3.0, -2.0], np.float32)
    np.testing.assert_array_equal(_round_trip("sign", x), [2, -2, 2, -2])


def test_int4_error_on_an_exponential_tail() -> None:
    """What survives a threshold of a Laplace distribution at 0.1 %: error below 3 % of the norm."""
    rng = np.random.default_rng(1)
    x = (6.9 + rng.standard_exponential(20_000)).astype(np.float32) * rng.choice([-1, 1], 20_000).astype(np.float32)
    assert np.linalg.norm(_round_trip("int4", x) - x) < 0.03 * np.linalg.norm(x)


@pytest.mark.parametrize("form", FORMATS)
def test_constant_and_zero_blocks_are_exact(form: str) -> None:
    for x in (np.full(300, -0.5, np.float32), np.zeros(300, np.float32)):
        np.testing.assert_array_equal(_round_trip(form, x), x)


@pytest.mark.parametrize("form", FORMATS)
def test_payloads_of_another_size_or_with_infinities_are_refused(form: str) -> None:
    payload = values.encode(form, np.ones(10, np.float32))
    with pytest.raises(WireError, match="bytes"):
        values.decode(form, payload[:-1], 10)
    with pytest.raises(WireError, match="not all finite"):
        values.decode(form, np.full_like(payload, 0xFF), 10)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_bounds_out_of_order_are_refused(form: str) -> None:
    payload = values.encode(form, np.array([1.0, 2.0], np.float32))
    payload[:4] = np.concatenate((payload[2:4], payload[:2]))
    with pytest.raises(WireError, match="not all finite"):
        values.decode(form, payload, 2)
