"""Training pairs for PatchNet, cut from any images or from a video with tracks.

A pair is a template, a search window around a "previous box", and where the object is in it. From single images the
object is moved and resized by a known amount over a background that moves by another; from tracks two frames a few
apart are taken as they are. Every pair is a function of the random generator alone.

Rules for boxes as in the authors' training: 20 to 500 pixels wide and high, 1 % to 50 % of the frame on each side,
aspect 1/4 to 4. They train on RGB with the mean of BGR; here both are BGR, as in use.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.video.boxes import Boxes
from dgcomp.video.frames import Frame
from dgcomp.video.patchnet import CELL, PATCHES, RESPONSE, SEARCH_SIZE, TEMPLATE_SIZE
from dgcomp.video.patchnet_crops import crop_searches, crop_templates

__all__ = ["Pairs", "TrackedBoxes", "image_pair", "join_pairs", "track_pair"]

REACH = (RESPONSE - 1) / 2 + 0.4  # cells from the middle that an object may lie away: rounds to the outermost cell
MIN_SIDE, MAX_SIDE = 20, 500
MIN_SHARE, MAX_SHARE = 0.01, 0.5
MAX_ASPECT = 4.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """N training pairs."""

    search: Tensor
    """[N, 3, 119, 119], as `crop_searches` makes it."""
    template: Tensor
    """[N, 3, 64, 64]"""
    cell: Tensor
    """[N, 2] int64: row and column of the score map's cell where the object is."""
    sides: Tensor
    """[N, 4]: how far its sides y1, y2, x1, x2 are from those of the previous box moved to that cell, in cells."""
    previous: Boxes
    """[N, 4]: the boxes that the search windows surround."""
    target: Boxes
    """[N, 4]: where the objects are, in the same coordinates."""

    def __len__(self) -> int:
        return len(self.cell)


def join_pairs(pairs: Sequence[Pairs]) -> Pairs:
    """One batch of several."""
    return Pairs(
        search=torch.cat([pair.search for pair in pairs]),
        template=torch.cat([pair.template for pair in pairs]),
        cell=torch.cat([pair.cell for pair in pairs]),
        sides=torch.cat([pair.sides for pair in pairs]),
        previous=np.concatenate([pair.previous for pair in pairs]),
        target=np.concatenate([pair.target for pair in pairs]),
    )


def image_pair(frames: Sequence[Frame], rng: np.random.Generator) -> Pairs:
    """One pair from a single image: a box of it moved, resized, lit differently, before a shifted background."""
    frame = frames[int(rng.integers(len(frames)))]
    box = _random_box(frame, rng)
    scale = np.exp(rng.normal(0, 0.07, 2))
    target = _box(_center(box), _size(box) * scale)
    previous = _previous_box(target, _size(box), rng)
    # Object and window as they lie in the image: both are the target's surroundings, shrunk back.
    window = _box(_center(box) + (_center(previous) - _center(target)) / scale, _size(previous) / scale)
    background = window + np.tile(rng.uniform(-0.75, 0.75, 2) * _size(box), 2)
    layers = crop_searches(frame, np.concatenate((window, background)))
    inside = _object_mask(previous, target, power=rng.choice([2.0, 4.0, 16.0]))
    search = inside * layers[:1] + (1 - inside) * layers[1:]
    return _pair(_lit(search, rng), crop_templates(frame, box), previous, target)


@dataclass(frozen=True)
class TrackedBoxes:
    """Frames of a video and the boxes of its tracks, for `track_pair`."""

    frames: Sequence[Frame]
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], Boxes, Boxes]
    """Frame numbers and boxes of every two appearances of an object that are near enough."""

    @staticmethod
    def from_rows(frames: Sequence[Frame], rows: Iterable[Sequence[Any]], *, max_distance: int = 12) -> "TrackedBoxes":
        """From ground-truth rows (frame, track, class, x1, y1, x2, y2), frames from 0; later ones are left out.

        ValueError where no object appears twice within `max_distance` frames in boxes that can be learned from.
        """
        tracks: dict[Any, list[tuple[int, Boxes]]] = {}
        for frame, track, _, *corners in rows:
            box = np.array([corners[:4]], dtype=np.float64)
            if int(frame) < len(frames) and _is_usable(box, frames[int(frame)]):
                tracks.setdefault(track, []).append((int(frame), box))
        found = [
            (i, j, first, second)
            for seen in tracks.values()
            for i, first in seen
            for j, second in seen
            if 0 < abs(i - j) <= max_distance
        ]
        if not found:
            raise ValueError(f"rows must hold an object seen twice within {max_distance} frames, got none")
        i, j, first, second = zip(*found, strict=True)
        return TrackedBoxes(frames, (np.array(i), np.array(j), np.concatenate(first), np.concatenate(second)))


def track_pair(tracked: TrackedBoxes, rng: np.random.Generator) -> Pairs:
    """One pair from two frames of a track; the search starts a random way off, as after a wrong step before."""
    i, j, first, second = tracked.pairs
    one = int(rng.integers(len(i)))
    box, target = first[one : one + 1], second[one : one + 1]
    previous = _previous_box(target, _size(box), rng)
    search = crop_searches(tracked.frames[j[one]], previous)
    return _pair(search, crop_templates(tracked.frames[i[one]], box), previous, target)


def _pair(search: Tensor, template: Tensor, previous: Boxes, target: Boxes) -> Pairs:
    """Labels: the nearest cell, and what is left for each side."""
    delta = (target - previous) / np.tile(_size(previous) / PATCHES, 2)
    reach = (RESPONSE - 1) // 2
    shift = np.clip(np.rint((delta[:, :2] + delta[:, 2:]) / 2), -reach, reach)
    left = torch.from_numpy(delta - np.tile(shift, 2)).float()
    cell = torch.from_numpy(shift[:, ::-1].astype(np.int64) + reach)
    return Pairs(search, template, cell, left[:, [1, 3, 0, 2]], previous, target)


def _random_box(frame: Frame, rng: np.random.Generator) -> Boxes:
    """A box that fits the rules, inside the frame."""
    limit = np.array(frame.shape[1::-1])
    if limit.min() * MAX_SHARE <= MIN_SIDE:
        raise ValueError(f"frames must be more than {MIN_SIDE / MAX_SHARE:.0f} pixels high and wide, got {frame.shape}")
    low, high = np.maximum(MIN_SIDE, MIN_SHARE * limit), np.minimum(MAX_SIDE, MAX_SHARE * limit)
    while True:
        size = np.exp(rng.uniform(np.log(low), np.log(high)))
        if max(size) <= MAX_ASPECT * min(size):
            corner = rng.uniform(0, limit - size)
            return np.concatenate((corner, corner + size))[None]


def _is_usable(box: Boxes, frame: Frame) -> bool:
    size, limit = _size(box)[0], np.array(frame.shape[1::-1])
    is_good_size = (size >= MIN_SIDE).all() and (size <= np.minimum(MAX_SIDE, MAX_SHARE * limit)).all()
    is_inside = (box[0, :2] >= 0).all() and (box[0, 2:] <= limit).all()
    return bool(is_good_size and is_inside and size.max() <= MAX_ASPECT * size.min())


def _previous_box(target: Boxes, size: NDArray[np.float64], rng: np.random.Generator) -> Boxes:
    """A box of about the template's size, some cells away: mostly near the target, sometimes anywhere in reach."""
    size = size * np.exp(rng.normal(0, 0.04, 2))
    spread = rng.normal(0, 1, 2) if rng.random() < 0.7 else rng.uniform(-REACH, REACH, 2)
    return _box(_center(target) - np.clip(spread, -REACH, REACH) * size / PATCHES, size)


def _object_mask(previous: Boxes, target: Boxes, power: float) -> Tensor:
    """1 inside the target, 0 outside, in the search window: a superellipse with a soft rim, [1, 1, 119, 119]."""
    steps = np.linspace(-0.5, 0.5, SEARCH_SIZE) * SEARCH_SIZE / TEMPLATE_SIZE
    away = (_center(target) - _center(previous))[0] / _size(previous)[0]
    half = _size(target)[0] / _size(previous)[0] / 2
    x, y = ((steps - away[axis]) / half[axis] for axis in (0, 1))
    radius = (np.abs(x)[None, :] ** power + np.abs(y)[:, None] ** power) ** (1 / power)
    return torch.from_numpy(np.clip((1.05 - radius) * CELL, 0, 1).astype(np.float32))[None, None]


def _lit(search: Tensor, rng: np.random.Generator) -> Tensor:
    """Another exposure, and noise."""
    noise = torch.from_numpy(rng.standard_normal(search.shape, dtype=np.float32))
    return search * float(np.exp(rng.normal(0, 0.1))) + float(rng.normal(0, 6)) + noise * float(rng.uniform(0, 6))


def _center(boxes: Boxes) -> Boxes:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _size(boxes: Boxes) -> Boxes:
    return boxes[:, 2:] - boxes[:, :2]


def _box(center: Boxes, size: Boxes) -> Boxes:
    return np.concatenate((center - size / 2, center + size / 2), axis=1)
