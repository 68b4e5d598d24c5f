"""Objects and how long each waited until it was first detected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dgcomp.video.columns import Bools, Dataset, Floats, Ints

Clock = Literal["frames", "boxes"]
NUM_SIZE_BOXES = 30
"""An object's size is the mean over so many of its first boxes (VMetrics, delay.py)."""
BORDER_SHARE = 0.01
"""A box this close to the picture's edge, as a share of the side, enters there."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """T objects."""

    sequence: list[Any]
    track: list[Any]
    label: list[Any]
    """The class as the caller named it."""
    first_frame: Ints
    last_frame: Ints
    num_boxes: Ints
    size_px: Floats
    """Mean of the shorter side over the first 30 boxes."""
    entry: list[str]
    """ "start": there in frame 0; else "border" or "interior" where the picture's size is known, else "later"."""
    box: Ints
    """Shape (M,): the boxes by object and, in each, by frame."""
    start: Ints
    """Shape (T,): where each object's boxes start in `box`."""
    frame: Ints
    """Shape (M,): frames of `box`."""

    def __len__(self) -> int:
        return len(self.start)


ImageSize = tuple[float, float]


def collect_tracks(
    data: Dataset, *, drop_last_frame: bool = False, image_size: ImageSize | Mapping[Any, ImageSize] | None = None
) -> Tracks:
    """The objects of a data set, in the order in which they are named.

    `drop_last_frame` leaves out the boxes of the last frame that any box or detection of a sequence lies in, as the
    published code does; objects that live there alone vanish. `image_size` is (width, height) in pixels, or that for
    each sequence.

    Raises
    ------
    ValueError
        If no object is left.
    """
    boxes = data.ground_truth
    chosen = np.arange(len(boxes))
    if drop_last_frame:
        last = np.zeros(len(data.sequences), np.int64)
        for part in (boxes, data.detections):
            np.maximum.at(last, part.sequence, part.frame)
        chosen = chosen[boxes.frame < last[boxes.sequence]]
    if not len(chosen):
        raise ValueError(
            "ground_truth must hold at least one object, got none"
            + (" outside the last frame of a sequence, which mode 'official' drops" if drop_last_frame else "")
        )
    box = chosen[np.lexsort((boxes.frame[chosen], boxes.track[chosen]))]
    start = np.flatnonzero(np.diff(boxes.track[box], prepend=-1))
    count = np.diff(start, append=len(box))
    names = [data.tracks[i] for i in boxes.track[box[start]]]
    return Tracks(
        sequence=[name[0] for name in names],
        track=[name[1] for name in names],
        label=[data.classes[i] for i in boxes.label[box[start]]],
        first_frame=boxes.frame[box[start]],
        last_frame=boxes.frame[box[start + count - 1]],
        num_boxes=count,
        size_px=_sizes(boxes.corners[box], start, count),
        entry=[
            _entry(int(boxes.frame[i]), boxes.corners[i], _size_of(data.sequences[boxes.sequence[i]], image_size))
            for i in box[start]
        ],
        box=box,
        start=start,
        frame=boxes.frame[box],
    )


def delays_at(tracks: Tracks, box_score: Floats, thresholds: Floats, clock: Clock) -> tuple[Floats, Bools]:
    """How long each object waited at each threshold, and whether it was seen at all; both of shape (A, T).

    With the clock "boxes" only frames in which the object has a box go by, and one never seen waited for all of them.
    With "frames" those in between count as well, and one never seen waited until its last frame (VMetrics, delay.py).
    """
    count = len(tracks.box)
    place = np.arange(count)
    scores = box_score[tracks.box]
    delays = np.empty((len(thresholds), len(tracks)))
    detected = np.empty(delays.shape, bool)
    for a, threshold in enumerate(thresholds):
        first = np.minimum.reduceat(np.where(scores >= threshold, place, count), tracks.start)
        detected[a] = first < count
        seen = np.minimum(first, count - 1)
        if clock == "boxes":
            delays[a] = np.where(detected[a], seen - tracks.start, tracks.num_boxes)
        else:
            end = np.where(detected[a], tracks.frame[seen], tracks.last_frame)
            delays[a] = end - tracks.first_frame
    return delays, detected


def _sizes(corners: Floats, start: Ints, count: Ints) -> Floats:
    shorter = np.minimum(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    place = np.arange(len(corners)) - np.repeat(start, count)
    total = np.add.reduceat(np.where(place < NUM_SIZE_BOXES, shorter, 0.0), start)
    sizes: Floats = total / np.minimum(count, NUM_SIZE_BOXES)
    return sizes


def _entry(frame: int, corners: Floats, size: ImageSize | None) -> str:
    if frame == 0:
        return "start"
    if size is None:
        return "later"
    margin_x, margin_y = BORDER_SHARE * size[0], BORDER_SHARE * size[1]
    x1, y1, x2, y2 = corners
    at_border = x1 <= margin_x or y1 <= margin_y or x2 >= size[0] - margin_x or y2 >= size[1] - margin_y
    return "border" if at_border else "interior"


def _size_of(sequence: Any, image_size: ImageSize | Mapping[Any, ImageSize] | None) -> ImageSize | None:
    if isinstance(image_size, Mapping):
        return image_size.get(sequence)
    return image_size
