"""Learned scales: gradients as `fake_quantize` with "lsq" has them, eager and compiled; training, audit, conversion."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcomp import quant


def _model() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    return model, torch.randn(6, 3, 8, 8)


def _lsq(model: nn.Module, **options: object) -> quant.autocast:
    return quant.autocast(4, 4, model=model, weight_estimator="lsq", activation_estimator="lsq", **options)


def test_scales_start_at_octav_and_get_lsq_gradients() -> None:
    model, x = _model()
    context, scales = quant.learn_scales(model, _lsq(model), x)
    assert sorted(scales) == [f"{i}/{role}" for i in "024" for role in ("activation", "weight")]
    assert torch.equal(scales["2/weight"], quant.octav_scale(model[2].weight, 4, dim=(1, 2, 3)))
    with context:
        y = model(x)
    y.square().sum().backward()
    found = {name: p.grad for name, p in [*model.named_parameters(), *scales.items()]}

    def operand(t: Tensor, name: str, bits: int, signed: bool = True) -> Tensor:
        return quant.fake_quantize(t, scales[name], bits, signed, "lsq")

    for p in [*model.parameters(), *scales.values()]:
        p.grad = None
    h = F.conv2d(operand(x, "0/activation", 8), operand(model[0].weight, "0/weight", 8), model[0].bias).relu()
    h = F.conv2d(operand(h, "2/activation", 4, False), operand(model[2].weight, "2/weight", 4), model[2].bias)
    expected = F.linear(
        operand(h.flatten(1), "4/activation", 8), operand(model[4].weight, "4/weight", 8), model[4].bias
    )
    assert torch.equal(y, expected)
    expected.square().sum().backward()
    for name, p in [*model.named_parameters(), *scales.items()]:
        torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-5)


def test_compiled_gradients() -> None:
    model, x = _model()
    context, scales = quant.learn_scales(model, _lsq(model), x)
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        with context:
            run(x).square().sum().backward()
        parameters = [*model.parameters(), *scales.values()]
        results.append([p.grad for p in parameters])
        for p in parameters:
            p.grad = None
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-4)


def test_training_moves_the_scales_and_the_audit_sees_them() -> None:
    model, x = _model()
    context, scales = quant.learn_scales(model, _lsq(model), x)
    before = {name: scale.detach().clone() for name, scale in scales.items()}
    groups = [{"params": list(model.parameters())}, {"params": list(scales.values()), "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    target, losses = torch.randn(6, 5), []
    for _ in range(15):
        with context:
            loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(before[name], scale) for name, scale in scales.items())
    report = quant.audit(model, x, context=context)
    assert [row.weight_bits for row in report.quantized] == [8, 4, 8]
    assert report.escaped == []
    with context:
        expected = model.eval()(x)
    assert torch.equal(quant.convert(model, context)(x), expected)


def test_errors() -> None:
    model, x = _model()
    with pytest.raises(ValueError, match=r"learns scales, and this layer has none: .*quant\.learn_scales"), _lsq(model):
        model(x)
    with pytest.raises(ValueError, match="no layer that ran has a scale to learn"):
        quant.learn_scales(model, quant.autocast(4, 4, model=model), x)
    with pytest.raises(ValueError, match="matmul=True has no layers"):
        quant.autocast(4, 4, activation_estimator="lsq", matmul=True)
