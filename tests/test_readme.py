"""The figures of the README and of docs/dgc.md are those of benchmarks/results, and its files exist."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import TABLES, with_figures

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", TABLES)
def test_figures_come_from_the_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert with_figures(text, TABLES[name](ROOT / "benchmarks" / "results")) == text, "run python benchmarks/readme.py"


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
