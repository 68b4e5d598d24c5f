"""The Python example of docs/video.md runs and says what its comments say."""

import re
from pathlib import Path
from typing import Any

import pytest

from dgcomp import video

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "video.md"


def test_python_example() -> None:
    [code] = [block for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "result =" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    result = names["result"]
    assert (result.average_delay, result.average_delay_ms) == pytest.approx((3.0, 120.0))


def test_defects_are_all_explained() -> None:
    text = DOCUMENT.read_text()
    assert all(f"| {name} |" in text for name in video.DEFECTS)
