"""Frames of a video file, a folder of images or a zip of images, as RGB arrays [height, width, 3] of uint8."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["Frame", "load_opencv", "read_frames", "read_image", "resize_frame"]

Frame = NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


def read_frames(path: str | Path) -> Iterator[Frame]:
    """Frames in order, by name where they are images; a zip's images may lie in folders.

    Reads images with Pillow and everything else with OpenCV: pip install 'dgcomp[video]'.
    Raises FileNotFoundError, or ValueError where the path holds no frame.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path {path} must be a video, a folder of images or a zip of images; it is not there")
    read = _folder_frames if path.is_dir() else _zip_frames if path.suffix == ".zip" else _video_frames
    count = 0
    for frame in read(path):
        count += 1
        yield frame
    if not count:
        raise ValueError(f"path {path} holds no frame that can be read")


def read_image(data: bytes) -> Frame:
    """Decode one image file."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reading images needs Pillow: pip install 'dgcomp[video]'") from None
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def resize_frame(frame: Frame, zoom: float) -> Frame:
    """A frame `zoom` times as high and wide, rounded to whole pixels: bilinear, pixel areas aligned."""
    height, width = (round(side * zoom) for side in frame.shape[:2])
    if (height, width) == frame.shape[:2]:
        return frame
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None]  # a copy: torch warns of read-only arrays
    resized = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _folder_frames(path: Path) -> Iterator[Frame]:
    for file in sorted(path.iterdir()):
        if _is_image(file.name):
            yield read_image(file.read_bytes())


def _zip_frames(path: Path) -> Iterator[Frame]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(filter(_is_image, archive.namelist())):
            yield read_image(archive.read(name))


def _video_frames(path: Path) -> Iterator[Frame]:
    cv2 = load_opencv()
    capture = cv2.VideoCapture(str(path))
    try:
        while True:
            ok, frame = capture.read()
            if not ok:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])
    finally:
        capture.release()


def load_opencv() -> Any:
    """The module cv2, or ModuleNotFoundError with the cure."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this needs OpenCV 4: pip install 'dgcomp[video]'") from None
    return cv2
