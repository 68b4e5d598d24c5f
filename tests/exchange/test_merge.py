"""The merge against adding dense vectors one rank after the other: the same bits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.exchange.merge import merge


@settings(deadline=None, max_examples=60)
@given(
    numel=st.sampled_from([1, 64, 1000, 32768, 32769, 200_000]),
    density=st.sampled_from([0.0, 0.001, 0.3, 1.0]),
    ranks=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_merge_is_the_sum_in_rank_order(numel: int, density: float, ranks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected, union = torch.zeros(numel), torch.zeros(numel, dtype=torch.bool)
    positions, values = [], []
    for rank in range(ranks):
        where = (torch.rand(numel, generator=generator) < density * (rank + 1) / ranks).nonzero().squeeze(1)
        positions.append(where)
        values.append(torch.randn(len(where), generator=generator) * 10.0 ** (3 * rank))
        expected[where] += values[-1]
        union[where] = True
    where, sums = merge(positions, values, numel)
    assert torch.equal(where, union.nonzero().squeeze(1))
    assert torch.equal(sums, expected[where])


def test_merge_jumps_over_empty_space() -> None:
    far = 2**47
    where, sums = merge(
        [torch.tensor([5, far]), torch.tensor([far, far + 1])],
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])],
        2**48,
    )
    assert where.tolist() == [5, far, far + 1]
    assert sums.tolist() == [1, 5, 4]


def test_a_position_that_cancels_stays_in_the_union() -> None:
    where, sums = merge([torch.tensor([3]), torch.tensor([3])], [torch.tensor([1.5]), torch.tensor([-1.5])], 10)
    assert where.tolist() == [3]
    assert sums.tolist() == [0]
