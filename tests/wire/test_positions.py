"""Every position format against the sorted list itself, its sizes against its bounds, its decoder against damage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.wire import WireError, positions
from dgcomp.wire.positions import FORMATS


@st.composite
def selections(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Some sorted positions of a vector, at any density, evenly spread or clustered."""
    numel = draw(st.one_of(st.integers(1, 300), st.integers(1, 10**6)))
    count = draw(st.integers(0, min(numel, 400)))
    span = draw(st.sampled_from([numel, max(count, numel // 7)]))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.sort(np.random.default_rng(seed).choice(span, count, replace=False)), numel


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=60)
@given(selection=selections())
def test_round_trip_within_the_bounds(form: str, selection: tuple[np.ndarray, int]) -> None:
    where, numel = selection
    payload = positions.encode(form, where, numel)
    np.testing.assert_array_equal(positions.decode(form, payload, where.size, numel), where)
    assert payload.size <= positions.worst_bytes(form, where.size, numel)
    if where.size:
        assert payload.size >= positions._least_bytes(form, where.size, numel)


@settings(deadline=None, max_examples=100)
@given(selection=selections(), more=st.integers(0, 300))
def test_the_smallest_format_fits_into_the_capacity_of_more_entries(
    selection: tuple[np.ndarray, int], more: int
) -> None:
    where, numel = selection
    count = min(where.size + more, numel)
    for form in FORMATS:
        assert positions.worst_bytes(form, where.size, numel) <= positions.worst_bytes(form, count, numel)
    chosen, payload = positions.encode_smallest(where, numel)
    assert payload.size == min(positions.encode(form, where, numel).size for form in FORMATS)
    assert payload.size <= positions.worst_bytes(positions.smallest(count, numel), count, numel)
    np.testing.assert_array_equal(positions.decode(chosen, payload, where.size, numel), where)


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=60)
@given(selection=selections(), data=st.data())
def test_damage_is_refused_or_gives_valid_positions(
    form: str, selection: tuple[np.ndarray, int], data: st.DataObject
) -> None:
    where, numel = selection
    payload = positions.encode(form, where, numel).copy()
    for _ in range(data.draw(st.integers(1, 3))):
        if payload.size:
            payload[data.draw(st.integers(0, payload.size - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, payload.size))]
    count = data.draw(st.integers(0, numel))
    try:
        found = positions.decode(form, payload, count, numel)
    except WireError:
        return
    assert found.size == count
    assert (np.diff(found) > 0).all()
    assert count == 0 or (found[0] >= 0 and found[-1] < numel)


@pytest.mark.parametrize(("form", "percent"), [("rice", 3), ("block", 8)])
@pytest.mark.parametrize("one_in", [1000, 256, 64, 10_000])
def test_sizes_are_near_the_entropy(form: str, percent: float, one_in: int) -> None:
    numel = 4_000_000
    where = np.flatnonzero(np.random.default_rng(one_in).random(numel) < 1 / one_in)
    bits = 8 * positions.encode(form, where, numel).size / where.size
    entropy = positions.entropy_bits(where.size, numel)
    assert entropy < bits < entropy * (1 + percent / 100)


def test_clustered_positions_take_fewer_bits_than_the_entropy_of_independent_ones() -> None:
    where = np.sort(np.random.default_rng(0).choice(10**6, 10_000, replace=False))
    bits = 8 * positions.encode("rice", where, 10**7).size / where.size
    assert bits < positions.entropy_bits(10_000, 10**7) - 3


def test_sixteen_bit_runs_skip_long_gaps_with_fillers() -> None:
    where = np.array([65534, 131070, 10**6])
    payload = positions.encode("run16", where, 10**6 + 1)
    assert payload.view("<u2").tolist() == [65534, 65535, 0, *[65535] * 13, 16974]
    np.testing.assert_array_equal(positions.decode("run16", payload, 3, 10**6 + 1), where)


def test_int32_positions_refuse_vectors_they_cannot_index() -> None:
    with pytest.raises(ValueError, match="at most 2\\*\\*32 elements"):
        positions.encode("int32", np.array([2**33]), 2**34)
    assert positions.encode_smallest(np.array([2**33]), 2**34)[0] == "rice"


def test_a_parameter_chosen_from_misleading_samples_keeps_to_the_bound() -> None:
    """Every sampled gap is zero, all others are long: the samples ask for no low bits at all."""
    numel, count = 2**22, 8192
    gaps = np.full(count, 2 * numel // count - 2)
    gaps[::2] = 1
    where = np.cumsum(gaps) - 1
    payload = positions.encode("rice", where, numel)
    assert payload.size <= positions.worst_bytes("rice", count, numel)
    np.testing.assert_array_equal(positions.decode("rice", payload, count, numel), where)
