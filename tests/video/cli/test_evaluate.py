"""The evaluate command: from files to a report."""

import json
from pathlib import Path

import pytest

from dgcomp import video
from dgcomp.video.__main__ import main
from tests.video.scenes import make_scene


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ground_truth, detections = make_scene(1)
    video.write_vid_detections(tmp_path / "first", detections)
    video.write_vid_detections(tmp_path / "later", video.retardation(ground_truth, detections, 3))
    (tmp_path / "gt").mkdir()
    for sequence, rows in ground_truth.items():
        lines = [" ".join(map(repr, row)) for row in rows]
        (tmp_path / "gt" / f"{sequence}.txt").write_text("\n".join(lines))
    return tmp_path


def test_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    command = f"evaluate --ground-truth {files}/gt --detections {files}/first --detections {files}/later"
    main(
        [
            *command.split(),
            *f"--output {files}/report --resamples 50 --frame-rate 25 --latency-ms 30 --image-size 500 400".split(),
        ]
    )
    printed = capsys.readouterr().out
    figures = json.loads((files / "report" / "report.json").read_text())
    expected = video.average_delay(*make_scene(1))
    first = figures["detectors"]["first"]
    assert first["average_delay"]["official"] == expected.average_delay
    assert [point["official"] for point in first["points"]] == expected.delays.tolist()
    assert first["average_delay_ms"] == pytest.approx(40 * first["average_delay"]["exact"])
    assert first["streamed"]["average_delay_ms"] > first["average_delay_ms"]
    assert first["average_delay_interval"][0] < first["average_delay"]["exact"] < first["average_delay_interval"][1]
    assert sum(group["tracks"] for group in first["groups"]["size"].values()) == first["tracks"] == 18
    assert set(first["groups"]["entry"]) <= {"start", "border", "interior"}
    later = figures["detectors"]["later"]
    assert later["average_delay"]["exact"] > first["average_delay"]["exact"]
    text = (files / "report" / "report.md").read_text()
    for part in ("# Detection delay", "## first", "## later", "![delay](delay.png)", f"{expected.average_delay:.4f}"):
        assert part in text
    assert f"{expected.average_delay:.4f}" in printed
    for name in ("delay.png", "survival.png"):
        assert (files / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_named_sequences_and_saturated_detectors(files: Path) -> None:
    (files / "few.txt").write_text("5 1 0.9 0 0 3 3\n")
    command = f"evaluate --ground-truth x={files}/gt/s00.txt --detections x={files}/few.txt --output {files}/report"
    main([*command.split(), "--resamples", "10", "--classes", "1", "--names", "sparse"])
    text = (files / "report" / "report.md").read_text()
    assert "**Saturated** at 0.1, 0.2" in text
    assert "No threshold reaches precision 0.8" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--ground-truth gt --detections nowhere", "no file to read at nowhere"),
        ("--ground-truth gt --detections first --names a b", "--names must give 1 detectors names of their own"),
        ("--ground-truth gt --detections first --precision 80", "precision must lie in"),
        ("--ground-truth gt/s00.txt gt --detections first", "the sequence 's00' comes from two files"),
        ("--ground-truth gt/s00.txt --detections first", "detections has the sequence 's01'"),
        ("--ground-truth gt --detections first --latency-ms 9", "latency_ms needs frame_rate_hz"),
    ],
)
def test_errors_are_one_sentence(
    command: str, message: str, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *command.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("evaluate", "catdet", "patchnet"))
