"""The two options of a training script."""

import pytest
import torch
from torch import nn

from dgcomp.sparse import Cubic, Iterative, OneShot, WinogradReLUConv2d
from dgcomp.sparse.options import convert_to_winograd, parse_schedule


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("0.1", OneShot(0.1)),
        ("0.1@500", OneShot(0.1, 500)),
        ("0.1@500-2500", Cubic(0.1, 500, 2500)),
        ("0.5,0.3,0.1@700", Iterative([0.5, 0.3, 0.1], 700)),
    ],
)
def test_schedules(text: str, schedule: object) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize("text", ["", "2", "0", "0.5,0.1", "0.5,0.1@3-9", "0.1@x"])
def test_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="prune must look like"):
        parse_schedule(text)


def test_conversion() -> None:
    def conv(stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, stride=stride, padding=1, bias=False)

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), conv(), nn.ReLU(), conv(2), nn.Sequential(conv()))
    x = torch.randn(2, 3, 8, 8)
    plain = nn.Sequential(*model)
    expected = plain(x)
    same = nn.Sequential(*model)
    assert convert_to_winograd(same, relu=False) == 2
    torch.testing.assert_close(same(x), expected, rtol=1e-4, atol=1e-5)

    moved = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), conv(), nn.ReLU(), conv(2), nn.Sequential(conv()))
    assert convert_to_winograd(moved) == 2
    assert [type(m) for m in moved[:5]] == [nn.Conv2d, nn.Identity, WinogradReLUConv2d, nn.ReLU, nn.Conv2d]
    assert moved(x).shape == expected.shape
