"""Proposals from a background model: what moves is found, what stands is not, noise is learnt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dgcomp.video.motion import BackgroundMotion, _components


def scene(step: int) -> np.ndarray:
    """Noise of +-3 on gray, a bright object that walks, a dark one that stands."""
    rng = np.random.default_rng(step)
    frame = (100 + rng.integers(-3, 4, (96, 128, 3))).astype(np.uint8)
    frame[40:64, 8 + 4 * step : 24 + 4 * step] = 200
    frame[70:90, 100:110] = 20
    return frame


def test_walkers_are_found() -> None:
    detector = BackgroundMotion()
    assert len(detector.detect(scene(0))) == 0
    for step in range(1, 15):
        found = detector.detect(scene(step))
        walker = np.array([8 + 4 * step, 40, 24 + 4 * step, 64])
        assert len(found) >= 1
        covered = (found.boxes[:, :2] <= walker[:2]).all(1) & (found.boxes[:, 2:] >= walker[2:]).all(1)
        # At first the place that it left is a part of the proposal: the first frame was taken for background.
        assert covered.any() or step < 4
        assert ((found.boxes[:, 3] <= 72) & (found.boxes[:, 1] >= 32)).all()  # nothing where the other one stands
        assert (found.scores >= 6).all()
        assert (found.classes == 0).all()


def test_what_stays_becomes_background() -> None:
    detector = BackgroundMotion(rate=0.1)
    detector.detect(scene(0))
    counts = [len(detector.detect(scene(1))) for _ in range(60)]
    assert counts[0] >= 1
    assert counts[-1] == 0


def test_regions_and_operations() -> None:
    detector = BackgroundMotion(rate=0.001)
    detector.detect(scene(0))
    assert len(detector.detect(scene(8), np.array([[100.0, 70, 110, 90]]))) == 0
    assert len(detector.detect(scene(8), np.array([[30.0, 30, 80, 80]]))) == 1
    assert detector.operations(96, 128).total == 24 * 32 * (48 + 30)
    assert detector.operations(96, 128).mask_fraction == 1


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="cell must be at least 1 pixel, got 0"):
        BackgroundMotion(cell=0)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got 0"):
        BackgroundMotion(rate=0)


def flooded(mask: np.ndarray) -> list[tuple[float, ...]]:
    """Components by flood fill."""
    left, found = {tuple(cell) for cell in np.argwhere(mask).tolist()}, []
    while left:
        stack, inside = [left.pop()], []
        while stack:
            row, column = stack.pop()
            inside.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        rows, columns = zip(*inside, strict=True)
        found.append((min(columns), min(rows), max(columns) + 1, max(rows) + 1, len(inside)))
    return sorted(found)


@settings(deadline=None, max_examples=60)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_components_against_flood_fill(mask: np.ndarray) -> None:
    boxes, sizes = _components(mask)
    ours = sorted(tuple(row) for row in np.column_stack((boxes, sizes)).tolist())
    assert ours == flooded(mask)
