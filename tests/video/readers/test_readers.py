"""Files in, rows out; and errors that name file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgcomp import video
from dgcomp.video import readers

KITTI = """\
0 -1 DontCare -1 -1 -10 500.0 10.0 520.0 30.0 -1 -1 -1 -1000 -1000 -1000 -10
0 3 Car 1 2 -1.5 10.0 20.0 60.0 70.0 1.5 1.6 3.9 1 2 3 0.1
1 3 Car 0 0 -1.5 12.0 20.0 62.0 70.0 1.5 1.6 3.9 1 2 3 0.1
1 4 Van 0 0 -1.5 100.0 20.0 160.0 70.0 1.5 1.6 3.9 1 2 3 0.1
1 5 Cyclist 0 0 -1.5 200.0 20.0 260.0 70.0 1.5 1.6 3.9 1 2 3 0.1
"""
MOT15 = "1,1,10,20,50,100,1,4.4,5.5,0\n2,1,12,20,50,100,1,4.4,5.5,0\n2,2,200,20,50,100,0,4.4,5.5,0\n"
MOT16 = "1,1,10,20,50,100,1,1,0.9\n2,1,12,20,50,100,0,1,0.1\n1,7,200,20,50,100,0,7,1\n1,8,300,20,50,100,0,3,1\n"
DETECTIONS = "1,-1,10,20,50,100,0.9,-1,-1,-1\n2,-1,11.5,20,50,100,0.8,-1,-1,-1\n"
PETS = """<?xml version="1.0"?>
<dataset>
 <frame number="10"><objectlist>
  <object id="9"><box h="100" w="50" xc="35" yc="70"/></object>
 </objectlist></frame>
 <frame number="11"><objectlist/></frame>
</dataset>
"""
COCO: dict[str, Any] = {
    "videos": [{"id": 1, "name": "street"}, {"id": 2, "name": "empty"}],
    "images": [
        {"id": 10, "video_id": 1, "frame_id": 0, "width": 640, "height": 480},
        {"id": 11, "video_id": 1, "frame_id": 1},
    ],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 1, "track_id": 5, "bbox": [10, 20, 50, 100]},
        {"id": 2, "image_id": 11, "category_id": 1, "instance_id": 5, "bbox": [12, 20, 50, 100]},
        {"id": 3, "image_id": 11, "category_id": 1, "track_id": 6, "bbox": [300, 20, 50, 100], "iscrowd": 1},
    ],
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_kitti(tmp_path: Path) -> None:
    write(tmp_path / "0001.txt", KITTI)
    write(tmp_path / "0002.txt", "\n")
    everything = video.read_ground_truth(tmp_path)
    assert list(everything.ground_truth) == ["0001", "0002"]
    assert everything.ground_truth["0001"][0] == (0, 3, "Car", 10, 20, 60, 70, 1, 2)
    assert everything.ignored["0001"] == [(0, None, 500, 10, 520, 30)]
    cars = video.read_ground_truth(tmp_path, classes=["Car"])
    assert [row[:3] for row in cars.ground_truth["0001"]] == [(0, 3, "Car"), (1, 3, "Car")]
    assert cars.ignored["0001"] == [(0, None, 500, 10, 520, 30), (1, "Car", 100, 20, 160, 70)]
    found = write(tmp_path / "found" / "0001.txt", "".join(line + " 0.7\n" for line in KITTI.splitlines()[1:]))
    detections = video.read_detections(found)
    assert detections["0001"][0] == (0, "Car", 0.7, 10, 20, 60, 70)
    result = video.average_delay(cars.ground_truth, detections, "exact", ignored=cars.ignored, classes=["Car"])
    assert (result.average_delay, result.max_false_positive_ratio) == (0, 0)


def test_mot(tmp_path: Path) -> None:
    write(tmp_path / "A-01" / "gt" / "gt.txt", MOT15)
    write(tmp_path / "A-01" / "det" / "det.txt", DETECTIONS)
    write(tmp_path / "A-01" / "seqinfo.ini", "[Sequence]\nseqLength=2\nimWidth=640\nimHeight=480\n")
    truth = video.read_ground_truth(tmp_path, "mot")
    assert truth.ground_truth == {
        "A-01": [(0, 1, "pedestrian", 10, 20, 60, 120), (1, 1, "pedestrian", 12, 20, 62, 120)]
    }
    assert truth.ignored == {"A-01": [(1, "pedestrian", 200, 20, 250, 120)]}
    assert (truth.num_frames, truth.image_size) == ({"A-01": 2}, {"A-01": (640, 480)})
    assert video.read_ground_truth(tmp_path / "A-01" / "gt" / "gt.txt").ground_truth == truth.ground_truth
    detections = video.read_detections(tmp_path)
    assert detections == {
        "A-01": [(0, "pedestrian", 0.9, 10, 20, 60, 120), (1, "pedestrian", 0.8, 11.5, 20, 61.5, 120)]
    }
    newer = readers.read_mot(write(tmp_path / "B.txt", MOT16))
    assert [row[:2] for row in newer.ground_truth["B"]] == [(0, 1)]
    assert [row[:1] + row[2:3] for row in newer.ignored["B"]] == [(1, 12), (0, 200)]  # not the car


def test_pets(tmp_path: Path) -> None:
    path = write(tmp_path / "view1.xml", PETS)
    truth = readers.read_pets(path, first_frame=10)
    assert truth.ground_truth == {"view1": [(0, 9, "pedestrian", 10, 20, 60, 120)]}
    assert truth.num_frames == {"view1": 2}
    assert video.read_ground_truth(path, sequence="S2").ground_truth["S2"][0][0] == 10


def test_vid_text_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    rows = {"a": [(0, 7, 1 / 3, 0.1, 0.2, 10.3, 20.7), (5, 9, 1e-9, 1, 2, 3, 4)], "b": []}
    video.write_vid_detections(tmp_path, rows)
    assert video.read_detections(tmp_path) == rows
    named = video.read_detections(tmp_path, class_names=video.IMAGENET_VID_CLASSES)
    assert [row[1] for row in named["a"]] == ["car", "dog"]
    truth = write(tmp_path / "gt" / "a.txt", "# frame track class box\n0 cat-1 car 0 0 10 20\n1 2 9 0 0 10 20\n")
    read = video.read_ground_truth(truth, class_names=video.IMAGENET_VID_CLASSES).ground_truth
    assert read == {"a": [(0, "cat-1", "car", 0, 0, 10, 20), (1, 2, "dog", 0, 0, 10, 20)]}


def test_coco(tmp_path: Path) -> None:
    path = write(tmp_path / "gt.json", json.dumps(COCO))
    truth = video.read_ground_truth(path)
    assert truth.ground_truth == {
        "street": [(0, 5, "person", 10, 20, 60, 120), (1, 5, "person", 12, 20, 62, 120)],
        "empty": [],
    }
    assert truth.ignored == {"street": [(1, "person", 300, 20, 350, 120)], "empty": []}
    assert (truth.num_frames, truth.image_size) == ({"street": 2, "empty": 0}, {"street": (640, 480)})
    results = [{"image_id": 11, "category_id": 1, "bbox": [12, 20, 50, 100], "score": 0.5}]
    found = write(tmp_path / "det.json", json.dumps(results))
    detections = video.read_detections(found, ground_truth=path)
    assert detections == {"street": [(1, "person", 0.5, 12, 20, 62, 120)], "empty": []}
    with pytest.raises(ValueError, match="COCO results need the JSON file of the ground truth"):
        video.read_detections(found)


def changed(**changes: Any) -> str:
    """The COCO file with another first annotation; a value of None removes a key."""
    first = {key: value for key, value in (COCO["annotations"][0] | changes).items() if value is not None}
    return json.dumps(COCO | {"annotations": [first, *COCO["annotations"][1:]]})


truth, found = video.read_ground_truth, video.read_detections
BAD_FILES: list[tuple[Callable[..., Any], str, str, str]] = [
    (truth, "a.txt", KITTI + "2 3 Car 0 0\n", "a.txt, line 6: a line of KITTI tracking labels has 17 or 18"),
    (truth, "a.txt", KITTI.replace("62.0", "2.0"), "a.txt, line 3: a box must have x1 <= x2"),
    (truth, "a.txt", KITTI.replace("1 3 Car", "0 3 Car"), "a.txt, line 3: track 3 has a second box in frame 0"),
    (truth, "a.txt", KITTI.replace("1 3 Car", "1 3 Bus"), "a.txt, line 3: track 3 changes class, from 'Car' to 'Bus'"),
    (truth, "a.txt", KITTI.replace("1 4 Van", "x 4 Van"), "a.txt, line 4: frame must be a number, got 'x'"),
    (truth, "a.txt", MOT15.replace("2,1,12", "0,1,12"), "a.txt, line 2: frame must be a whole number from 1 on"),
    (found, "a.txt", "99999999999999999999 1 0.9 1 1 5 5\n", "a.txt, line 1: frame must be a whole number from 0 on"),
    (truth, "a.txt", MOT15.replace("2,1,12", f"2,{10**25},12"), "a.txt, line 2: id must be a whole number, got '1000"),
    (truth, "a.txt", MOT15.replace("2,1,12,20,50", "2,1,12,20,-5"), "a.txt, line 2: a box must have x1 <= x2"),
    (truth, "a.txt", MOT15.replace("2,1,12,20", "1,1,12,20"), "a.txt, line 2: track 1 has a second box in frame 0"),
    (truth, "a.txt", MOT15 + "\n3,4\n", "a.txt, line 5: a line of MOT ground truth has 7 to 10 fields, got 2"),
    (found, "a.txt", DETECTIONS.replace("0.8", "nan"), "a.txt, line 2: score must be a number, got nan"),
    (found, "a.txt", "\n0 1 0.9 1 1 5 oops\n", "a.txt, line 2: y2 must be a number, got 'oops'"),
    (found, "a.txt", "0 1 0.9 1 1 5\n", "a.txt, line 1: a line of detections .* has 7 fields, got 6"),
    (truth, "a.xml", PETS.replace("</dataset>", ""), r"a.xml, line \d: no element found"),
    (truth, "a.xml", PETS.replace('xc="35" ', ""), "a.xml, line 4: <box> needs a number xc, got none"),
    (truth, "a.xml", PETS.replace('h="100"', 'h="-1"'), "a.xml, line 4: a box must have x1 <= x2"),
    (found, "a.xml", PETS, "PETS files hold ground truth"),
    (truth, "a.json", "{\n[", "a.json, line 2: "),
    (truth, "a.json", "{}", "a.json: needs a list 'annotations'"),
    (truth, "a.json", changed(track_id=None), r"a.json, annotations\[0\]: needs track_id or instance_id"),
    (truth, "a.json", changed(track_id=[5]), r"a.json, annotations\[0\]: track_id or instance_id must be a number or"),
    (truth, "a.json", json.dumps(COCO | {"images": [3]}), r"a.json, images\[0\]: needs to be a record and a number or"),
    (truth, "a.txt", MOT15.replace("2,1,12", "2,1.5,12"), "a.txt, line 2: id must be a whole number, got '1.5'"),
    (truth, "a.txt", MOT16 + "3,1,0,0,5,5,1\n", "a.txt, line 5: has 7 fields, line 1 has 9"),
    (truth, "a.json", changed(image_id=3), r"a.json, annotations\[0\]: image_id 3 is not among the images"),
    (truth, "a.json", changed(category_id=3), r"a.json, annotations\[0\]: category_id 3 is not among the categories"),
    (truth, "a.json", changed(bbox=[1, 2, 3]), r"a.json, annotations\[0\]: bbox must be \[left, top, width, height\]"),
    (truth, "a.json", changed(bbox=[1, 2, -3, 4]), r"a.json, annotations\[0\]: a box must have x1 <= x2"),
]  # fmt: skip


def test_files_from_elsewhere(tmp_path: Path) -> None:
    """Windows line ends, a byte order mark, frames in any order, no line at all, numbers that only fit in 64 bits."""
    lines = KITTI.splitlines()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "b.txt").write_text("\n".join(reversed(lines)))
    windows, backwards = (
        video.read_ground_truth(tmp_path / name, sequence="s").ground_truth["s"] for name in ("a.txt", "b.txt")
    )
    assert sorted(windows) == sorted(backwards)
    (tmp_path / "c.txt").write_text("\n")
    assert video.read_ground_truth(tmp_path / "c.txt", "kitti").ground_truth == {"c": []}
    near = 2**60
    (tmp_path / "d.txt").write_text(f"1,{near},1,1,5,5,1\n1,{near + 1},9,1,5,5,1\n")
    assert [row[1] for row in video.read_ground_truth(tmp_path / "d.txt", "mot").ground_truth["d"]] == [near, near + 1]


@pytest.mark.parametrize("case", range(len(BAD_FILES)))
def test_errors_name_file_and_line(case: int, tmp_path: Path) -> None:
    read, name, text, message = BAD_FILES[case]
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_other_errors(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"0 1 2 0 0 9 9\n1 1 2 0 0 9 \xff\n")
    with pytest.raises(ValueError, match="bytes.txt, line 2: must be text in UTF-8, got the byte 0xff"):
        truth(tmp_path / "bytes.txt")
    path = write(tmp_path / "s" / "gt" / "gt.txt", MOT15)
    write(tmp_path / "s" / "seqinfo.ini", "[Sequence]\nseqLength=1\nimWidth=640\nimHeight=480\n")
    with pytest.raises(ValueError, match="gt.txt, line 2: frame 1 lies beyond the end, the sequence has 1 frames"):
        truth(path)
    write(tmp_path / "s" / "seqinfo.ini", "[Sequence]\n")
    with pytest.raises(ValueError, match="seqinfo.ini: needs numbers seqLength"):
        truth(path)
    late = write(tmp_path / "s" / "det" / "det.txt", DETECTIONS)
    with pytest.raises(ValueError, match="det.txt, line 2: frame 1 lies beyond the end, the sequence has 1 frames"):
        found(late, num_frames={"s": 1})
    with pytest.raises(FileNotFoundError, match="no file to read at"):
        truth(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no MOT ground truth at"):
        truth(tmp_path / "s" / "gt" / "..", "mot")
    with pytest.raises(ValueError, match="format must be one of auto, kitti, mot, pets, vid, coco, got 'voc'"):
        truth(path, "voc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="class must be one of 31 names or their numbers, got 99"):
        found(write(tmp_path / "v.txt", "0 99 0.5 0 0 9 9"), class_names=video.IMAGENET_VID_CLASSES)
    for name in ("one.txt", "two.txt"):
        write(tmp_path / "several" / name, KITTI)
    with pytest.raises(ValueError, match="sequence names one file, got 2 files for 'x'"):
        truth(tmp_path / "several", sequence="x")
    first = truth(tmp_path / "several" / "one.txt")
    with pytest.raises(ValueError, match="the sequence 'one' comes from two files"):
        first.update(truth(tmp_path / "several" / "one.txt"))
