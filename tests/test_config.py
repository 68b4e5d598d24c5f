"""DGCConfig refuses what it cannot do, in one sentence that names the field; the schedule follows the step count."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgcomp import DGCConfig
from dgcomp.schedule import density_at, paper_stages


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"density": 0.0}, ValueError, r"density must lie in \(0, 1\], got 0.0"),
        ({"density": 1.5}, ValueError, "density"),
        ({"density": math.nan}, ValueError, "density"),
        ({"density": "0.1"}, TypeError, "density must be a number"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay"),
        ({"clip_norm": 0}, ValueError, "clip_norm"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0"),
        ({"warmup_steps": 1.5}, TypeError, "warmup_steps must be an integer"),
        ({"warmup": "linear"}, ValueError, "warmup must be one of 'exponential'"),
        ({"codec": "zip"}, ValueError, "codec"),
        ({"codec": None}, ValueError, "codec"),
        ({"exchange": "ring"}, ValueError, "exchange"),
        ({"mode": "adam"}, ValueError, "mode"),
        ({"mode": "error_feedback", "momentum": 0.9}, ValueError, "leaves momentum and weight decay to the optimizer"),
        ({"nesterov": True, "momentum": 0.0}, ValueError, "nesterov=True needs a momentum"),
        ({"ranks_per_node": 0}, ValueError, "ranks_per_node"),
        ({"sparsity": 0.999}, TypeError, "sparsity"),
    ],
)
def test_refused(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        DGCConfig(**options)


def test_frozen_and_plain() -> None:
    config = DGCConfig(density=0.01)
    with pytest.raises(AttributeError):
        config.density = 0.1  # type: ignore[misc]
    assert DGCConfig(**config.to_dict()) == config


def test_paper_stages_are_those_of_section_4_1() -> None:
    assert paper_stages(0.001) == [0.25, 0.0625, 0.015625, 0.00390625]
    config = DGCConfig(density=0.001, warmup_steps=8, warmup="paper")
    assert [density_at(step, config) for step in (0, 1, 2, 7, 8)] == [0.25, 0.25, 0.0625, 0.00390625, 0.001]


def test_dense_warmup_and_none() -> None:
    config = DGCConfig(density=0.01, warmup_steps=3, warmup="dense")
    assert [density_at(step, config) for step in range(5)] == [1.0, 1.0, 1.0, 0.01, 0.01]
    assert density_at(0, DGCConfig(density=0.01)) == 0.01


@given(
    density=st.floats(1e-5, 1.0),
    warmup_steps=st.integers(0, 50),
    warmup=st.sampled_from(["exponential", "paper", "dense"]),
)
def test_density_falls_to_its_goal(density: float, warmup_steps: int, warmup: str) -> None:
    config = DGCConfig(density=density, warmup_steps=warmup_steps, warmup=warmup)
    densities = [density_at(step, config) for step in range(warmup_steps + 2)]
    assert all(0 < d <= 1 for d in densities)
    assert all(later <= earlier for earlier, later in zip(densities, densities[1:], strict=False))
    assert densities[warmup_steps:] == [density, density]
