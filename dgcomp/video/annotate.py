"""Boxes drawn into frames, and frames written to a video file or a folder."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dgcomp.video.boxes import Boxes
from dgcomp.video.frames import Frame, load_opencv

__all__ = ["FrameWriter", "draw_boxes"]

VIDEO_CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
COLORS = ((255, 80, 60), (70, 200, 90), (80, 150, 255), (255, 200, 40), (200, 100, 255), (60, 220, 220))


def draw_boxes(frame: Frame, boxes: Boxes, labels: list[str] | None = None, *, color: int = 0, width: int = 2) -> Frame:
    """A copy of an RGB frame with boxes [N, 4] in one of six colours and a short text above each."""
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError:
        raise ModuleNotFoundError("drawing needs Pillow: pip install 'dgcomp[video]'") from None
    image = Image.fromarray(np.ascontiguousarray(frame))
    draw = ImageDraw.Draw(image)
    paint = COLORS[color % len(COLORS)]
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=paint, width=width)
        if labels is not None:
            draw.text((x1 + 1, max(y1 - 12, 0)), labels[index], fill=paint)
    return np.asarray(image)


class FrameWriter:
    """Writes frames to a video where the path ends in .avi or .mp4 (OpenCV), else as JPEG files into a folder (Pillow).

    A context manager: the video is complete when it ends.
    """

    def __init__(self, path: str | Path, *, frames_per_s: float = 10.0) -> None:
        self.path, self.frames_per_s = Path(path), frames_per_s
        self._video: Any = None
        self._count = 0

    def __enter__(self) -> "FrameWriter":
        folder = self.path.parent if self._is_video else self.path
        folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._video is not None:
            self._video.release()

    @property
    def _is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_CODECS

    def write(self, frame: Frame) -> None:
        """Append one RGB frame."""
        if self._is_video:
            self._write_video(frame)
        else:
            from PIL import Image

            Image.fromarray(frame).save(self.path / f"{self._count:06d}.jpg", quality=90)
        self._count += 1

    def _write_video(self, frame: Frame) -> None:
        if self._video is None:
            cv2 = load_opencv()
            codec = cv2.VideoWriter_fourcc(*VIDEO_CODECS[self.path.suffix.lower()])
            self._video = cv2.VideoWriter(str(self.path), codec, self.frames_per_s, frame.shape[1::-1])
            if not self._video.isOpened():
                raise OSError(f"path {self.path} can't be written as a video: give a folder, or a name in .avi")
        self._video.write(np.ascontiguousarray(frame[:, :, ::-1]))
