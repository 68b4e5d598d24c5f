"""docs/video_pipelines.md: its Python parses and names what there is; its commands have the options that they show."""

import ast
import re
from pathlib import Path

import pytest

from dgcomp import video
from dgcomp.video.__main__ import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "video_pipelines.md").read_text()


def test_python_names_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(blocks) >= 4
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "video":
                assert hasattr(video, node.attr), node.attr
    for name in re.findall(r"`video\.(\w+)`", TEXT):
        assert hasattr(video, name), name


@pytest.mark.parametrize("command", ["catdet", "patchnet", "evaluate"])
def test_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    known = capsys.readouterr().out
    lines = re.findall(rf"python -m dgcomp\.video {command}((?:.*\\\n)*.*)", TEXT)
    assert lines
    for option in re.findall(r"--[a-z-]+", " ".join(lines)):
        assert option in known, option
