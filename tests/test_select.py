"""Exact selection of k entries, fair choice among ties, and a threshold that follows the tensor."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from dgcomp import kernels
from dgcomp.select import initial_threshold, next_threshold, select_fixed


def _residual(kind: str, numel: int, seed: int) -> Tensor:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    return {
        "normal": x,
        "rounded": x.round(),
        "ones": torch.ones(numel),
        "zeros": torch.zeros(numel),
        "sparse": x * (x > 1.5),
        "subnormal": x * 1e-42,
    }[kind]


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(["normal", "rounded", "ones", "zeros", "sparse", "subnormal"]),
    numel=st.integers(0, 700),
    share=st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0, 1.5]),
    threshold=st.sampled_from([0.0, 0.5, 2.0, math.inf]),
    seed=st.integers(0, 2**63),
)
def test_exactly_the_k_largest(kind: str, numel: int, share: float, threshold: float, seed: int) -> None:
    residual = _residual(kind, numel, seed % 1000)
    k = math.ceil(share * numel)
    candidates = kernels.find_at_least(residual, threshold)
    chosen = select_fixed(residual, candidates, k, generator_seed=seed)
    expected = min(k, int((residual != 0).sum()))
    assert chosen.numel() == expected
    assert (chosen.diff() > 0).all()
    assert (residual[chosen] != 0).all()
    magnitudes = residual.abs()
    assert torch.equal(magnitudes[chosen].sort().values, magnitudes.topk(expected).values.sort().values)
    assert torch.equal(chosen, select_fixed(residual, candidates, k, generator_seed=seed))


@pytest.mark.parametrize("numel", [100_000, 300_007])
def test_too_few_candidates_are_made_up_from_the_whole_tensor(numel: int) -> None:
    residual = torch.randn(numel).pow(3)
    expected = residual.abs().topk(500).indices.sort().values
    for threshold in (math.inf, 40.0):
        candidates = kernels.find_at_least(residual, threshold)
        assert candidates.numel() < 500
        assert torch.equal(select_fixed(residual, candidates, 500, generator_seed=1), expected)


def test_a_sample_that_sees_only_zeros_still_gives_the_exact_result() -> None:
    residual = torch.zeros(1_000_000)
    residual[123_456:123_466] = 1.0
    chosen = select_fixed(residual, torch.empty(0, dtype=torch.int64), 5000, generator_seed=0)
    assert chosen.tolist() == list(range(123_456, 123_466))


def test_nan_does_not_crash_the_choice() -> None:
    chosen = select_fixed(torch.full((9,), math.nan), torch.arange(9), 4, generator_seed=0)
    assert chosen.numel() == 4


def test_ties_are_chosen_without_bias() -> None:
    """5 of 20 equal entries, and the larger one always; 2,000 seeds, chi-square over the entries."""
    residual = torch.cat([torch.ones(10), torch.tensor([3.0]), -torch.ones(10), torch.full((5,), 0.5)])
    candidates = kernels.find_at_least(residual, 0.1)
    counts = np.zeros(residual.numel())
    for seed in range(2000):
        counts[select_fixed(residual, candidates, 6, generator_seed=seed).numpy()] += 1
    assert counts[10] == 2000
    assert counts[21:].sum() == 0
    tied = np.delete(counts[:21], 10)
    # drawn without replacement, so the statistic is chi-square times (1 - 5/20)
    statistic = ((tied - 500) ** 2 / 500).sum() / (1 - 5 / 20)
    assert stats.chi2.sf(statistic, df=19) > 0.001


def test_initial_threshold_lets_about_one_and_a_half_k_pass() -> None:
    residual = torch.randn(1_000_000).pow(3)
    counts = [kernels.find_at_least(residual, initial_threshold(residual, 1000, seed)).numel() for seed in range(10)]
    # 256 sampled hits: standard deviation 1/16, so five of them are 0.47 k
    assert all(1000 < count < 2000 for count in counts)
    assert len(set(counts)) > 1
    assert initial_threshold(residual, 0, 0) == math.inf
    assert initial_threshold(torch.empty(0), 1, 0) == math.inf
    assert initial_threshold(torch.zeros(9), 3, 0) > 0


def test_next_threshold_at_the_edges() -> None:
    assert next_threshold(1.0, 10, 0, 1.0) == math.inf
    assert 0 < next_threshold(math.inf, 0, 5, 0.0) < 1e-40
    assert next_threshold(2.0, 5, 5, math.inf) == 2.0
    for threshold, count in ((math.inf, 0), (0.0, 100), (1.0, 10), (1.0, 11), (0.99, 10**6), (1.2, 3), (3.0, 0)):
        following = next_threshold(threshold, count, 10, 1.0)
        assert 0.2 < following < 1.0, "always below the k-th magnitude, and never far"


@pytest.mark.parametrize(("norm_falls", "most_candidates"), [(True, 2.0), (False, 3.0)])
def test_steered_threshold_rarely_needs_a_second_pass(norm_falls: bool, most_candidates: float) -> None:
    """Heavy-tailed noise on coordinates of log-normal scale, momentum 0.9, 0.1 %, 1,000 steps.

    While residuals still grow, the k-th magnitude rises from step to step and a threshold set by the last one lags; a
    norm that never falls makes this last for hundreds of steps, hence more candidates there.
    """
    rng = np.random.default_rng(0)
    numel, k, threshold, counts = 50_000, 50, math.inf, []
    scale, drift = np.exp(rng.standard_normal(numel, np.float32)), 0.3 * rng.standard_normal(numel, np.float32)
    momentum, residual = torch.zeros(numel), torch.zeros(numel)
    for step in range(1000):
        norm = 1 + 9 * np.exp(-step / 100) if norm_falls else 1.0
        noise = rng.standard_normal(numel, np.float32) / np.sqrt(rng.standard_gamma(2.0, numel, np.float32) / 2)
        gradient = torch.from_numpy(scale * (noise + drift) * np.float32(norm * np.exp(0.2 * rng.normal())))
        candidates = kernels.accumulate_select(gradient, momentum, residual, threshold=threshold)
        chosen = select_fixed(residual, candidates, k, generator_seed=step)
        assert chosen.numel() == k
        threshold = next_threshold(threshold, candidates.numel(), k, float(residual[chosen].abs().min()))
        kernels.mask(chosen, momentum, residual)
        counts.append(candidates.numel())
    settled = np.array(counts[20:])
    assert np.mean(settled < k) < 0.02
    assert settled.mean() <= most_candidates * k, settled.mean() / k
