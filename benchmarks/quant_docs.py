"""Write the tables of docs/quantization.md from benchmarks/results; `--check` only says whether they are up to date.

Every table of the guide stands between two marks and comes from a results file that names its command and commit; the
audit is what the guide's own code prints.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import quant_accuracy, quantization

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "quantization.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the guide is stale")
    arguments = parser.parse_args()
    old = GUIDE.read_text()
    new = with_tables(old, tables())
    if not arguments.check:
        GUIDE.write_text(with_tables(new, {"audit": lambda: audit_of(new)}))
    elif old != new:
        raise SystemExit("docs/quantization.md is stale; run python -m benchmarks.quant_docs")


def with_tables(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """The text with every section's table between its marks; raises ValueError where marks are missing."""
    for name, render in sections.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"docs/quantization.md must have the marks {begin} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{render().strip()}\n{end}{rest.split(end)[1]}"
    return text


def tables() -> dict[str, Callable[[], str]]:
    """What stands between the marks, by name."""
    runs = json.loads(quantization.RESULTS.read_text()) if quantization.RESULTS.exists() else []
    kinds = {kind: (lambda kind=kind: _newest(runs, kind)) for kind in ("clips", "vectors", "scale", "steps", "memory")}
    return {**kinds, "accuracy": _accuracy}


def _newest(runs: list[dict[str, Any]], kind: str) -> str:
    newest = {run["command"]: run for run in runs if run["name"] == kind}
    parts = [
        f"{quantization.table(run['rows'])}\n`{command}`, commit {run['commit']}" for command, run in newest.items()
    ]
    return "\n\n".join(parts) or "(not measured yet)"


def _accuracy() -> str:
    rows = quant_accuracy.load()
    titles = dict.fromkeys(row["experiment"] for row in rows)
    parts = [quant_accuracy.table([row for row in rows if row["experiment"] == title]) for title in titles]
    return "".join(parts).replace("\n## ", "\n### ")


def audit_of(text: str) -> str:
    """The audit's table, from the guide's code blocks run in order with seed 0."""
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), namespace)
    return f"```\n{namespace['report'].table()}\n```"


if __name__ == "__main__":
    main()
