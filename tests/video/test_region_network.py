"""A network on regions with the rest remembered, against the whole image; and CenterNet on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dgcomp.video.centernet import CenterNet, CenterNetWithMemory
from dgcomp.video.region_network import RegionNetwork
from dgcomp.video.tfjs import GraphModel
from tests.video.test_tfjs import blob_model, conv_attributes, node, spots, write_model

HEIGHT, WIDTH = 48, 64
RECTANGLES = [
    [[0, 0, 64, 48]],
    [[13, 9, 30, 27]],
    [[0, 0, 9, 10], [50, 40, 64, 48]],
    [[20, 16, 44, 33], [31, 3, 50, 21]],  # they overlap
]


def small_model(folder: Path, *, has_mean: bool) -> GraphModel:
    """Strides 2, 4 and back to 2 with a connection past the middle; with or without a squeeze-and-excitation."""
    rng = np.random.default_rng(0)
    nodes = [
        node("x", "Placeholder"),
        node("half", "_FusedConv2D", "x", "w1", "b1", **conv_attributes(2, fused=("BiasAdd", "Relu"))),
        node("quarter", "DepthwiseConv2dNative", "half", "w2", **conv_attributes(2)),
        node("mixed", "Conv2D", "quarter", "w3", **conv_attributes(1)),
        node("up", "ResizeBilinear", "mixed", "size"),
        node("side", "DepthwiseConv2dNative", "half", "w4", **conv_attributes(1)),
        node("both", "ConcatV2", "side", "up", "axis"),
        node("mean", "Mean", "both", "axes"),
        node("gate", "Conv2D", "mean", "w5", **conv_attributes(1)),
        node("gated", "Mul", "both", "gate" if has_mean else "two"),
        node("out", "Conv2D", "gated", "w6", **conv_attributes(1)),
    ]
    shapes = {"w1": (3, 3, 3, 6), "w2": (5, 5, 6, 1), "w3": (1, 1, 6, 4), "w4": (3, 3, 6, 1), "w5": (1, 1, 10, 10)}
    shapes["w6"] = (3, 3, 10, 2)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"b1": rng.normal(size=6).astype(np.float32), "two": np.array(2, np.float32)}
    weights |= {"axes": np.array([1, 2], np.int32), "size": np.array([2, 2], np.int32), "axis": np.array(3, np.int32)}
    return GraphModel(write_model(folder, nodes, weights), ("out", "up")).double()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return first, second


@pytest.mark.parametrize("rectangles", RECTANGLES)
@pytest.mark.parametrize("has_mean", [False, True])
def test_same_image_gives_the_same(tmp_path: Path, rectangles: list[list[int]], has_mean: bool) -> None:
    network = RegionNetwork(small_model(tmp_path, has_mean=has_mean))
    image, _ = images()
    expected = [output.clone() for output in network.whole(image)]
    for ours, theirs in zip(network.update(image, np.array(rectangles)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rectangles", RECTANGLES)
def test_what_changed_inside_a_region(tmp_path: Path, rectangles: list[list[int]]) -> None:
    """Where all that a position sees lies in regions or has not changed, it is what the whole image gives."""
    model = small_model(tmp_path, has_mean=False)
    network = RegionNetwork(model)
    old, new = images()
    seen = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for x1, y1, x2, y2 in rectangles:
        seen[y1:y2, x1:x2] = True
    image = old.clone()
    reach = 16  # more than half the receptive field
    for x1, y1, x2, y2 in rectangles:  # changes far inside, so that nothing outside of the region depends on them
        rows = slice(y1 + reach if y1 else 0, max(y2 - reach, 0) if y2 < HEIGHT else HEIGHT)
        columns = slice(x1 + reach if x1 else 0, max(x2 - reach, 0) if x2 < WIDTH else WIDTH)
        image[:, :, rows, columns] = new[:, :, rows, columns]
    network.whole(old)
    outputs = network.update(image, np.array(rectangles))
    for ours, theirs in zip(outputs, model(image), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_outside_nothing_changes(tmp_path: Path) -> None:
    network = RegionNetwork(small_model(tmp_path, has_mean=True))
    old, new = images()
    before = network.whole(old)[0].clone()
    after = network.update(new, np.array([[13, 9, 30, 27]]))[0]
    changed = (after != before).any(dim=1)[0]
    assert changed[4:14, 6:15].any()
    changed[4:14, 6:15] = False  # floor(9 / 2) to ceil(27 / 2), floor(13 / 2) to 30 / 2
    assert not changed.any()


def test_operations(tmp_path: Path) -> None:
    model = small_model(tmp_path, has_mean=True).float()
    network = RegionNetwork(model)
    gate = 10 * 10
    whole = network.macs(np.array([[0, 0, WIDTH, HEIGHT]]), HEIGHT, WIDTH)
    assert whole == model.macs(HEIGHT, WIDTH) - gate
    assert network.macs(np.zeros((0, 4), dtype=np.int64), HEIGHT, WIDTH) == 0
    at_two, at_four = 27 * 6 + 9 * 6 + 9 * 10 * 2, 25 * 6 + 6 * 4
    # x from 13 to 30: positions 6 to 14 of stride 2, 3 to 7 of stride 4; y from 9 to 27: 4 to 13, 2 to 6.
    assert network.macs(np.array([[13, 9, 30, 27]]), HEIGHT, WIDTH) == 9 * 10 * at_two + 5 * 5 * at_four


def test_whole_comes_first(tmp_path: Path) -> None:
    network = RegionNetwork(small_model(tmp_path, has_mean=True))
    image, _ = images()
    with pytest.raises(RuntimeError, match="whole must come first"):
        network.update(image, np.array(RECTANGLES[1]))
    network.whole(image)
    with pytest.raises(RuntimeError, match=r"whole must come first with an image of the shape \(1, 3, 32, 64\)"):
        network.update(image[:, :, :32], np.array(RECTANGLES[1]))


def test_centernet_with_memory(tmp_path: Path) -> None:
    """Spots in regions are found, others are not, and the whole frame is the same as without a memory."""
    path = blob_model(tmp_path)
    detector, plain = CenterNetWithMemory(path, min_score=0.1), CenterNet(path, min_score=0.1)
    first, second = spots((20, 40), (120, 12)), spots((24, 40), (100, 60))
    assert detector.detect(first).boxes.tolist() == plain.detect(first).boxes.tolist()
    assert detector.operations(96, 160) == plain.operations(96, 160)
    regions = np.array([[10.0, 30, 44, 53]])
    assert detector.detect(second, regions).boxes.tolist() == [[16, 32, 32, 48]]
    assert len(detector.detect(second, regions[:0])) == 0
    cost = detector.operations(96, 160, regions)
    # 34 x 23 pixels, rounded up to a multiple of 4 and centred: x from 9 to 45, y from 29 to 53.
    assert cost.total == 3 * 84 * 16 * (12 - 2) * (14 - 7)
    assert cost.mask_fraction == pytest.approx(cost.total / plain.operations(96, 160).total)
    assert detector.operations(96, 160, regions[:0]).total == 0
    with pytest.raises(ValueError, match="zoom must be positive, got -1"):
        CenterNetWithMemory(path, zoom=-1)
