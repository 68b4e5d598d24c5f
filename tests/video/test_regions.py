"""Unions and joined rectangles against rasters, overlaps and suppression against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.video.boxes import clip_boxes, iou_matrix, paired_iou, suppress
from dgcomp.video.regions import dilate, join_regions, union_fraction

HEIGHT, WIDTH = 60, 90


@st.composite
def boxes(draw: st.DrawFn, max_size: int = 8) -> np.ndarray:
    n = draw(st.integers(0, max_size))
    corner = st.tuples(st.integers(-10, WIDTH), st.integers(-10, HEIGHT))
    size = st.tuples(st.integers(1, 40), st.integers(1, 40))
    rows = [(*draw(corner), *draw(size)) for _ in range(n)]
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=np.float64).reshape(-1, 4)


def raster(some: np.ndarray) -> np.ndarray:
    covered = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x1, y1, x2, y2 in clip_boxes(some, HEIGHT, WIDTH).astype(int):
        covered[y1:y2, x1:x2] = True
    return covered


@given(boxes())
@settings(deadline=None, max_examples=40)
def test_union_against_a_raster(some: np.ndarray) -> None:
    assert union_fraction(some, HEIGHT, WIDTH) == pytest.approx(raster(some).mean())


def test_union_between_pixels() -> None:
    assert union_fraction(np.array([[0.5, 0, 1.75, 2], [1.0, 0, 2.0, 1]]), 2, 4) == pytest.approx((2.5 + 0.25) / 8)


@given(boxes(), st.sampled_from([1, 8, 16]))
@settings(deadline=None, max_examples=40)
def test_rectangles_cover_the_regions(some: np.ndarray, step: int) -> None:
    inside = dilate(some, 0, HEIGHT, WIDTH)
    rectangles = join_regions(inside, step, HEIGHT, WIDTH)
    assert len(rectangles) <= len(inside)
    sizes = rectangles[:, 2:] - rectangles[:, :2]
    assert (sizes % step == 0).all()
    assert (rectangles == np.floor(rectangles)).all()
    assert (rectangles[:, :2] >= 0).all()
    assert not (raster(inside) & ~raster(rectangles)).any()
    single = np.ceil((inside[:, 2:] - inside[:, :2]) / step) * step
    assert np.prod(sizes, axis=1).sum() <= np.prod(single, axis=1).sum()


def test_near_regions_are_joined_and_far_ones_are_not() -> None:
    near = np.array([[0.0, 0, 10, 10], [4, 4, 14, 14]])
    assert join_regions(near, 16, HEIGHT, WIDTH).tolist() == [[0, 0, 16, 16]]
    far = np.array([[0.0, 0, 10, 10], [60, 40, 70, 50]])
    assert len(join_regions(far, 16, HEIGHT, WIDTH)) == 2


def test_dilate_drops_what_is_outside() -> None:
    some = np.array([[-20.0, 5, -10, 9], [80, 50, 88, 58]])
    assert dilate(some, 4, HEIGHT, WIDTH).tolist() == [[76, 46, 90, 60]]


@given(boxes(5), boxes(5))
@settings(deadline=None, max_examples=30)
def test_overlap_against_rasters(left: np.ndarray, right: np.ndarray) -> None:
    left, right = (dilate(some, 0, HEIGHT, WIDTH) for some in (left, right))
    overlaps = iou_matrix(left, right)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            one, two = raster(a[None]), raster(b[None])
            assert overlaps[i, j] == pytest.approx((one & two).sum() / (one | two).sum())
    n = min(len(left), len(right))
    np.testing.assert_allclose(paired_iou(left[:n], right[:n]), overlaps[:n, :n].diagonal())


def test_empty_boxes_overlap_nothing() -> None:
    flat = np.array([[3.0, 3, 3, 9]])
    assert iou_matrix(flat, flat).tolist() == [[0.0]]


def test_suppression() -> None:
    some = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]])
    kept = suppress(some, np.array([0.5, 0.9, 0.4, 0.1]), np.array([0, 0, 1, 0]), max_iou=0.5)
    assert kept.tolist() == [1, 2, 3]  # the best, another class at the same place, and one far away
    assert suppress(some[:0], np.zeros(0), np.zeros(0, dtype=int), max_iou=0.5).tolist() == []
