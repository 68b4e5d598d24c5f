"""Average delay: the published numbers to the last bit, each mended defect on its own, and loops as a reference."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dgcomp import video
from dgcomp.video.delay import DEFECTS
from dgcomp.video.operating import FALSE_POSITIVE_RATIOS
from tests.conftest import data_file
from tests.video.reference import exact_average_delay, official_average_delay
from tests.video.scenes import make_scene

BOX = (10.0, 10.0, 60.0, 110.0)
ELSEWHERE = (300.0, 10.0, 350.0, 110.0)


def walk(first: int, last: int, track: int = 1, label: Any = "person", box: tuple[float, ...] = BOX) -> list[Any]:
    """Ground truth of an object that stands still from frame `first` to `last`."""
    return [(frame, track, label, *box) for frame in range(first, last + 1)]


def seen(*frames: int, score: float = 0.9, label: Any = "person", box: tuple[float, ...] = BOX) -> list[Any]:
    """Detections of it."""
    return [(frame, label, score, *box) for frame in frames]


# VMetrics (RalphMao/VMetrics at 1c0f019, put through 2to3, without its loop over target precisions, which fails) on
# tests.video.scenes.make_scene(seed): mAP, thresholds, mean delays, AD, AD of small, medium and large objects.
PUBLISHED_ON_SCENES = [
    (
        0.10377843101314162,
        [0.93, 0.9, 0.86, 0.8, 0.71, 0.59],
        [13.666666984558105, 11.222222328186035, 9.166666984558105, 6.833333492279053, 3.5, 1.5],
        5.010563850402832,
        (5.2688828, 4.0977597, 6.7800813),
    ),
    (
        0.17877558511267475,
        [0.9, 0.86, 0.8, 0.72, 0.6, 0.4],
        [15.333333015441895, 11.88888931274414, 7.55555534362793, 3.6111111640930176, 1.3333333730697632]
        + [0.7222222089767456],
        3.049190044403076,
        (2.2176163, 3.5010552, 1.2328417),
    ),
    (
        0.1674209462804704,
        [0.91, 0.88, 0.84, 0.76, 0.66, 0.52],
        [10.88888931274414, 8.05555534362793, 5.611111164093018, 4.222222328186035, 1.8888888359069824, 1.0],
        3.336998462677002,
        (3.8710508, 2.4213505, 4.5869837),
    ),
    (
        0.12781345847923584,
        [0.91, 0.87, 0.83, 0.75, 0.65, 0.49],
        [18.38888931274414, 11.11111068725586, 8.722222328186035, 5.333333492279053, 3.222222328186035]
        + [1.2222222089767456],
        4.54662561416626,
        (2.622504, 6.161193, 1.6849182),
    ),
]


@pytest.mark.parametrize("seed", range(4))
def test_official_is_the_published_code_to_the_last_bit(seed: int) -> None:
    mean_ap, thresholds, delays, average, sizes = PUBLISHED_ON_SCENES[seed]
    result = video.average_delay(*make_scene(seed), mode="official")
    assert result.thresholds.tolist() == thresholds
    assert result.delays.tolist() == delays
    assert result.average_delay == average
    assert not result.saturated.any()
    assert result.precision.mean == pytest.approx(mean_ap, abs=1e-12)  # summed in another order
    groups = video.breakdown(result, "size")
    assert [groups[size].average_delay for size in ("small", "medium", "large")] == pytest.approx(sizes, rel=1e-6)


# The same code on PETS09-S2L1, TUD-Campus and TUD-Stadtmitte with SORT's Faster R-CNN detections.
PETS, CAMPUS, STADTMITTE = "PETS09-S2L1", "TUD-Campus", "TUD-Stadtmitte"
PUBLISHED_ON_MOT15 = [
    ((PETS,), 0.7040543060754167, [0.4736842215061188] + [0.10526315867900848] * 5, 0.15331804752349854),
    (
        (PETS, CAMPUS, STADTMITTE),
        0.7280400119144907,
        [1.837837815284729] + [0.9459459185600281] * 5,
        1.0535109043121338,
    ),
    ((CAMPUS,), 0.7160408508347652, [0.0] * 6, 0.0),
    ((STADTMITTE,), 0.7728816182645835, [3.299999952316284] * 6, 3.3000001907348633),
]


def mot15(*names: str) -> tuple[Any, Any]:
    """Ground truth and detections of some of the three sequences."""
    ground_truth, detections = {}, {}
    for name in names:
        ending = "xml" if name == PETS else "txt"
        path = data_file(f"video/{name}-gt.{ending}")
        ground_truth |= video.read_ground_truth(path, sequence=name).ground_truth
        detections |= video.read_detections(data_file(f"video/{name}-fasterrcnn-det.txt"), sequence=name)
    return ground_truth, detections


@pytest.mark.data
@pytest.mark.parametrize(("names", "mean_ap", "delays", "average"), PUBLISHED_ON_MOT15)
def test_published_numbers_on_real_video(names: Any, mean_ap: float, delays: list[float], average: float) -> None:
    result = video.average_delay(*mot15(*names), mode="official")
    assert result.delays.tolist() == delays
    assert result.average_delay == average
    assert result.precision.mean == pytest.approx(mean_ap, abs=1e-12)
    assert result.saturated[1:].all()


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    tracks=st.integers(1, 5),
    frames=st.integers(2, 25),
    false_per_frame=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_both_modes_equal_plain_loops(seed: int, tracks: int, frames: int, false_per_frame: float) -> None:
    scene = make_scene(seed, num_sequences=2, num_frames=frames, num_tracks=tracks, false_per_frame=false_per_frame)
    ends = {name: max(row[0] for row in (*rows, *scene[1][name])) for name, rows in scene[0].items()}
    assume(any(row[0] < ends[name] for name, rows in scene[0].items() for row in rows))
    official = video.average_delay(*scene, mode="official")
    average, delays = official_average_delay(*scene, FALSE_POSITIVE_RATIOS)
    assert official.delays == pytest.approx(delays, rel=1e-6)
    assert official.average_delay == pytest.approx(average, rel=1e-5, abs=1e-6)
    exact = video.average_delay(*scene, mode="exact")
    average, delays = exact_average_delay(*scene, FALSE_POSITIVE_RATIOS)
    assert exact.delays == pytest.approx(delays, rel=1e-12)
    assert exact.average_delay == pytest.approx(average, rel=1e-12, abs=1e-12)
    assert (np.diff(exact.delays) <= 1e-12).all()  # more false alarms never cost time
    assert (exact.reached_ratios <= exact.false_positive_ratios).all()


# Each defect on its own: (ground truth, detections, official mean delay, exact mean delay) at one false alarm a box.
LATE = walk(0, 9) + walk(19, 19, track=2)
ONE_DEFECT = {
    "last frame": ({"a": LATE}, {"a": seen(0, 19)}, [0], [0, 0]),
    "zero threshold": ({"a": walk(0, 9)}, {"a": seen(2, score=-1.0)}, [8], [2]),
    "two IoU conventions": (
        {"a": walk(0, 9, box=(0, 0, 10, 10))},
        {"a": seen(3, box=(0, 0, 10, 5))},
        [8],
        [3],
    ),
    # two objects in one place: both detections prefer the first, which by score is taken
    "many to one": (
        {"a": walk(0, 9) + walk(0, 9, track=2)},
        {"a": seen(0, score=0.9) + seen(0, score=0.8)},
        [0, 8],
        [0, 10],
    ),
    "missed as detected": ({"a": walk(0, 0) + walk(0, 9, track=2, box=ELSEWHERE)}, {"a": []}, [0, 8], [1, 10]),
    "gaps": ({"a": walk(0, 1) + walk(8, 9) + walk(10, 10, track=2)}, {"a": seen(8)}, [8], [2, 1]),
}


@pytest.mark.parametrize("name", ONE_DEFECT)
def test_each_defect_is_repeated_and_mended(name: str) -> None:
    ground_truth, detections, official, exact = ONE_DEFECT[name]
    for mode, expected in (("official", official), ("exact", exact)):
        result = video.average_delay(ground_truth, detections, mode, false_positive_ratios=[1.0])  # type: ignore[arg-type]
        assert result.track_delays[0].tolist() == expected
        assert result.delays[0] == pytest.approx(np.mean(expected))
    assert name in DEFECTS


def test_overshoot_is_repeated_and_mended() -> None:
    ground_truth = {"a": walk(0, 9)}
    detections = {"a": seen(0, 1, 2, box=ELSEWHERE, score=0.7) + seen(4, score=0.6) + seen(6, score=0.8)}
    official = video.average_delay(ground_truth, detections, "official", false_positive_ratios=[0.2])
    exact = video.average_delay(ground_truth, detections, "exact", false_positive_ratios=[0.2])
    assert (official.thresholds[0], official.reached_ratios[0]) == (0.7, pytest.approx(0.3))
    assert (exact.thresholds[0], exact.reached_ratios[0]) == (0.8, 0.0)
    # not even the best score may count
    worst = video.average_delay(ground_truth, {"a": seen(0, box=ELSEWHERE)}, "exact", false_positive_ratios=[0.05])
    assert worst.thresholds[0] == math.inf
    assert not worst.detected.any()
    assert not worst.saturated[0]


def test_single_precision_is_repeated_and_mended() -> None:
    ground_truth = {"a": walk(0, 9) + walk(0, 9, 2, box=ELSEWHERE) + walk(0, 9, 3, box=(500, 0, 550, 99))}
    detections = {"a": seen(1)}
    official = video.average_delay(ground_truth, {"a": [*detections["a"], *seen(9, box=(0, 200, 9, 209))]}, "official")
    assert official.delays[0] == float(np.float32(17) / np.float32(3))
    assert video.average_delay(ground_truth, detections, "exact").delays[0] == 21 / 3
    assert {"single precision", "overshoot", *ONE_DEFECT} == set(DEFECTS)


def test_exact_does_not_depend_on_the_scale_of_scores() -> None:
    ground_truth, detections = make_scene(5)
    logits = {
        sequence: [(*row[:2], math.log(row[2] / (1.001 - row[2])) if row[2] else -99.0, *row[3:]) for row in rows]
        for sequence, rows in detections.items()
    }
    expected = video.average_delay(ground_truth, detections, "exact")
    assert video.average_delay(ground_truth, logits, "exact").delays.tolist() == expected.delays.tolist()


def test_censored_is_a_survival_estimate() -> None:
    boxes = [(100.0 * i, 0.0, 100.0 * i + 50, 50.0) for i in range(3)]
    # seen after 1 frame; seen after 3; there for two frames and never seen
    ground_truth = {"a": walk(0, 9, 1, box=boxes[0]) + walk(0, 9, 2, box=boxes[1]) + walk(0, 1, 3, box=boxes[2])}
    detections = {"a": seen(1, box=boxes[0]) + seen(3, box=boxes[1])}
    result = video.average_delay(ground_truth, detections, "censored", window=5)
    # at risk 3, 3, 1, 1: unseen after frames 0 to 4 with chance 1, 2/3, 2/3, 0, 0
    assert result.delays == pytest.approx([1 + 2 / 3 + 2 / 3] * 6)
    assert video.survival_curve(result, 0) == pytest.approx([1, 2 / 3, 2 / 3, 0, 0])
    exact = video.average_delay(ground_truth, detections, "exact", window=5)
    assert exact.delays == pytest.approx([2] * 6)  # (1 + 3 + 2) / 3: the wait that was cut off counts as over
    everything = {"a": detections["a"] + seen(1, box=boxes[2])}
    both = [video.average_delay(ground_truth, everything, mode).average_delay for mode in ("exact", "censored")]
    assert both[0] == pytest.approx(both[1])  # nothing is cut off


def test_saturation() -> None:
    result = video.average_delay({"a": walk(0, 9)}, {"a": seen(2) + seen(5, box=ELSEWHERE)}, "exact")
    assert result.max_false_positive_ratio == pytest.approx(0.1)
    assert result.saturated.tolist() == [False] + [True] * 5  # 0.1 is what there is
    assert result.thresholds.tolist() == [-math.inf] * 6
    assert video.average_delay({"a": walk(0, 9)}, {}, "official").thresholds.tolist() == [0.0] * 6


@pytest.mark.parametrize("mode", ["official", "exact", "censored"])
def test_rows_may_be_lists_tuples_arrays_or_tensors(mode: Any) -> None:
    ground_truth, detections = make_scene(1, num_sequences=2, num_frames=20)
    expected = video.average_delay(ground_truth, detections, mode)
    forms = (
        lambda rows: [list(row) for row in rows],
        lambda rows: tuple(tuple(row) for row in rows),
        lambda rows: np.array(rows),
        lambda rows: torch.tensor(rows, dtype=torch.float64),
        lambda rows: [np.array(row) for row in rows],
    )
    for form in forms:
        result = video.average_delay(
            {sequence: form(rows) for sequence, rows in ground_truth.items()},
            {sequence: form(rows) for sequence, rows in detections.items()},
            mode,
        )
        assert result.delays.tolist() == expected.delays.tolist()
    shuffled = {sequence: rows[::-1] for sequence, rows in ground_truth.items()}
    assert video.average_delay(shuffled, detections, mode).average_delay == expected.average_delay


def test_all_that_take_rows_take_tensors() -> None:
    ground_truth, detections = make_scene(1, num_sequences=1, num_frames=20)
    tensors = [{"s00": torch.tensor(part["s00"], dtype=torch.float64)} for part in (ground_truth, detections)]
    options: Any = {"mode": "exact", "frame_rate_hz": 25, "latency_ms": 70}
    expected = video.average_delay(ground_truth, detections, **options)
    assert video.average_delay(*tensors, **options).delays.tolist() == expected.delays.tolist()
    for attack in (video.retardation, video.tail_boost):
        rows, expected_rows = attack(*tensors)["s00"], attack(ground_truth, detections)["s00"]
        assert [row[2] for row in rows] == [row[2] for row in expected_rows]


def test_sequences_without_objects_or_detections() -> None:
    ground_truth = {"a": walk(0, 9), "b": walk(0, 9), "empty": []}
    detections = {"a": seen(0), "empty": np.empty((0, 7))}
    result = video.average_delay(ground_truth, detections, "exact")
    assert result.track_delays[0].tolist() == [0, 10]
    assert result.tracks.sequence == ["a", "b"]
    false_alarm = {"a": seen(0), "empty": seen(3)}
    assert video.average_delay(ground_truth, false_alarm).max_false_positive_ratio == 1 / 20


def test_classes() -> None:
    ground_truth = {"a": walk(0, 9) + walk(0, 9, 2, "dog", ELSEWHERE)}
    detections = {"a": seen(1) + seen(2, label="dog", box=ELSEWHERE) + seen(0, label="cat")}
    all_classes = video.average_delay(ground_truth, detections, "exact")
    assert all_classes.delays[0] == 1.5
    assert all_classes.max_false_positive_ratio == 1 / 20  # the cat
    dogs = video.average_delay(ground_truth, detections, "exact", classes=["dog"])
    assert (dogs.delays[0], dogs.max_false_positive_ratio, dogs.num_boxes) == (2, 0, 10)
    by_class = video.average_delay(ground_truth, detections, "exact", iou_threshold={"person": 1, "dog": 0.5, "cat": 1})
    assert by_class.delays[0] == 1.5
    with pytest.raises(ValueError, match="no value for the class 'dog'"):
        video.average_delay(ground_truth, detections, iou_threshold={"person": 0.5})
    with pytest.raises(ValueError, match="class 7 .* where ground_truth has 'person'"):
        video.average_delay(ground_truth, {"a": seen(1, label=7)})


def test_what_is_to_be_ignored() -> None:
    ground_truth = {"a": walk(0, 9)}
    detections = {"a": seen(1) + seen(2, 3, box=ELSEWHERE) + seen(4, 4)}
    loose = video.average_delay(ground_truth, detections, "exact")
    assert loose.max_false_positive_ratio == pytest.approx(0.3)
    for ignored in (
        [(2, "person", *ELSEWHERE), (3, "person", *ELSEWHERE)],  # boxes of this class
        [(2, None, 290, 0, 400, 60), (3, None, 290, 0, 400, 60)],  # regions that hold half of it
        [(None, None, 290, 0, 400, 60)],  # in every frame
        [(None, "person", *ELSEWHERE)],
    ):
        result = video.average_delay(ground_truth, detections, "exact", ignored={"a": ignored})
        assert result.max_false_positive_ratio == pytest.approx(0.1)  # the second at frame 4
        assert result.delays.tolist() == [1.0] * 6
    kept = [(None, "dog", *ELSEWHERE)], [(None, None, 290, 0, 400, 59)], [(5, None, 0, 0, 999, 999)]
    for ignored in kept:
        result = video.average_delay(ground_truth, detections, "exact", ignored={"a": ignored})
        assert result.max_false_positive_ratio == pytest.approx(0.3)


def test_milliseconds() -> None:
    result = video.average_delay({"a": walk(0, 9)}, {"a": seen(2, 3)}, "exact", frame_rate_hz=25)
    assert result.average_delay_ms == pytest.approx(2 * 40)
    assert result.delays_ms == pytest.approx([80] * 6)
    assert float(result) == result.average_delay
    with pytest.raises(ValueError, match="needs the frame rate"):
        _ = video.average_delay({"a": walk(0, 9)}, {}).average_delay_ms
    with pytest.raises(ValueError, match="latency_ms needs frame_rate_hz"):
        video.average_delay({"a": walk(0, 9)}, {}, latency_ms=10)
    # the object stands still: 100 ms of computing delay what is seen by 2.5, so by 3, frames
    late = video.average_delay({"a": walk(0, 9)}, {"a": seen(*range(10))}, "exact", frame_rate_hz=25, latency_ms=100)
    assert late.average_delay == 3


BAD = {
    "a row of six": ({"a": [(0, 1, "p", 0, 0, 9)]}, {}, "must hold rows of 7 values .* in row 0"),
    "an array of six columns": ({"a": np.zeros((3, 6))}, {}, r"got an array of shape \(3, 6\)"),
    "a row that is none": ({"a": [5]}, {}, "got 5 in row 0"),
    "negative size": ({"a": walk(0, 3)}, {"a": seen(1) + seen(1, box=(9, 0, 5, 9))}, r"detections\['a'\] row 1: a box"),
    "nan corner": ({"a": walk(0, 3, box=(0, 0, math.nan, 9))}, {}, r"ground_truth\['a'\] row 0: corners"),
    "nan score": ({"a": walk(0, 3)}, {"a": seen(1, score=math.nan)}, "score must be a number, got nan"),
    "text for a score": ({"a": walk(0, 3)}, {"a": [(0, "p", "high", *BOX)]}, "score must be a number, got 'high'"),
    "half a frame": ({"a": [(0.5, 1, "p", *BOX)]}, {}, "frame must be a whole number from 0 on, got 0.5"),
    "a frame before the first": ({"a": walk(0, 3)}, {"a": seen(-1)}, "frame must be a whole number from 0 on, got -1"),
    "an object twice": ({"a": walk(0, 3) + walk(3, 3)}, {}, "row 4: track 1 has a second box in frame 3"),
    "a change of class": (
        {"a": walk(0, 3) + walk(4, 4, label="dog")},
        {},
        "row 4: track 1 changes class, from 'person'",
    ),
    "no class": ({"a": walk(0, 3, label=None)}, {}, "class must be a number or a text, got None"),
    "a strange sequence": ({"a": walk(0, 3)}, {"b": seen(1)}, "detections has the sequence 'b', which ground_truth"),
    "no objects": ({"a": []}, {"a": seen(1)}, "ground_truth must hold at least one object"),
    "one frame": ({"a": walk(0, 0)}, {}, "outside the last frame of a sequence, which mode 'official' drops"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str) -> None:
    ground_truth, detections, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        video.average_delay(ground_truth, detections)  # type: ignore[arg-type]


def test_bad_arguments_are_named() -> None:
    good: Any = {"a": walk(0, 9)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "publsihed"}, "mode must be one of official, exact, censored, got 'publsihed'"),
        ({"iou_threshold": 0}, r"iou_threshold must lie in \(0, 1\], got 0"),
        ({"window": 0}, "window must be at least 1 frame, or None, got 0"),
        ({"false_positive_ratios": []}, "false_positive_ratios must be positive numbers"),
        ({"false_positive_ratios": [0.1, -1]}, "false_positive_ratios must be positive numbers"),
        ({"classes": ["dog", 7]}, r"classes must name classes of ground_truth, \['person'\], got \['dog', 7\]"),
        ({"num_frames": {"a": 9}}, "frame 9 lies beyond the end, the sequence has 9 frames"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            video.average_delay(good, {"a": seen(1)}, **options)
    with pytest.raises(TypeError, match="classes must be a list of classes, got the text 'person'"):
        video.average_delay(good, {}, classes="person")
    with pytest.raises(TypeError, match="ground_truth must be a dict"):
        video.average_delay(good["a"], {})
    with pytest.raises(ValueError, match=r"detections\['a'\] row 1: frame 12 lies beyond the end"):
        video.average_delay(good, {"a": seen(1, 12)}, num_frames={"a": 10})
    beyond = video.average_delay(good, {"a": seen(1, 12)}, "exact")
    assert beyond.max_false_positive_ratio == 0.1  # without a length it is a false alarm


def test_window() -> None:
    ground_truth, detections = {"a": walk(0, 99)}, {"a": seen(60)}
    assert video.average_delay(ground_truth, detections, "exact").average_delay == 30
    assert video.average_delay(ground_truth, detections, "exact", window=None).average_delay == 60
    assert video.average_delay(ground_truth, detections, "censored", window=None).average_delay == 60
    assert video.average_delay(ground_truth, detections, "official").delays[0] == 30
