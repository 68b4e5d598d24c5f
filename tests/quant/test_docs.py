"""The guide's code runs as it stands, in order, in one namespace; its tables are those of the results."""

import re
from pathlib import Path
from typing import Any

from benchmarks.quant_docs import tables, with_tables

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "quantization.md"


def test_code_of_the_guide_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), namespace)
    report = namespace["report"]
    assert [(row.layer, row.weight_bits) for row in report.quantized] == [("0", 8), ("2", 4), ("5", 8)]
    assert not report.escaped


def test_tables_of_the_guide_are_those_of_the_results() -> None:
    text = GUIDE.read_text()
    assert with_tables(text, tables()) == text, "run python -m benchmarks.quant_docs"
