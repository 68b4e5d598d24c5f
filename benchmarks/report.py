"""The evidence page: every result of benchmarks/results on one static HTML page, with its conditions.

    python -m benchmarks.report                      # docs/evidence.html and docs/evidence.md
    python -m benchmarks.report --check              # change nothing; exit with 1 if one of them is stale

The page has no script and loads nothing but pictures of benchmarks/results. It reads all results files: accuracy, wire,
bandwidth, scale, ownership, quant_accuracy and sparse have sections with plots of their own; of every NAME.json the
table that its benchmark wrote to NAME.md is shown. docs/evidence.md holds the claims alone, for readers of the
repository.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, not as a module
    sys.path.insert(0, str(ROOT))

from benchmarks.evidence.accuracy_claims import accuracy_claims  # noqa: E402
from benchmarks.evidence.accuracy_sections import (  # noqa: E402
    ablation_section,
    accuracy_section,
    bytes_section,
    steps_section,
    summary_section,
)
from benchmarks.evidence.claim import Claim, by_topic, claims_markdown  # noqa: E402
from benchmarks.evidence.link_sections import (  # noqa: E402
    bandwidth_section,
    ownership_section,
    scale_section,
    wire_section,
)
from benchmarks.evidence.markdown import to_html  # noqa: E402
from benchmarks.evidence.page import Section, details, page, paragraph, table  # noqa: E402
from benchmarks.evidence.study_claims import (  # noqa: E402
    hardware_claims,
    quantization_claims,
    satin_claims,
    sparse_claims,
    video_claims,
)
from benchmarks.evidence.study_sections import pruning_section, quantization_section  # noqa: E402
from benchmarks.evidence.system_claims import (  # noqa: E402
    kernel_claims,
    robustness_claims,
    scale_claims,
    time_claims,
    wire_claims,
)

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
RESULTS_FROM_DOCS = "../benchmarks/results"
TITLE = "dgcomp: the evidence"
OWN_SECTIONS: dict[str, tuple[Callable[[Any], Section], ...]] = {
    "accuracy": (accuracy_section, bytes_section, steps_section, ablation_section),
    "wire": (wire_section,),
    "bandwidth": (bandwidth_section,),
    "scale": (scale_section,),
    "ownership": (ownership_section,),
    "quant_accuracy": (quantization_section,),
    "sparse": (pruning_section,),
}
CLAIMS: tuple[tuple[Callable[..., list[Claim]], tuple[str, ...]], ...] = (
    (accuracy_claims, ("accuracy",)),
    (wire_claims, ("wire",)),
    (kernel_claims, ("kernels",)),
    (time_claims, ("bandwidth",)),
    (scale_claims, ("scale",)),
    (robustness_claims, ("elastic", "restarts", "soak")),
    (quantization_claims, ("quant_accuracy",)),
    (sparse_claims, ("sparse",)),
    (hardware_claims, ("hardware",)),
    (video_claims, ("video_catdet", "video_patchnet")),
    (satin_claims, ("satin",)),
)
"""Who makes claims of which files; left out where one of them is not there."""


def main() -> None:
    """Write both files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder for evidence.html and evidence.md")
    arguments = parser.parse_args()
    stale = []
    for name, text in render(arguments.results).items():
        path = arguments.docs / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not arguments.check:
                path.write_text(text)
    if arguments.check and stale:
        raise SystemExit(f"stale: {', '.join(stale)}; run python -m benchmarks.report")


def render(results: Path) -> dict[str, str]:
    """Texts of evidence.html and evidence.md, from the results files that are there."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    claims = [
        claim
        for make, names in CLAIMS
        if records.keys() >= {*names}
        for claim in make(*(records[name] for name in names))
    ]
    sections = [summary_section(records["accuracy"])] if records.get("accuracy") else []
    sections.append(_claims_section(claims))
    for name, makers in OWN_SECTIONS.items():
        if records.get(name):
            sections += [make(records[name]) for make in makers]
    sections.append(_others_section(records, results))
    sections.append(_provenance_section(records))
    introduction = paragraph(
        "Written by `python -m benchmarks.report` from the files in "
        f"[benchmarks/results]({RESULTS_FROM_DOCS}); no figure is typed by hand. Every row there names its command and "
        "commit. What does not hold is listed with what does."
    )
    introduction_md = (
        "# The evidence\n\nEvery claim with its bar, written by `python -m benchmarks.report` from "
        f"[benchmarks/results]({RESULTS_FROM_DOCS}); plots, conditions and commands are on "
        "[the page](evidence.html).\n\n"
    )
    return {
        "evidence.html": page(TITLE, introduction, sections),
        "evidence.md": introduction_md + claims_markdown(claims),
    }


def _claims_section(claims: list[Claim]) -> Section:
    missed = [claim for claim in claims if not claim.is_met]
    noise = sum(claim.is_in_noise for claim in claims)
    body = [
        paragraph(
            f"{len(claims) - len(missed)} of {len(claims)} claims hold. {noise} are within noise: the bar lies within "
            "a standard error of the mean, and other seeds may say the opposite. Of a single seed no error is known."
        )
    ]
    for topic, some in by_topic(claims).items():
        rows = [[(claim.text, ""), (claim.bar, ""), (_measured(claim), _mark(claim))] for claim in some]
        sources = ", ".join(f"[{name}]({RESULTS_FROM_DOCS}/{name})" for name in dict.fromkeys(c.source for c in some))
        body += [f"<h3>{topic}</h3>", table(["claim", "bar", "measured"], rows), paragraph(f"From {sources}.", "note")]
    return Section("claims", "The claims", "\n".join(body))


def _measured(claim: Claim) -> str:
    return claim.measured + ", within noise" * claim.is_in_noise


def _mark(claim: Claim) -> str:
    return "met" if claim.is_met else "missed"


def _others_section(records: dict[str, Any], results: Path) -> Section:
    """What the other benchmarks wrote for people, folded; a file without Markdown is shown as its first rows."""
    body = []
    for name in sorted(records):
        text = results / f"{name}.md"
        if text.exists():
            body.append(details(name, to_html(text.read_text(), image_folder=RESULTS_FROM_DOCS)))
        elif rows := [row for row in _rows(records[name]) if any(map(_is_plain, row.values()))]:
            body.append(details(name, _plain_table(rows)))
    return Section("tables", "All results, as their benchmarks wrote them", "\n".join(body))


def _plain_table(rows: list[dict[str, Any]]) -> str:
    head = [key for key, value in rows[0].items() if _is_plain(value)]
    return table(head, ([_plain(row.get(key)) for key in head] for row in rows))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rows(record: Any) -> list[dict[str, Any]]:
    return [row for row in (record if isinstance(record, list) else [record]) if isinstance(row, dict)]


def _provenance_section(records: dict[str, Any]) -> Section:
    """Which commands made each file, on which commits, versions and machines."""
    lines: list[list[str | tuple[str, str]]] = []
    for name, record in records.items():
        found = list(_surroundings(record))
        commands = sorted({str(one["command"]) for one in found if "command" in one})
        shown = f"`{commands[0]}`" if len(commands) == 1 else f"{len(commands)} commands, in the file"
        lines.append(
            [
                f"[{name}.json]({RESULTS_FROM_DOCS}/{name}.json)",
                (_distinct(found, "commit"), ""),
                (_distinct(found, "machine"), ""),
                (_distinct(found, "torch"), ""),
                (shown, ""),
            ]
        )
    return Section(
        "provenance", "Where it comes from", table(["file", "commits", "machines", "torch", "command"], lines)
    )


def _surroundings(value: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary within a record that names a commit, with the torch version beside it if there is one."""
    if isinstance(value, dict):
        if "commit" in value:
            versions = value.get("versions")
            yield {**(versions if isinstance(versions, dict) else {}), **value}
        for inside in value.values():
            yield from _surroundings(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _surroundings(inside)


def _distinct(found: list[dict[str, Any]], key: str) -> str:
    return ", ".join(sorted({str(one[key]) for one in found if key in one}))


if __name__ == "__main__":
    main()
