"""The audit lists what was quantized and what escaped; strict mode refuses an escape."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp import quant


class Attention(nn.Module):
    """One layer that a context sees, one product of activations that it sees only when asked, one plain product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(torch.softmax(x @ x.transpose(-1, -2), -1) @ x)


def test_rows_bits_and_ratios() -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    result = quant.audit(model, x, context=quant.autocast(4, 4, model=model, rules={"last": "4/8"}))
    assert [(row.layer, row.weight_bits, row.activation_bits) for row in result.quantized] == [
        ("first", 8, 8),
        ("last", 4, 8),
    ]
    assert result.quantized[0].weight_sqnr_db > result.quantized[1].weight_sqnr_db > 15
    assert 0 <= result.quantized[1].weight_clipped < 0.2
    assert [name for _, name, _ in result.escaped] == ["bmm", "bmm"]
    assert result.escaped[0][2] == (2, 5, 5)
    table = result.table()
    assert "first" in table
    assert "escaped: [2, 5, 5]" in table


def test_matmul_leaves_no_escape() -> None:
    model, x = Attention(), torch.randn(2, 5, 8)
    result = quant.audit(model, x, context=quant.autocast(4, 4, matmul=True), strict=True)
    assert not result.escaped
    products = [row for row in result.quantized if row.weight_bits is None]
    assert len(products) == 4  # two operands of two products
    assert all(math.isnan(row.weight_sqnr_db) and row.activation_sqnr_db > 10 for row in products)


def test_strict_raises_on_an_escape_and_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Attention())
    with pytest.raises(quant.EscapedMatmulError, match="bmm in layer '1' ran on operands that are not quantized"):
        quant.audit(model, torch.randn(2, 5, 8), strict=True)


def test_the_active_context_is_judged_and_training_state_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model[1].eval()
    with quant.autocast(3, 5):
        result = quant.audit(model, torch.randn(2, 3, 8, 8))
    assert {(row.operator, row.weight_bits, row.activation_bits) for row in result.quantized} == {("conv2d", 3, 5)}
    assert not result.escaped
    assert model.training
    assert not model[1].training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_vectors_and_float_layers() -> None:
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    context = quant.autocast("4/8/6/10", model=model, first_last=None, rules={"1": None})
    result = quant.audit(model, torch.randn(4, 32), context=context)
    assert [row.weight_bits for row in result.quantized] == [4, None, 4]
    assert result.quantized[0].activation_sqnr_db > 35
    assert math.isnan(result.quantized[1].activation_sqnr_db)
