"""Average precision: by hand, against COCO's evaluator where it is installed."""

import numpy as np
import pytest

from dgcomp import video
from dgcomp.video.average_precision import average_precision
from tests.video.scenes import make_scene
from tests.video.test_delay import ELSEWHERE, seen, walk


def test_area_under_the_envelope() -> None:
    hits = np.array([True, False, True, True, False])
    # recall 1/4, 2/4, 3/4 at precisions 1, 2/3, 3/4; the envelope lifts 2/3 to 3/4
    assert average_precision(np.array([5.0, 4, 3, 2, 1]), hits, 4) == pytest.approx((1 + 0.75 + 0.75) / 4)
    assert average_precision(np.empty(0), np.empty(0, bool), 4) == 0


def test_mean_over_classes_with_objects() -> None:
    ground_truth = {"a": walk(0, 1) + walk(0, 1, 2, "dog", ELSEWHERE)}
    detections = {"a": seen(0, 1) + seen(0, label="cat")}
    result = video.average_delay(ground_truth, detections, "exact")
    assert result.precision.by_class == {"person": 1.0, "dog": 0.0}
    assert result.precision.mean == 0.5


@pytest.mark.optional
def test_coco() -> None:
    pytest.importorskip("pycocotools")
    ground_truth, detections = make_scene(2)
    coco = video.coco_precision(ground_truth, detections)
    ours = video.average_delay(ground_truth, detections, "exact").precision.mean
    # 101 recalls instead of all, and a detection may take a second-best box
    assert coco.ap50 == pytest.approx(ours, abs=0.02)
    assert 0 < coco.ap < coco.ap50
    perfect = {"a": seen(0, 1)}
    assert video.coco_precision({"a": walk(0, 1)}, perfect).ap == pytest.approx(1)
    assert np.isnan(video.coco_precision({"a": walk(0, 1)}, perfect).ap_small)
    assert video.coco_precision({"a": walk(0, 1)}, {}).ap == 0
    false_alarms = {"a": seen(0, 1) + seen(0, score=0.95, box=ELSEWHERE)}
    assert video.coco_precision({"a": walk(0, 1)}, false_alarms).ap < 0.7
    dogs = {"a": [*walk(0, 1), *walk(0, 1, 2, "dog", ELSEWHERE)]}
    assert video.coco_precision(dogs, perfect).ap == pytest.approx(0.5)
    assert video.coco_precision(dogs, perfect, classes=["person"]).ap == pytest.approx(1)
    region = {"a": [(0, None, 290, 0, 400, 200)]}
    assert video.coco_precision({"a": walk(0, 1)}, false_alarms, ignored=region).ap == pytest.approx(1)
