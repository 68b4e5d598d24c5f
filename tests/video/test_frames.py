"""Frames from folders, zips and videos; annotated frames written and read back."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images are read with Pillow")

from dgcomp.video.annotate import FrameWriter, draw_boxes
from dgcomp.video.frames import Frame, read_frames


def some_frames() -> list[Frame]:
    return [np.full((48, 64, 3), (60 * i, 100, 200), dtype=np.uint8) for i in range(3)]


def test_folder_and_zip(tmp_path: Path) -> None:
    with FrameWriter(tmp_path / "frames") as writer:
        for frame in some_frames():
            writer.write(frame)
    (tmp_path / "frames" / "notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        for file in sorted((tmp_path / "frames").iterdir(), reverse=True):
            archive.write(file, f"inside/{file.name}")
    for path in (tmp_path / "frames", tmp_path / "frames.zip"):
        read = list(read_frames(path))
        assert len(read) == 3
        for ours, frame in zip(read, some_frames(), strict=True):
            np.testing.assert_allclose(ours, frame, atol=4)  # JPEG


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it is not there"):
        next(read_frames(tmp_path / "missing.avi"))
    with pytest.raises(ValueError, match="holds no frame that can be read"):
        next(read_frames(tmp_path))


def test_boxes_are_drawn() -> None:
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    drawn = draw_boxes(frame, np.array([[10.0, 10, 30, 30]]), ["0.9"], color=1)
    assert not frame.any()
    assert drawn[10, 20].tolist() == drawn[20, 10].tolist() == [70, 200, 90]
    assert not drawn[20, 20].any()


@pytest.mark.optional
def test_video(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="videos are read with OpenCV")
    with FrameWriter(tmp_path / "video.avi") as writer:
        for frame in some_frames():
            writer.write(frame)
    read = list(read_frames(tmp_path / "video.avi"))
    assert len(read) == 3
    np.testing.assert_allclose(read[2].mean((0, 1)), [120, 100, 200], atol=6)


@pytest.mark.optional
def test_hog() -> None:
    """No person in an empty frame; operations go with the pixels; a person-like shape would need a photograph."""
    cv2 = pytest.importorskip("cv2", reason="the pedestrian detector is OpenCV's")
    if not hasattr(cv2, "HOGDescriptor"):
        pytest.skip("OpenCV 5 has no HOGDescriptor in its main part")
    from dgcomp.video.hog import HOGPeople

    detector = HOGPeople(zoom=1)
    frame = np.full((160, 128, 3), 128, dtype=np.uint8)
    assert len(detector.detect(frame)) == 0
    assert len(detector.detect(frame, np.array([[10.0, 10, 30, 30]]))) == 0  # smaller than a window
    assert detector.operations(320, 256).total > 3 * detector.operations(160, 128).total
    with pytest.raises(ValueError, match="stride must be a positive multiple of 8, got 12"):
        HOGPeople(stride=12)
    with pytest.raises(ValueError, match="scale must be above 1"):
        HOGPeople(scale=1)
    with pytest.raises(ValueError, match="padding must be a multiple of 8"):
        HOGPeople(padding=3)
