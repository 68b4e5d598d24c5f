"""The commands catdet and patchnet from frames to annotated frames and a detection file that the metrics read."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="images are read with Pillow")

from dgcomp import video
from dgcomp.video.__main__ import main
from dgcomp.video.annotate import FrameWriter
from dgcomp.video.frames import read_frames
from dgcomp.video.patchnet import PatchNet
from tests.video.test_patchnet import textured
from tests.video.test_tfjs import blob_model, spots


def write_frames(folder: Path, frames: list[np.ndarray]) -> Path:
    with FrameWriter(folder) as writer:
        for frame in frames:
            writer.write(frame)
    return folder


def test_patchnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    background, thing = textured(120, 160, 1), textured(40, 32, 2)
    moving = []
    for step in range(4):
        frame = background.copy()
        frame[50:90, 60 + 3 * step : 92 + 3 * step] = thing
        moving.append(frame)
    frames = write_frames(tmp_path / "in", moving)
    PatchNet().save_weights(tmp_path / "weights.npz")
    command = ["patchnet", str(frames), "--weights", str(tmp_path / "weights.npz"), "--box", "60", "50", "91", "89"]
    main([*command, "--output", str(tmp_path / "out"), "--detections", str(tmp_path / "found" / "v.txt")])
    assert "4 frames, 1 of them key frames; 3 boxes carried for 0.0403 G" in capsys.readouterr().out
    assert len(list(read_frames(tmp_path / "out"))) == 4
    rows = video.read_detections(tmp_path / "found" / "v.txt", "vid", sequence="v")["v"]
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert rows[-1][3] == pytest.approx(69, abs=3)
    again = ["patchnet", str(frames), "--detections-from", str(tmp_path / "found" / "v.txt"), "--interval", "2"]
    main([*again, "--max-frames", "3"])
    assert "3 frames, 2 of them key frames; 1 boxes" in capsys.readouterr().out


def test_catdet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = write_frames(tmp_path / "in", [spots((20 + 4 * step, 40)) for step in range(4)])
    command = ["catdet", str(frames), "--weights", str(blob_model(tmp_path)), "--zoom", "1"]
    options = ["--proposal", "centernet", "--proposal-zoom", "1", "--output", str(tmp_path / "out")]
    main([*command, *options, "--detections", str(tmp_path / "found.txt")])
    text = capsys.readouterr().out
    assert "4 frames, 4 detections" in text
    assert "on 6.7 % of the frame" in text  # 32 x 32 of 96 x 160
    assert len(list(read_frames(tmp_path / "out"))) == 4
    rows = video.read_detections(tmp_path / "found.txt", "vid", sequence="v")["v"]
    assert len({row[0] for row in rows}) == 4
    main([*command, "--mode", "single"])
    assert "0.004 G multiply-adds a frame" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["catdet", str(tmp_path / "nowhere"), "--weights", str(blob_model(tmp_path)), "--mode", "single"])
    assert "it is not there" in capsys.readouterr().err
