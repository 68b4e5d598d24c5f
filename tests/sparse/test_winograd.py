"""Winograd layers against conv2d, gradients against finite differences, counts against brute force."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dgcomp.sparse import SparseWinogradConv2d, WinogradReLUConv2d, count_multiplies, transform_weight, winograd_conv2d
from dgcomp.sparse import winograd_autograd as by_hand
from dgcomp.sparse.networks import convpool_cnn_c, resnet18, vgg, vgg_nagadomi
from dgcomp.sparse.winograd import transform_input, transform_output


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 5), filters=st.integers(1, 5), height=st.integers(3, 11),
    width=st.integers(3, 11), padding=st.integers(0, 2), tile=st.sampled_from([2, 4]),
)  # fmt: skip
def test_identity_with_conv2d(
    batch: int, channels: int, filters: int, height: int, width: int, padding: int, tile: int
) -> None:
    x = torch.rand(batch, channels, height, width, dtype=torch.float64) - 0.5
    g = (torch.rand(filters, channels, 3, 3, dtype=torch.float64) - 0.5) / channels
    y = winograd_conv2d(x, transform_weight(g, tile), padding=padding, tile=tile, relu=False)
    assert y.shape == F.conv2d(x, g, padding=padding).shape
    torch.testing.assert_close(y, F.conv2d(x, g, padding=padding), rtol=0, atol=1e-13)
    single = winograd_conv2d(x.float(), transform_weight(g, tile).float(), padding=padding, tile=tile, relu=False)
    # F(4x4) has constants up to 8 and loses a digit more
    torch.testing.assert_close(single.double(), y, rtol=0, atol=1e-6 if tile == 2 else 1e-5)


def test_relu_acts_after_the_transform() -> None:
    x, layer = torch.randn(1, 1, 4, 4), WinogradReLUConv2d(1, 1, padding=0)
    bt = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    at = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
    m = layer.weight.view(4, 4) * (bt @ x[0, 0] @ bt.T).relu()
    torch.testing.assert_close(layer(x)[0, 0], at @ m @ at.T)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("tile", [2, 4])
def test_gradients(tile: int, relu: bool) -> None:
    layer = WinogradReLUConv2d(2, 3, tile=tile, dtype=torch.float64)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: winograd_conv2d(x, w, tile=tile, relu=relu), (x, weight))


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 5), channels=st.integers(1, 5), filters=st.integers(1, 5), height=st.integers(3, 11),
    width=st.integers(3, 11), padding=st.integers(0, 2), relu=st.booleans(), threads=st.integers(1, 2),
    channels_last=st.booleans(),
)  # fmt: skip
def test_gradient_by_hand_equals_autograd(
    batch: int, channels: int, filters: int, height: int, width: int, padding: int, relu: bool, threads: int,
    channels_last: bool,
) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randn(16, channels, filters, dtype=torch.float64)
    inputs = x.requires_grad_(), weight.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_hand, "TILES_PER_BLOCK", 20)  # several blocks of images, the last one smaller
        y = winograd_conv2d(*inputs, padding=padding, relu=relu)
        v = transform_input(x, padding=padding)
        m = (weight.transpose(1, 2) @ (v.relu() if relu else v).flatten(2)).unflatten(2, v.shape[2:])
        expected = transform_output(m, *y.shape[2:])
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        grad = torch.randn_like(y)
        torch.testing.assert_close(
            torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), rtol=0, atol=1e-12
        )


def test_gradient_by_hand_at_the_edges() -> None:
    layer = WinogradReLUConv2d(3, 2)
    layer(torch.randn(2, 3, 6, 6)).sum().backward()  # an input that needs no gradient
    assert layer.weight.grad.any()
    assert layer(torch.randn(0, 3, 6, 6)).shape == (0, 2, 6, 6)
    x = torch.randn(1, 3, 6, 6)
    x[0, 1, 2, 3] = torch.nan
    assert torch.isnan(layer(x)[..., 2:4, 2:4]).all()
    (grad,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_starts_from_a_spatial_convolution() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 3, 7, 9)
    layer = WinogradReLUConv2d.from_conv2d(conv, relu=False)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-6)


def test_initial_weights_keep_the_scale() -> None:
    out = WinogradReLUConv2d(64, 64)(torch.randn(8, 64, 16, 16))
    # 18 C var(U) = 18 * 0.5625 / 16 = 0.63 of the input's variance
    assert 0.4 < out.var() < 0.9


@pytest.mark.parametrize("tile", [2, 4])
@torch.no_grad()
def test_weights_reset_from_spatial_ones_convolve(tile: int) -> None:
    layer = WinogradReLUConv2d(32, 32, padding=0, tile=tile, relu=False)
    layer.reset_from_spatial()
    x = torch.randn(8, 32, 12, 12)
    y = layer(x)
    # a shift by one pixel shifts the output, which free Winograd weights don't do
    torch.testing.assert_close(layer(x[:, :, 1:, 1:]), y[:, :, 1:, 1:], rtol=1e-3, atol=1e-3)
    assert y.var() == pytest.approx(2, rel=0.1)  # He: 2 / (9 C) for each of 9 C products
    fresh = WinogradReLUConv2d(32, 32, padding=0, tile=2, relu=False)
    assert (fresh(x)[:, :, 1:, 1:] - fresh(x[:, :, 1:, 1:])).var() > 0.1


def test_multiplies_by_hand() -> None:
    model = nn.Sequential(WinogradReLUConv2d(2, 3), nn.Flatten(), nn.Linear(48, 5))
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
    conv, linear = count_multiplies(model, x).layers
    assert conv.direct == 9 * 2 * 3 * 2 * 16
    assert conv.dense == 2 * 4 * 16 * 2 * 3
    assert conv.direct / conv.dense == 2.25
    padded, pairs = F.pad(x, (1, 1, 1, 1)), 0
    bt = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    for image in padded:
        for top in (0, 2):
            for left in (0, 2):
                v = (bt @ image[:, top : top + 4, left : left + 4] @ bt.T).flatten(1)
                for t in range(16):
                    for c in range(2):
                        pairs += int(v[c, t] > 0) * int((model[0].weight[t, c] != 0).sum())
    assert conv.sparse == pairs
    hidden = model[:2](x)
    assert linear.sparse == int(((hidden != 0).double() @ (model[2].weight != 0).double().T).sum())


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_multiplies_of_a_spatial_convolution(stride: int, groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=stride, groups=groups)
    x = torch.randn(2, 4, 7, 7).relu()
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.5)
    (layer,) = count_multiplies(conv, x).layers
    pairs = F.conv2d((x != 0).double(), (conv.weight != 0).double(), None, stride, 1, 1, groups)
    assert layer.sparse == int(pairs.sum())
    assert layer.direct == layer.dense == conv(x).numel() * 9 * 4 // groups


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("tile", [2, 4])
def test_sparse_path_equals_the_layer(density: float, tile: int) -> None:
    layer = WinogradReLUConv2d(5, 7, tile=tile)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < density)
    x = torch.randn(3, 5, 9, 11)
    sparse = SparseWinogradConv2d(layer)
    torch.testing.assert_close(sparse(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.set_num_threads(2)
    torch.testing.assert_close(sparse(x), layer(x), rtol=1e-4, atol=1e-5)
    assert sparse.density == pytest.approx(float((layer.weight != 0).float().mean()))


@pytest.mark.parametrize("kind", ["spatial", "winograd", "winograd-relu"])
def test_networks_run_and_keep_their_first_layer_ordinary(kind: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    for model, classes in ((vgg_nagadomi(kind), 10), (convpool_cnn_c(kind), 100), (resnet18(kind), 1000)):
        assert model.eval()(x).shape == (2, classes)
        first = next(m for m in model.modules() if isinstance(m, nn.Conv2d | WinogradReLUConv2d))
        assert isinstance(first, nn.Conv2d)
    small = vgg(kind, ((8, 8), (16,)), in_channels=1)
    small(torch.randn(2, 1, 28, 28)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_resnet18_has_sixteen_winograd_layers() -> None:
    layers = [m for m in resnet18().modules() if isinstance(m, WinogradReLUConv2d)]
    assert [m.out_channels for m in layers] == [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="groups must be 1, got 2"):
        WinogradReLUConv2d(4, 4, groups=2)
    with pytest.raises(ValueError, match="tile must be 2"):
        WinogradReLUConv2d(4, 4, tile=3)
    with pytest.raises(ValueError, match=r"x must have shape \[N, 4, H, W\]"):
        WinogradReLUConv2d(4, 4)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="conv must be 3x3"):
        WinogradReLUConv2d.from_conv2d(nn.Conv2d(4, 4, 3, stride=2, bias=False))
