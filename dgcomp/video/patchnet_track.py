"""Carry boxes from a key frame to the frames after it with PatchNet, and find a new key frame when that gets unsure.

`propagate` runs a detector on key frames only; `BoxPropagator` is what it does in between: one template for each
box, cut from the key frame and kept, while the search goes on from the last position. Section 4 of arXiv 2103.07371,
behaviour as in the authors' scripts, which for detection ignore the confidence and for tracking start anew below 0.8.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgcomp.video.boxes import Boxes, clip_boxes
from dgcomp.video.detectors import Detections
from dgcomp.video.frames import Frame
from dgcomp.video.patchnet import CELL, RESPONSE, TEMPLATE_SIZE
from dgcomp.video.patchnet_crops import crop_searches, crop_templates

__all__ = ["BoxPropagator", "PropagatedFrame", "decode", "propagate"]

SIDES = (2, 0, 3, 1)  # where x1, y1, x2, y2 are among the offsets y1, y2, x1, x2


@dataclass(frozen=True, slots=True)
class PropagatedFrame:
    """What `propagate` says of one frame."""

    detections: Detections
    confidences: NDArray[np.float64]
    """how sure PatchNet is of each position, in [0, 1]; 1 in key frames"""
    is_key: bool
    """whether the detector ran"""


def propagate(
    network: nn.Module,
    frames: Iterable[Frame],
    detect: Callable[[Frame], Detections],
    *,
    interval: int = 6,
    min_confidence: float = 0.0,
    min_score: float = 0.01,
    size_rate: float = 1.0,
) -> Iterator[PropagatedFrame]:
    """Detect in key frames and carry the boxes through the others; classes and scores stay those of the key frame.

    Parameters
    ----------
    network : PatchNet; its boxes cost 0.04 G multiply-adds each, the detector what it costs.
    detect : called with a key frame, such as a detector's `detect`.
    interval : frames from one key frame to the next at most.
    min_confidence : where the mean confidence of the boxes falls below this, the frame becomes a key frame too; 0 for
        fixed intervals, 0.8 in the authors' tracker.
    min_score : detections below this are dropped in key frames.
    size_rate : see `BoxPropagator`.
    """
    if interval < 1:
        raise ValueError(f"interval must be at least 1 frame, got {interval}")
    propagator, key, age = None, Detections.none(), 0
    for frame in frames:
        age += 1
        if propagator is not None and age < interval:
            boxes, confidences = propagator.step(frame)
            if not len(boxes) or confidences.mean() >= min_confidence:
                yield PropagatedFrame(Detections(boxes, key.scores, key.classes), confidences, False)
                continue
        key, age = _usable(detect(frame).above(min_score)), 0
        propagator = BoxPropagator(network, frame, key.boxes, size_rate=size_rate)
        yield PropagatedFrame(key, propagator.confidences, True)


def _usable(detections: Detections) -> Detections:
    """Those that have something to follow: a detector may return boxes of no area at the border."""
    return detections[(detections.boxes[:, 2:] - detections.boxes[:, :2]).min(axis=1, initial=np.inf) >= 1]


class BoxPropagator:
    """Follows the boxes of one key frame through the frames after it.

    Parameters
    ----------
    network : PatchNet, in either form.
    frame : the key frame, RGB.
    boxes : [N, 4] in it; each must be at least a pixel wide and high.
    size_rate : share of a predicted change of size that is believed, in [0, 1]; the authors' tracker takes 0.25.
    """

    def __init__(self, network: nn.Module, frame: Frame, boxes: Boxes, *, size_rate: float = 1.0) -> None:
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        is_usable = np.isfinite(boxes).all(1) & ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)
        if not is_usable.all():
            box = boxes[is_usable.argmin()].tolist()
            raise ValueError(f"boxes must be finite and at least one pixel wide and high, got {box}")
        if not 0 <= size_rate <= 1:
            raise ValueError(f"size_rate must be in [0, 1], got {size_rate}")
        self.network, self.size_rate = network.eval(), size_rate
        self.boxes = boxes
        self.confidences = np.ones(len(boxes))
        self._templates = crop_templates(frame, boxes)

    @torch.inference_mode()
    def step(self, frame: Frame) -> tuple[Boxes, NDArray[np.float64]]:
        """Boxes [N, 4] in the next frame, clipped to it, and the confidences [N] of their positions."""
        if len(self.boxes):
            scores, offsets = self.network(crop_searches(frame, self.boxes), self._templates)
            found, confidences = decode(scores, offsets, self.boxes)
            self.boxes = clip_boxes(_resized(self.boxes, found, self.size_rate), *frame.shape[:2])
            self.confidences = confidences
        return self.boxes, self.confidences


def _resized(old: Boxes, new: Boxes, rate: float) -> Boxes:
    """`new` with only `rate` of its change of size; never below a pixel, so that there is something to search."""
    old_size, new_size = old[:, 2:] - old[:, :2], new[:, 2:] - new[:, :2]
    center, half = (new[:, :2] + new[:, 2:]) / 2, np.maximum(old_size + rate * (new_size - old_size), 1) / 2
    return np.concatenate((center - half, center + half), axis=1)


def decode(scores: Tensor, offsets: Tensor, boxes: Boxes) -> tuple[Boxes, NDArray[np.float64]]:
    """New boxes [N, 4] and confidences [N] from PatchNet's output for the search windows around `boxes`.

    The best strict local maximum among the scores above three quarters of the highest is the new position, and its
    share of the sum of all such maxima is the confidence: 1 for a single peak, 0 where there is none.
    """
    n, size = scores.shape[:2]
    above = (scores - 0.75 * scores.flatten(1).amax(1)[:, None, None]).relu()
    padded = nn.functional.pad(above, (1, 1, 1, 1), value=-1.0)
    shifts = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    around = torch.stack([padded[:, dy : dy + size, dx : dx + size] for dy, dx in shifts]).amax(0)
    peaks = torch.where(above > around, above, torch.zeros_like(above)).flatten(1)
    total = peaks.sum(1)
    best = torch.where(total > 0, peaks.argmax(1), scores.flatten(1).argmax(1))
    cells = torch.stack((best % size, best // size), 1) - (RESPONSE - 1) / 2
    sides = offsets.flatten(2)[torch.arange(n)[:, None], torch.tensor(SIDES), best[:, None]]
    moves = (cells.repeat(1, 2) + sides).double().numpy() * (CELL / TEMPLATE_SIZE)
    confidences = (peaks.amax(1) / (total + 1e-9)).double().numpy()
    return boxes + moves * np.tile(boxes[:, 2:] - boxes[:, :2], 2), confidences
