"""PatchNet: both forms agree, the published counts, crops against torch's own warp, the released weights on OTB."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dgcomp.video.boxes import paired_iou
from dgcomp.video.detectors import Detections
from dgcomp.video.frames import Frame, read_frames
from dgcomp.video.patchnet import SEARCH_SIZE, TEMPLATE_SIZE, DensePatchNet, PatchNet, operation_count
from dgcomp.video.patchnet_crops import MEAN_BGR, crop_searches, crop_templates
from dgcomp.video.patchnet_track import BoxPropagator, decode, propagate
from tests.conftest import data_file

# papers/video.md 3.5: mean IoU on OTB Crossing, boxes from the key frame every K frames, by another implementation
CROSSING = {2: (0.8454, 0.8049), 4: (0.8022, 0.6929), 6: (0.8035, 0.5883), 12: (0.7719, 0.3819)}


def randomized(network: PatchNet) -> PatchNet:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 60 * torch.randn(n, 3, SEARCH_SIZE, SEARCH_SIZE), 60 * torch.randn(n, 3, TEMPLATE_SIZE, TEMPLATE_SIZE)


def textured(height: int, width: int, seed: int = 0) -> Frame:
    """Smooth noise that a template can be found in."""
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (255 * image).byte().permute(1, 2, 0).numpy()


def test_both_forms_agree() -> None:
    sparse = randomized(PatchNet())
    dense = sparse.to_dense()
    with torch.inference_mode():
        for ours, theirs in zip(sparse(*inputs(3)), dense(*inputs(3)), strict=True):
            assert ours.shape == theirs.shape
        search, template = inputs(3)
        for ours, theirs in zip(sparse(search, template), dense(search, template), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    for name, value in dense.to_sparse().state_dict().items():
        assert torch.equal(value, sparse.state_dict()[name])


def test_gradients_agree() -> None:
    """Training the sparse form is training the dense one with everything outside of the structure held at zero."""
    sparse = randomized(PatchNet())
    dense = sparse.to_dense()
    search, template = inputs(1)
    weight = torch.randn(1, 7, 7)
    for network in (sparse, dense):
        scores, offsets = network(search, template)
        ((scores * weight).sum() + (offsets * weight[:, None]).sum()).backward()
    for ours, theirs in ((sparse.conv2, dense.conv2), (sparse.conv3reg, dense.conv3reg)):
        kept = theirs.weight != 0
        assert ours.weight.grad is not None
        assert theirs.weight.grad is not None
        ours_sorted, theirs_sorted = ours.weight.grad.flatten().sort().values, theirs.weight.grad[kept].sort().values
        torch.testing.assert_close(ours_sorted, theirs_sorted, rtol=1e-3, atol=1e-4 * float(theirs_sorted.abs().max()))


def test_operation_counts() -> None:
    """The published 58 million, what is left of them, and both against what torch counts in the convolutions."""
    dense, sparse = operation_count(is_sparse=False), operation_count()
    assert sum(dense.values()) == 57_672_404
    assert sum(sparse.values()) == 40_342_420
    networks = PatchNet(), DensePatchNet()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        networks[0](*inputs(1))
    convolutions = sum(count for name, count in sparse.items() if not name.startswith(("pool", "fourier")))
    assert counter.get_total_flops() == 2 * convolutions
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        networks[1](*inputs(1))
    # The module keeps the first level as one dense convolution (122 million in all); the published count groups it.
    convolutions = sum(count for name, count in dense.items() if not name.startswith(("pool", "fourier")))
    assert counter.get_total_flops() == 2 * (convolutions + 15 * dense["conv2"])


def test_parameters() -> None:
    assert sum(p.numel() for p in PatchNet().parameters()) == 358
    shapes = {name: tuple(value.shape) for name, value in DensePatchNet().state_dict().items()}
    assert shapes["conv2.weight"] == (16, 64, 5, 5)
    assert shapes["feature_layer.freq_coeff"] == (8, 5, 2)


def test_normalization() -> None:
    """By box a result does not depend on the other boxes; over the batch it does; for one box they are the same."""
    box, batch = PatchNet(), PatchNet("batch")
    search, template = inputs(2)
    search[1] *= 4
    with torch.inference_mode():
        alone = box(search[:1], template[:1])[0]
        torch.testing.assert_close(box(search, template)[0][:1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch(search[:1], template[:1])[0], alone, rtol=1e-5, atol=1e-6)
        assert (batch(search, template)[0][:1] - alone).abs().max() > 1e-3


def test_contrast_as_published() -> None:
    """The box filter equals the published form: a convolution with ones, and the deviation over 64 equal maps."""
    network = PatchNet("batch")
    search, _ = inputs(2)
    energy = F.conv2d(search**2, torch.ones(64, 3, 8, 8), stride=2)
    expected = 1e-2 / torch.sqrt(energy + energy.std() / 10 + 1e-9)
    torch.testing.assert_close(network.correlation._gain(search), expected[:, :1], rtol=1e-4, atol=0)


@given(
    corner=st.tuples(st.floats(-30, 60), st.floats(-30, 40)),
    size=st.tuples(st.floats(2, 90), st.floats(2, 90)),
)
@settings(deadline=None, max_examples=25)
def test_crops_against_grid_sample(corner: tuple[float, float], size: tuple[float, float]) -> None:
    frame = textured(48, 64)
    box = np.array([[*corner, corner[0] + size[0], corner[1] + size[1]]])
    image = (
        torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1).double() - torch.from_numpy(MEAN_BGR)[:, None, None]
    )
    step = torch.linspace(0, 1, TEMPLATE_SIZE, dtype=torch.float64)
    x, y = corner[0] + (size[0] + 1) * step, corner[1] + (size[1] + 1) * step
    grid = torch.stack(torch.meshgrid(2 * x / 63 - 1, 2 * y / 47 - 1, indexing="xy"), 2)[None]
    expected = F.grid_sample(image[None], grid, align_corners=True)
    torch.testing.assert_close(crop_templates(frame, box).double(), expected, rtol=0, atol=1e-2)


def test_decode() -> None:
    scores, offsets = torch.zeros(3, 7, 7), torch.zeros(3, 4, 7, 7)
    scores[0, 3, 5] = 2.0  # two cells to the right
    scores[1, 0, 3], scores[1, 6, 3] = 2.0, 1.9  # three up, and a rival
    offsets[0, :, 3, 5] = torch.tensor([0.1, 0.2, 0.3, 0.4])  # y1, y2, x1, x2
    scores[2, 3, 3:5] = 1.0  # a tie: no strict peak
    box = np.array([[0.0, 0.0, 64.0, 32.0]])
    boxes, confidences = decode(scores, offsets, np.repeat(box, 3, 0))
    np.testing.assert_allclose(boxes[0], [16 + 0.3 * 8, 0.1 * 4, 64 + 16 + 0.4 * 8, 32 + 0.2 * 4], rtol=1e-6)
    np.testing.assert_allclose(boxes[1], [0, -12, 64, 20])
    assert confidences[0] == pytest.approx(1)
    assert confidences[1] == pytest.approx(0.5 / 0.9)
    assert confidences[2] == 0
    np.testing.assert_allclose(boxes[2], box[0])


def test_follows_a_moving_square() -> None:
    """A textured object over a still background, moved by known steps: the untrained geometry follows it."""
    background, thing = textured(160, 200, 1), textured(40, 32, 2)
    frames = []
    for step in range(6):
        frame = background.copy()
        frame[50 + 2 * step : 90 + 2 * step, 60 + 3 * step : 92 + 3 * step] = thing
        frames.append(frame)
    follower = BoxPropagator(PatchNet(), frames[0], np.array([[60.0, 50.0, 91.0, 89.0]]))
    for step, frame in enumerate(frames[1:], 1):
        boxes, confidences = follower.step(frame)
        truth = np.array([[60.0, 50.0, 91.0, 89.0]]) + np.array([3, 2, 3, 2]) * step
        assert paired_iou(boxes, truth)[0] > 0.8
        assert 0 < confidences[0] <= 1


def test_propagate_keys() -> None:
    """Key frames by interval, earlier where confidence falls; scores and classes are the key frame's."""
    frames = [textured(96, 96, 3)] * 4 + [textured(96, 96, 4)] * 4
    found = Detections(
        np.array([[30.0, 30, 60, 60], [5, 5, 5, 9], [20, 20, 50, 70]]), np.array([0.9, 0.8, 0.001]), np.array([2, 1, 0])
    )
    results = list(propagate(PatchNet(), frames, lambda frame: found, interval=3))
    assert [result.is_key for result in results] == [True, False, False] * 2 + [True, False]
    for result in results:  # the flat box can't be followed, the third has too low a score
        assert result.detections.scores.tolist() == [0.9]
        assert result.detections.classes.tolist() == [2]
    results = list(propagate(PatchNet(), frames, lambda frame: found, interval=100, min_confidence=0.9999))
    assert [result.is_key for result in results][4]
    assert not results[1].is_key


def test_nothing_to_follow() -> None:
    frames = [textured(64, 64)] * 3
    results = list(propagate(PatchNet(), frames, lambda frame: Detections.none(), interval=2))
    assert [len(result.detections) for result in results] == [0, 0, 0]
    assert [result.is_key for result in results] == [True, False, True]


def test_bad_input(tmp_path: Path) -> None:
    frame = textured(64, 64)
    with pytest.raises(ValueError, match="at least one pixel wide and high, got"):
        BoxPropagator(PatchNet(), frame, np.array([[3.0, 3, 3, 9]]))
    with pytest.raises(ValueError, match="size_rate must be in"):
        BoxPropagator(PatchNet(), frame, np.zeros((0, 4)), size_rate=2)
    with pytest.raises(ValueError, match="interval must be at least 1 frame, got 0"):
        list(propagate(PatchNet(), [frame], lambda frame: Detections.none(), interval=0))
    with pytest.raises(ValueError, match='normalization must be "box" or "batch"'):
        PatchNet("layer")  # type: ignore[arg-type]
    np.savez(tmp_path / "wrong.npz", conv2=np.zeros(3))
    with pytest.raises(ValueError, match="wrong or missing: conv2, conv2.weight"):
        PatchNet.from_weights(tmp_path / "wrong.npz")
    dense = DensePatchNet()
    with torch.no_grad():
        dense.conv2.weight.fill_(1.0)
    with pytest.raises(ValueError, match="conv2.weight must be zero except"):
        dense.to_sparse()


def test_weights_round_trip(tmp_path: Path) -> None:
    network = randomized(PatchNet())
    network.save_weights(tmp_path / "weights.npz")
    for name, value in PatchNet.from_weights(tmp_path / "weights.npz").state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


@pytest.mark.data
def test_released_weights_on_otb_crossing() -> None:
    """Mean IoU over the frames between key frames, against another implementation's figures and the box kept still."""
    network = PatchNet.from_weights(data_file("models/patchnet-weights.npz"))
    archive = data_file("video/otb-crossing.zip")
    frames = list(read_frames(archive))
    with zipfile.ZipFile(archive) as file, file.open("Crossing/groundtruth_rect.txt") as text:
        rectangles = np.loadtxt(text)
    corners = rectangles[:, :2] - 1  # pixels count from 1 there
    truth = np.concatenate((corners, corners + rectangles[:, 2:]), 1)
    search, template = crop_searches(frames[0], truth[:4]), crop_templates(frames[0], truth[:4])
    with torch.inference_mode():
        for ours, theirs in zip(network(search, template), network.to_dense()(search, template), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for interval, expected in CROSSING.items():
        boxes = [
            result.detections.boxes[0]
            for result in propagate(network, frames, KeyBoxes(truth, interval), interval=interval)
        ]
        between = np.arange(len(frames)) % interval > 0
        still = truth[np.arange(len(frames)) // interval * interval]
        means = [paired_iou(b[between], truth[between]).mean() for b in (np.array(boxes), still)]
        assert means == pytest.approx(expected, abs=0.01)


class KeyBoxes:
    """A detector that knows where the one object is, called for every `interval`-th frame."""

    def __init__(self, truth: np.ndarray, interval: int) -> None:
        self.keys = iter(truth[::interval])

    def __call__(self, frame: Frame) -> Detections:
        return Detections(next(self.keys)[None], np.ones(1), np.zeros(1, dtype=np.int64))
