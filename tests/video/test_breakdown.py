"""Delays of parts of the objects, and the levels of difficulty."""

import pytest

from dgcomp import video
from dgcomp.video.difficulty import LEVELS
from tests.video.test_delay import seen, walk

SMALL, MEDIUM, LARGE = (100.0, 10.0, 139.0, 90.0), (200.0, 10.0, 240.0, 90.0), (300.0, 10.0, 400.0, 110.0)
GROUND_TRUTH = {
    "a": walk(0, 9, 1, box=SMALL) + walk(0, 9, 2, "dog", box=MEDIUM) + walk(0, 9, 3, box=LARGE),
    "b": walk(3, 9, 1, box=(2.0, 10.0, 39.0, 90.0)) + walk(3, 9, 2, box=MEDIUM),
}
DETECTIONS = {
    "a": seen(1, box=SMALL) + seen(2, box=MEDIUM, label="dog") + seen(3, box=LARGE),
    "b": seen(8, box=(2.0, 10.0, 39.0, 90.0)),
}


def test_breakdown() -> None:
    result = video.average_delay(GROUND_TRUTH, DETECTIONS, "exact", image_size={"b": (640, 480)})
    sizes = video.breakdown(result, "size")
    assert list(sizes) == ["small", "medium", "large"]
    assert [group.average_delay for group in sizes.values()] == pytest.approx([(1 + 5) / 2, (2 + 7) / 2, 3])
    assert sizes["medium"].never_detected == 0.5
    classes = video.breakdown(result, "class")
    assert {name: group.num_tracks for name, group in classes.items()} == {"person": 4, "dog": 1}
    entries = video.breakdown(result, "entry")
    assert {name: group.average_delay for name, group in entries.items()} == pytest.approx(
        {"start": 2, "border": 5, "interior": 7}
    )
    assert list(video.breakdown(result, "sequence")) == ["a", "b"]
    mine = video.breakdown(result, [1, 1, 2, 2, 2])
    assert mine[1].average_delay == pytest.approx(1.5)
    assert video.breakdown(video.average_delay(GROUND_TRUTH, DETECTIONS), "entry")["later"].num_tracks == 2
    with pytest.raises(ValueError, match="by must be one of size, class, entry, sequence .* got 'colour'"):
        video.breakdown(result, "colour")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a group for each of 5 objects, got 2"):
        video.breakdown(result, [1, 2])


def test_difficulty_starts_the_clock_where_an_object_meets_the_level() -> None:
    # grows from 24 to 44 pixels, is hidden in frame 6, reaches out of the picture in frame 7
    rows = [(f, 1, "Car", 0.0, 0.0, 60.0, 24.0 + 2 * f, 2 * (f == 7), 2 * (f == 6)) for f in range(11)]
    kept, ignored = video.split_by_difficulty({"a": rows}, "moderate")
    assert [row[0] for row in kept["a"]] == [1, 2, 3, 4, 5, 8, 9, 10]
    assert [row[:2] for row in ignored["a"]] == [(0, "Car"), (6, "Car"), (7, "Car")]
    detections = {"a": [(f, "Car", 0.9, *row[3:7]) for f, row in enumerate(rows) if f in (0, 4, 6)]}
    result = video.average_delay({"a": rows}, detections, "exact", difficulty="moderate")
    assert (result.average_delay, result.max_false_positive_ratio, result.num_boxes) == (3, 0, 8)
    hard = video.average_delay({"a": rows}, detections, "exact", difficulty=LEVELS["hard"])
    assert (hard.average_delay, hard.num_boxes) == (3, 9)
    easy = video.mean_delay({"a": rows}, detections, difficulty="easy")
    assert (easy.mean_delay, easy.reached) == (3, False)  # nothing but ignored detections
    with pytest.raises(ValueError, match="difficulty must be one of easy, moderate, hard .* got 'soft'"):
        video.split_by_difficulty({"a": rows}, "soft")
    with pytest.raises(ValueError, match=r"got 7 values in ground_truth\['a'\] row 0"):
        video.split_by_difficulty({"a": [row[:7] for row in rows]}, "easy")
