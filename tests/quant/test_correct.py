"""A corrected copy has the original's means and variances in its context, and is the original where nothing changed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dgcomp import quant


def _convolutions() -> nn.Sequential:
    """Convolutions with batch norms whose statistics fit the data, as training leaves them; no norm at the end."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 6, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(64, 3, 8, 8))
    return model


def _outputs(model: nn.Module, name: str, x: Tensor, context: quant.autocast | None = None) -> Tensor:
    """What the module of this name puts out, per channel (C, samples)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), context if context is not None else quant.disabled():
        model.eval()(x)
    handle.remove()
    return seen[0].transpose(0, 1).flatten(1)


def test_a_norm_gives_the_moments_and_a_bare_layer_the_means_of_floating_point() -> None:
    model, x = _convolutions(), torch.randn(256, 3, 8, 8)
    context = quant.autocast(2, 3, model=model, first_last=None)
    corrected = quant.correct_statistics(model, [x], context)
    for name in ("1", "4"):
        wanted, before = _outputs(model, name, x), _outputs(model, name, x, context)
        after = _outputs(corrected, name, x, context)
        torch.testing.assert_close(after.mean(1), wanted.mean(1), rtol=0, atol=1e-4)
        torch.testing.assert_close(after.std(1), wanted.std(1), rtol=1e-4, atol=0)
        assert (before.std(1) / wanted.std(1) - 1).abs().max() > 0.05, name  # there was something to correct
    wanted, after = _outputs(model, "7", x), _outputs(corrected, "7", x, context)
    torch.testing.assert_close(after.mean(1), wanted.mean(1), rtol=0, atol=1e-4)
    assert corrected.get_submodule("3").bias is not None
    assert torch.equal(corrected.get_submodule("3").weight, model[3].weight)


def test_several_batches_correct_what_other_samples_show() -> None:
    model, x = _convolutions(), torch.randn(512, 3, 8, 8)
    context = quant.autocast(3, 3, model=model)
    batches = [(torch.randn(64, 3, 8, 8),) for _ in range(4)]  # tuples of arguments
    corrected = quant.correct_statistics(model, batches, context)
    wanted = _outputs(model, "7", x)
    before = (_outputs(model, "7", x, context) - wanted).square().mean()
    after = (_outputs(corrected, "7", x, context) - wanted).square().mean()
    assert after < 0.8 * before


def test_nothing_changes_where_nothing_was_quantized_and_the_original_stays() -> None:
    model = _convolutions().train()
    model[2].eval()
    state = copy.deepcopy(model.state_dict())
    corrected = quant.correct_statistics(model, [torch.randn(32, 3, 8, 8)], quant.autocast("-/-"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
        torch.testing.assert_close(corrected.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert [module.training for module in model] == [True, True, False, True, True, True, True, True]
    assert not corrected.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model)


def test_attention_and_layers_without_norm_get_biases() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Conv1d(12, 4, 3), nn.ConvTranspose1d(4, 4, 3, groups=2)).eval()
    x = torch.randn(40, 12, 16)
    context = quant.autocast(3, 3, model=model, first_last=None)
    corrected = quant.correct_statistics(model, [x], context)
    for name, channel in (("0.self_attn.out_proj", -1), ("0.linear1", -1), ("0.linear2", -1), ("1", 1), ("2", 1)):
        bias, original = (m.get_submodule(name).bias for m in (corrected, model))
        assert bias.shape == original.shape
        assert not torch.equal(bias, original), (name, channel)
    with torch.no_grad(), context:
        before, after = model(x), corrected(x)
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(after.mean((0, 2)), wanted.mean((0, 2)), rtol=0, atol=1e-4)
    assert (after - wanted).square().mean() < (before - wanted).square().mean()


def test_a_dead_channel_and_a_layer_called_twice() -> None:
    conv, norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, norm, conv, norm).eval()
    with torch.no_grad():
        conv.weight[1] = 0
    x = torch.randn(32, 4, 5, 5)
    context = quant.autocast(2, 2)
    corrected = quant.correct_statistics(model, [x, x], context)
    with torch.no_grad(), context:
        assert corrected(x).isfinite().all()
    assert (corrected[1].running_var >= 0).all()


def test_a_corrected_model_converts_and_takes_static_scales() -> None:
    model, x = _convolutions(), torch.randn(64, 3, 8, 8)
    context = quant.calibrate(model, [x], quant.autocast(4, 4, model=model))
    corrected = quant.correct_statistics(model, [x], context)
    with torch.no_grad(), context:
        expected = corrected(x)
    torch.testing.assert_close(quant.convert(corrected, context)(x), expected, rtol=1e-5, atol=1e-5)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        quant.correct_statistics(_convolutions(), [], quant.autocast(4, 4))
