"""The reader of TensorFlow.js graphs on a small graph of every operator, against plain loops; and CenterNet on it."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgcomp.video.centernet import STRIDE, CenterNet
from dgcomp.video.frames import resize_frame
from dgcomp.video.tfjs import GraphModel


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


def conv_attributes(stride: int, padding: str = "SAME", fused: tuple[str, ...] = ()) -> dict[str, Any]:
    steps = {"list": {"i": ["1", str(stride), str(stride), "1"]}}
    ones = {"list": {"i": ["1", "1", "1", "1"]}}
    names = {"list": {"s": [text(name)["s"] for name in fused]}}
    return {"strides": steps, "dilations": ones, "padding": text(padding), "fused_ops": names}


def write_model(folder: Path, nodes: list[dict[str, Any]], weights: dict[str, np.ndarray]) -> Path:
    """A graph model whose matrices are stored as float16, as in the package."""
    entries, data = [], b""
    for name, value in weights.items():
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": "float32"}
        if value.dtype == np.int32:
            entry["dtype"] = "int32"
            data += value.tobytes()
        else:
            entry["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
            data += value.astype(np.float16).tobytes()
        entries.append(entry)
    (folder / "model.bin").write_bytes(data)
    document = {
        "format": "graph-model",
        "modelTopology": {"node": nodes + [{"name": name, "op": "Const"} for name in weights]},
        "weightsManifest": [{"paths": ["model.bin"], "weights": entries}],
    }
    path = folder / "model.json"
    path.write_text(json.dumps(document))
    return path


def node(name: str, operator: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": operator, "input": list(inputs), "attr": attributes}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 7), (9, 8)])
@pytest.mark.parametrize("is_depthwise", [False, True])
def test_convolutions_against_loops(tmp_path: Path, stride: int, size: tuple[int, int], is_depthwise: bool) -> None:
    """SAME padding leaves ceil(size / stride) outputs and puts an odd pixel at the end; bias, then the activation."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 3, 3, 1 if is_depthwise else 4)).astype(np.float16).astype(np.float32)
    outputs = 3 if is_depthwise else 4
    bias = rng.normal(size=outputs).astype(np.float16).astype(np.float32)
    kind = "FusedDepthwiseConv2dNative" if is_depthwise else "_FusedConv2D"
    attributes = conv_attributes(stride, fused=("BiasAdd", "Relu"))
    nodes = [node("x", "Placeholder"), node("y", kind, "x", "w", "b", **attributes)]
    model = GraphModel(write_model(tmp_path, nodes, {"w": weight, "b": bias}), ("y",))
    image = rng.normal(size=(3, *size)).astype(np.float32)
    (ours,) = model(torch.from_numpy(image)[None])
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    total = [max((count - 1) * stride + 3 - side, 0) for count, side in zip((rows, columns), size, strict=True)]
    padded = np.pad(image, [(0, 0), *((t // 2, t - t // 2) for t in total)])
    expected = np.zeros((outputs, rows, columns))
    for o, i, j in np.ndindex(outputs, rows, columns):
        patch = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
        if is_depthwise:
            expected[o, i, j] = (patch[o] * weight[:, :, o, 0]).sum() + bias[o]
        else:
            expected[o, i, j] = (patch * weight[..., o].transpose(2, 0, 1)).sum() + bias[o]
    np.testing.assert_allclose(ours[0].detach().numpy(), np.maximum(expected, 0), atol=1e-4)


def test_other_operators(tmp_path: Path) -> None:
    nodes = [
        node("x", "Placeholder"),
        node("mean", "Mean", "x", "axes"),
        node("sum", "Add", "x", "mean"),
        node("up", "ResizeBilinear", "sum", "size"),
        node("both", "ConcatV2", "up", "up", "axis"),
        node("half", "Mul", "both", "factor"),
        node("six", "Relu6", "half"),
        node("out", "Identity", "six"),
    ]
    constants = {"axes": np.array([1, 2], np.int32), "size": np.array([4, 4], np.int32), "axis": np.array(3, np.int32)}
    model = GraphModel(write_model(tmp_path, nodes, {**constants, "factor": np.array(0.5, np.float32)}), ("out",))
    image = torch.tensor([[[[0.0, 4.0], [8.0, 20.0]]]])
    (out,) = model(image)
    added = image[0, 0] + 8
    # Positions 0, 0.5, 1, 1.5 of the input, the last clamped to 1.
    axis = torch.tensor([[1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    expected = (0.5 * (axis @ added @ axis.T)).clamp(0, 6)
    assert out.shape == (1, 2, 4, 4)
    torch.testing.assert_close(out[0, 0], expected)
    torch.testing.assert_close(out[0, 1], expected)


def test_bad_models(tmp_path: Path) -> None:
    path = write_model(tmp_path, [node("x", "Placeholder"), node("y", "Einsum", "x")], {})
    with pytest.raises(ValueError, match="has operators Einsum that this reader lacks"):
        GraphModel(path, ("y",))
    with pytest.raises(ValueError, match="outputs z are no nodes of the model"):
        GraphModel(path, ("z",))
    path.write_text('{"format": "layers-model"}')
    with pytest.raises(ValueError, match="must be a TensorFlow.js graph model, got format 'layers-model'"):
        GraphModel(path, ("y",))


def blob_model(folder: Path) -> Path:
    """A "CenterNet" that finds bright spots: its heat map is the brightness of each 4 x 4 square, boxes are 16 x 16."""
    heat = np.zeros((4, 4, 3, 80), dtype=np.float32)
    heat[..., 0] = 1 / (48 * 255)
    nodes = [
        node("images", "Placeholder"),
        node("tower_0/keypoints", "Conv2D", "images", "heat", **conv_attributes(4, "VALID")),
        node("zero", "Conv2D", "images", "nothing", **conv_attributes(4, "VALID")),
        node("tower_0/wh", "Add", "zero", "eight"),
    ]
    nothing = np.zeros((4, 4, 3, 4), dtype=np.float32)
    return write_model(folder, nodes, {"heat": heat, "nothing": nothing, "eight": np.array(8, np.float32)})


def spots(*corners: tuple[int, int]) -> np.ndarray:
    frame = np.zeros((96, 160, 3), dtype=np.uint8)
    for x, y in corners:
        frame[y : y + 4, x : x + 4] = 200
    return frame


def test_centernet_on_regions(tmp_path: Path) -> None:
    """The rectangles see what the whole frame sees there, an object in two of them counts once, and macs are exact."""
    detector = CenterNet(blob_model(tmp_path), min_score=0.1)
    frame = spots((20, 40), (120, 12))
    whole = detector.detect(frame)
    assert sorted(whole.boxes.tolist()) == [[12, 32, 28, 48], [112, 4, 128, 20]]
    np.testing.assert_allclose(whole.scores, 200 / 255, rtol=1e-3)
    assert whole.classes.tolist() == [0, 0]
    regions = np.array([[10.0, 30, 30, 50], [0, 20, 50, 90]])
    part = detector.detect(frame, regions)
    assert part.boxes.tolist() == [[12, 32, 28, 48]]
    assert len(detector.detect(frame, regions[:0])) == 0
    # In the rectangle of 32 x 32 around this region, but not in the region itself.
    assert len(detector.detect(frame, np.array([[30.0, 40, 36, 44]]))) == 0
    macs_per_pixel = 3 * 84  # 4 x 4 x 3 x 84 for each 4 x 4 square
    assert detector.operations(96, 160).total == 96 * 160 * macs_per_pixel
    assert detector.operations(96, 160).mask_fraction == 1
    cost = detector.operations(96, 160, regions)
    assert cost.total == 64 * 96 * macs_per_pixel  # the two regions as one rectangle of 64 x 96
    assert cost.total == detector._network.macs(96, 64)
    assert cost.mask_fraction == pytest.approx(64 * 96 / (96 * 160))
    assert detector.operations(96, 160, regions[:0]).total == 0


def test_centernet_zooms(tmp_path: Path) -> None:
    detector = CenterNet(blob_model(tmp_path), zoom=2, min_score=0.3)
    assert detector.detect(spots((20, 40))).boxes.tolist()[0][:2] == pytest.approx([16, 36], abs=2)
    assert detector.operations(96, 160).total == 4 * 96 * 160 * 3 * 84
    odd = detector.operations(50, 50)  # 100 pixels: computed on the next multiple of 32
    assert odd.total == (4 * STRIDE) ** 2 * 3 * 84
    with pytest.raises(ValueError, match="zoom must be positive, got 0"):
        CenterNet(blob_model(tmp_path), zoom=0)


def test_resize_keeps_the_mean() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    assert resize_frame(frame, 1.0) is frame
    larger = resize_frame(frame, 1.5)
    assert larger.shape == (18, 30, 3)
    assert larger.mean() == pytest.approx(frame.mean(), rel=0.02)
