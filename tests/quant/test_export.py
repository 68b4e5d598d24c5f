"""The ONNX file holds QDQ pairs and computes what the calibrated context computes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dgcomp import quant


def _model() -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    return model.eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.optional
@pytest.mark.parametrize("bits", [4, 8])
def test_exported_values_equal_the_context(bits: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model, x = _model()
    context = quant.calibrate(model, [x], quant.autocast(bits, bits, model=model))
    quant.export_onnx(model, context, (x,), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("DequantizeLinear") == 6
    assert kinds.count("Conv") == 2
    (y,) = reference.ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    with context, torch.no_grad():
        expected = model(x)
    # A product that lands on a rounding tie may fall either way: one step of one activation, not more.
    assert (torch.from_numpy(y) - expected).abs().max() < 0.02 * expected.abs().max()


def test_errors() -> None:
    pytest.importorskip("onnx")
    model, x = _model()
    with pytest.raises(ValueError, match="no static activation scale"):
        quant.export_onnx(model, quant.autocast(4, 4), (x,), "unused.onnx")
    with pytest.raises(ValueError, match="scales per vector"):
        quant.export_onnx(model, quant.autocast("4/4/4/4"), (x,), "unused.onnx")
