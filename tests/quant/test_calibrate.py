"""Static scales come from the data, and a converted model answers to the bit like its context."""

from typing import Any

import pytest
import torch
from torch import nn

from dgcomp import quant
from dgcomp.quant.calibrate import QuantizedLayer


def _model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 10),
    ).eval()  # fmt: skip


def _batches() -> list[torch.Tensor]:
    return [torch.randn(4, 3, 9, 9) for _ in range(3)]


def test_scales_are_those_of_all_batches_together() -> None:
    model, batches = _model(), _batches()
    context = quant.calibrate(model, batches, quant.autocast(4, 4, model=model, first_last=None))
    everything = torch.cat(batches)
    expected = quant.octav_scale(everything, 4).item()
    assert context.recipe_of("0").activation_scale == pytest.approx(expected, rel=2e-3)
    assert context.recipe_of("0").unsigned is False
    assert context.recipe_of("2").unsigned is True
    with torch.no_grad():
        hidden = model[:2](everything)
    assert context.recipe_of("2").activation_scale == pytest.approx(
        quant.octav_scale(hidden, 4, signed=False).item(), rel=2e-3
    )
    largest = quant.calibrate(model, batches, quant.autocast(4, 4, model=model), "max").recipe_of("0").activation_scale
    assert largest == pytest.approx(everything.abs().max().item(), rel=4e-2)


@pytest.mark.parametrize("method", ["octav", "max", "percentile", "entropy", "mse"])
def test_every_method_gives_a_usable_scale(method: Any) -> None:
    model, batches = _model(), _batches()
    context = quant.calibrate(model, batches, quant.autocast(8, 8, model=model), method)
    x = batches[0]
    with torch.no_grad():
        plain = model(x)
        with context:
            static = model(x)
    assert (plain - static).square().mean() < 0.02 * plain.var()
    for name in ("0", "2", "5"):
        scale = context.recipe_of(name).activation_scale
        assert scale is not None
        assert 0.3 < scale < 10


def test_entropy_and_mse_clip_outliers() -> None:
    x = torch.cat([torch.randn(50_000), torch.tensor([60.0])])
    layer = nn.Sequential(nn.Linear(1, 1))
    for method, limit in (("entropy", 20.0), ("mse", 8.0), ("octav", 8.0), ("percentile", 8.0)):
        context = quant.calibrate(layer, [x[:, None]], quant.autocast(4, 4), method)  # type: ignore[arg-type]
        scale = context.recipe_of("0").activation_scale
        assert scale is not None
        assert 2 < scale < limit, method


@pytest.mark.parametrize("notation", ["4/4", "8/8", "3/5", "4/8/6/10", "4/-"])
@pytest.mark.parametrize("static", [False, True])
def test_converted_model_equals_its_context(notation: str, static: bool) -> None:
    model, batches = _model(), _batches()
    context = quant.autocast(notation, model=model)
    if static:
        context = quant.calibrate(model, batches, context)
    converted = quant.convert(model, context)
    x = batches[0]
    with torch.no_grad():
        with context:
            expected = model(x)
        torch.testing.assert_close(converted(x), expected, rtol=1e-6, atol=1e-6)
        with quant.autocast(2, 2):  # a context does not quantize a second time
            torch.testing.assert_close(converted(x), expected, rtol=1e-6, atol=1e-6)
    assert isinstance(model[0], nn.Conv2d)
    layer = converted.get_submodule("2")
    assert isinstance(layer, QuantizedLayer)
    if notation == "4/4":
        assert layer.codes.numel() == 8 * 36 // 2
    again = quant.convert(_model(), context)
    again.load_state_dict(converted.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), converted(x))


def test_a_single_layer_converts() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(2, 5)
    context = quant.autocast(4, 4)
    with context, torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(quant.convert(layer, context)(x), expected)


def test_errors() -> None:
    model = _model()
    with pytest.raises(ValueError, match="method must be one of octav, max, percentile, entropy, mse"):
        quant.calibrate(model, _batches(), quant.autocast(4, 4), "guess")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one batch"):
        quant.calibrate(model, [], quant.autocast(4, 4))
