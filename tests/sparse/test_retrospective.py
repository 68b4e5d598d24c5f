"""2:4 weights, group-wise 4-bit weights, and live activation sparsity."""

import pytest
import torch
from torch import nn

from dgcomp.sparse import NM, ActivityMeter, GroupWeights, Packed24, to_semi_structured


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_of_four_packs_exactly(dtype: torch.dtype) -> None:
    weight = torch.randn(12, 40, dtype=dtype)
    weight = weight * NM(2, 4)(weight, 0.5)
    weight[3, :8] = 0  # groups with fewer than two nonzeros pack as well
    packed = to_semi_structured(weight)
    assert isinstance(packed, Packed24)
    assert torch.equal(packed.to_dense(), weight)
    x = torch.randn(2, 3, 40, dtype=dtype)
    torch.testing.assert_close(packed.matmul(x), x @ weight.T)
    assert packed.values.nbytes * 2 == weight.nbytes
    with pytest.raises(ValueError, match="at most 2 nonzeros in 4 columns, got 4"):
        Packed24.from_dense(torch.ones(4, 8))
    with pytest.raises(ValueError, match="multiple of 4 columns"):
        Packed24.from_dense(torch.ones(4, 6))
    with pytest.raises(ValueError, match=r"x must be .* \[\.\.\., 40\]"):
        packed.matmul(torch.zeros(39, dtype=dtype))


def test_group_weights_round_to_half_a_step() -> None:
    weight = torch.randn(8, 256)
    packed = GroupWeights.from_dense(weight, group=64)
    assert packed.bits_per_weight == 4.25
    step = packed.scales.float().repeat_interleave(64, dim=1)
    # half a step, plus what float16 rounds off the scale at seven steps
    assert ((packed.to_dense() - weight).abs() <= (0.5 + 7 * 2**-11) * step).all()
    x = torch.randn(3, 256)
    torch.testing.assert_close(packed.matmul(x), x @ packed.to_dense().T)
    assert packed.matmul(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(GroupWeights.from_dense(torch.zeros(2, 64), group=64).to_dense(), torch.zeros(2, 64))
    with pytest.raises(ValueError, match="group must be even and divide"):
        GroupWeights.from_dense(weight, group=96)
    with pytest.raises(ValueError, match="weight must be finite"):
        GroupWeights.from_dense(weight / 0, group=64)


def test_activity_is_counted_while_the_meter_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    with ActivityMeter(model) as meter:
        model(x)
        model(x)
    model(torch.ones(5, 4))  # after the meter
    assert meter["0"].density == 0.25
    assert meter["0"].token_density == 0.5
    hidden = model[:2](x)
    assert meter.densities()["2"] == pytest.approx(float((hidden != 0).float().mean()))
    assert meter["0"].values == 16
    with pytest.raises(ValueError, match="layers must name"):
        ActivityMeter(model, ["none"])
