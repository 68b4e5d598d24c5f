"""docs/hardware.md: its accelerator of one's own runs, its names parse, its commands are known."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from dgcomp import hwmodel
from dgcomp.hwmodel import registry
from dgcomp.hwmodel.__main__ import _parser
from dgcomp.hwmodel.sweeps import layer_operation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardware.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_own_accelerator_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    (code,) = (block for block in blocks("python") if "class Systolic" in block)
    assert len(code.splitlines()) < 60  # "about 50 lines"
    module: dict[str, Any] = {"__name__": "tests.hwmodel.test_docs"}
    exec(compile(code, str(PAGE), "exec"), module)
    chip = hwmodel.parse_accelerator("systolic:side=64")
    cost = chip.price(layer_operation(128, 256, 0.1, 0.5, columns=3))
    assert cost is not None
    assert cost.cycles == 2 * 4 * (3 + 128)
    assert cost.joules == pytest.approx(sum(cost.part("joules").values()))


def test_names_of_the_page_are_accelerators() -> None:
    names = re.findall(r"`((?:eie|vsquant|sparch|winograd|network)(?::[^`]*)?)`", PAGE.read_text())
    assert len(names) > 10
    for name in names:
        hwmodel.parse_accelerator(name)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_toml_of_the_page(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "chip.toml").write_text(text)
    assert hwmodel.parse_accelerator(str(tmp_path / "chip.toml")).name == "eie-256pe"


def test_commands_of_the_page_are_known() -> None:
    commands = re.findall(r"^python -m dgcomp.hwmodel (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        _parser().parse_args(shlex.split(command))
