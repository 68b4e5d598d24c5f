"""The evidence page: recipes that parse, tables that add up, plots that hold their data, a page that is whole."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tyro", reason="the recipes are command lines of launch/train.py, which tyro reads")

from benchmarks import report
from benchmarks.evidence.accuracy_claims import accuracy_claims
from benchmarks.evidence.claim import by_topic, claims_markdown, of_seeds
from benchmarks.evidence.markdown import to_html
from benchmarks.evidence.page import inline, table
from benchmarks.evidence.recipes import BUDGETS, METHODS, SMALL_TASKS, TASKS, TUNING, Run, plan
from benchmarks.evidence.study_claims import (
    hardware_claims,
    quantization_claims,
    satin_claims,
    sparse_claims,
    video_claims,
)
from benchmarks.evidence.study_sections import pruning_section, quantization_section
from benchmarks.evidence.svg import Axis, Series, dot_plot, line_plot
from benchmarks.evidence.system_claims import robustness_claims, scale_claims, time_claims
from benchmarks.evidence.tables import accuracy_markdown, entries, mean_curve, tasks_present
from launch.options import parse_options

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
VOID = {"meta", "link", "img", "br", "circle", "line", "polyline"}


def test_every_recipe_is_a_valid_command_line() -> None:
    runs = {run.name: run for budget in BUDGETS.values() for run in plan(budget)} | {run.name: run for run in TUNING}
    for run in runs.values():
        options = parse_options(run.options)
        assert options.train.seed == run.seed
        assert options.train.batch_size is not None
        assert options.train.batch_size % run.ranks == 0
        if options.compress.compress == "dgc":
            assert options.compress.density in (0.001, 0.003, 0.01)


def test_methods_of_a_task_differ_in_the_exchange_alone() -> None:
    for task, recipe in TASKS.items():
        seen = [parse_options(Run(task, method, 0).options) for method in recipe.methods]
        assert len({str(options.data) for options in seen}) == 1
        for options in seen:
            same = {name: value for name, value in vars(options.train).items() if name not in ("quant", "optimizer")}
            assert same == {name: vars(seen[0].train)[name] for name in same}
        assert len({str((options.compress, options.train)) for options in seen}) == len(seen)


def test_plan_is_balanced_wherever_it_stops() -> None:
    budget = BUDGETS["3h"]
    runs = list(plan(budget))
    assert len({run.name for run in runs}) == len(runs)
    for stop in range(1, len(runs)):
        counts = [sum(run.task == task and run.method == "dense" for run in runs[:stop]) for task in SMALL_TASKS]
        assert max(counts) - min(counts) <= 1
    assert {run.seed for run in runs if run.method == "dgc"} == {0, 1, 2}
    assert {run.method for run in plan(BUDGETS["24h"])} == set(METHODS)


def _row(name: str, value: float | None, **more: Any) -> dict[str, Any]:
    kind = {"steady_matrices": 1000.0, "steady": 500.0, "whole_run": 100.0}
    row = {"name": name, "value": value, "metric": "m", "steps": 30, "history": [1.0, 2.0, value], "ratio": kind}
    where = {"command": "c", "machine": "x", "versions": {"torch": "2"}, "commit": "abc"}
    return {**row, **where, "flushed_value": value, **more}


def _rows() -> list[dict[str, Any]]:
    image = [
        _row(f"image/{method}/{seed}", value + seed)
        for method, value in (("dense", 90), ("dgc", 89.9))
        for seed in (0, 1)
    ]
    words = [_row("word-lm/dense/0", 200.0), _row("word-lm/dgc/0", 202.0), _row("word-lm/drop/0", None)]
    return [*image, _row("image/drop/0", 85.0), *words, _row("image/dgc/7", 1.0), _row("image/dgc/0/--epochs 1", 2.0)]


def test_losses_are_paired_by_seed_and_relative_for_perplexity() -> None:
    image, words = entries(_rows(), "image"), entries(_rows(), "word-lm")
    assert image["dgc"].losses == pytest.approx((0.1, 0.1))  # seed 7 has no dense run, and options make another row
    assert image["dgc"].loss_error == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(image["drop"].loss_error)
    assert words["dgc"].loss == pytest.approx(1.0)
    assert words["drop"].num_diverged == 1
    assert mean_curve(words["dense"]) == [(10.0, 1.0), (20.0, 2.0), (30.0, 200.0)]


def test_claims_say_what_holds() -> None:
    claims = by_topic(accuracy_claims(_rows()))
    images, words = claims[TASKS["image"].title], claims[TASKS["word-lm"].title]
    assert [claim.is_met for claim in (*images, *words)] == [True, True, False, True]
    assert "diverges" in words[-1].measured
    assert "**no**" in claims_markdown(words)


def test_longer_tasks_follow_their_own() -> None:
    rows = [_row(f"{task}/dense/0", 90.0) for task in ("image-4x", "speech", "image", "image-2x")]
    assert tasks_present(rows) == ["image", "image-2x", "image-4x", "speech"]
    longer = [_row("image-4x/dense/0", 90.0), _row("image-4x/dgc/0", 89.0)]
    assert accuracy_claims(longer)[0].topic == TASKS["image"].title


@pytest.mark.parametrize(
    ("losses", "is_met", "is_in_noise"),
    [((0.1,), True, False), ((0.0, 0.1, 0.2), True, False), ((-0.6, 0.2, 0.9), True, True), ((0.2, 0.9), False, True)],
)
def test_a_claim_says_when_the_bar_lies_within_the_noise(
    losses: tuple[float, ...], *, is_met: bool, is_in_noise: bool
) -> None:
    claim = of_seeds("t", "x", losses, 0.3, "points", "b", "s")
    assert (claim.is_met, claim.is_in_noise) == (is_met, is_in_noise)
    assert ("±" in claim.measured) == (len(losses) > 1)
    assert claim.verdict.startswith("yes" if is_met else "no")


def test_times_are_judged_by_what_the_exchange_adds() -> None:
    cell = {"link": "1gbit", "nodes": 4, "model": "resnet50", "rtt_ms": 0.0, "loss": 0.0}
    seconds = {"none": 1.0, "dgc_owner": 1.25, "ddp_fp32": 5.0, "ddp_fp32_8mb": 4.75, "powersgd_r1": 1.375}
    rows = [{**cell, "method": method, "step_s": step} for method, step in seconds.items()]
    dense, power = time_claims([*rows, {**cell, "method": "ddp_fp32", "step_s": 0.1, "nodes": 2}])
    assert (dense.measured, dense.is_met) == ("15.0x; the whole step 3.8x", True)
    assert (power.measured, power.is_met) == ("1.5x; the whole step 1.1x", False)


def test_quantization_claims_pair_seeds_and_know_which_way_is_better() -> None:
    def rows(title: str, metric: str, **scores: float) -> list[dict[str, Any]]:
        same = {"experiment": title, "metric": metric}
        return [
            {**same, "method": name, "seed": seed, "score": score + seed}
            for name, score in scores.items()
            for seed in (0, 1)
        ]

    images = rows("A, 4 bits", "top-1 (%)", **{"fp32": 80.0, "octav, mph": 79.8, "max scaling": 79.0})
    text = rows("B, 4 bits", "perplexity", **{"fp32": 9.0, "octav, mph": 9.5, "max scaling": 9.4})
    claims = quantization_claims([*images, *text, {**images[0], "seed": 7, "score": 0.0}])
    assert [(claim.topic[-1], claim.is_met) for claim in claims] == [("A", True), ("A", True), ("B", False)]
    assert claims[0].measured.startswith("+0.20 ± 0.00 points")
    assert claims[2].measured.startswith("+0.10")
    assert "4-bit" not in quantization_section(images).title
    _check_tags(quantization_section([*images, *text]).body)


def test_pruning_claims_need_ten_times_and_the_lead() -> None:
    def rows(method: str, *losses: float) -> list[dict[str, Any]]:
        same = {"what": "prune", "task": "t", "method": method, "seed": 0}
        return [
            {**same, "level": level, "density": 1 / 2**level, "accuracy": 90 - loss, "reduction": 4.0 * 2**level}
            for level, loss in enumerate(losses)
        ]

    dense = rows("dense", 0.0, 0.0, 0.0)[1:]
    spatial, winograd = rows("spatial", 0.0, 2.0, 9.0), rows("winograd", 0.0, 0.2, 2.0)
    (met,) = sparse_claims([*dense, *spatial, *winograd, *rows("winograd-relu", 0.0, 0.0, 0.1)])
    (missed,) = sparse_claims([*dense, *spatial, *winograd, *rows("winograd-relu", 0.0, 0.9, 1.0)])
    assert met.is_met
    assert met.measured.endswith("winograd-relu > 16.0x")
    assert not missed.is_met
    _check_tags(pruning_section([*dense, *spatial, *winograd, *rows("winograd-relu", 0, 0, 0)]).body)


def test_claims_of_other_files_fail_when_their_rows_do() -> None:
    def load(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    scale, hardware = load("scale"), load("hardware")
    scale["validation"] = [{"error": 0.1}]
    assert scale_claims(scale)[0].is_met
    scale["validation"] += [{"error": -0.2}]
    assert not scale_claims(scale)[0].is_met
    assert all(claim.is_met for claim in hardware_claims(hardware))
    for layer in hardware["published"]["tables"]["EIE, Table IV (us), random patterns"]:
        layer["actual_off"] = 0.2
    assert not hardware_claims(hardware)[0].is_met
    plain = [{"ranks": "4", "loss": loss} for loss in (1.0, 2.0)]
    lost = {"restarts": 9, "ranks": 1, "checkpoints_lost": 1, "weights_bitwise_equal": True}
    elastic, restarts = robustness_claims([*plain, {"ranks": "4 -> 2 -> 4", "loss": 2.5}], [lost], [])
    assert not elastic.is_met
    assert not restarts.is_met
    assert video_claims(load("video_catdet"), [])[0].is_met
    assert not video_claims([{**row, "ad_official": -len(row["name"])} for row in load("video_catdet")], [])[0].is_met
    assert satin_claims([]) == []


def test_accuracy_table_names_every_method() -> None:
    text = accuracy_markdown(_rows())
    for title in (METHODS["dense"].title, METHODS["dgc"].title, METHODS["drop"].title):
        assert title in text
    assert "diverged" in text
    assert "+1.00" in text


def test_line_plot_puts_points_where_they_belong() -> None:
    svg = line_plot("t", Axis("x", is_log=True), Axis("y"), [Series("a<b", [(1, 0), (10, 1), (100, 2), (-1, 1)])])
    xs = [float(x) for x in re.findall(r'<circle class="c0" cx="([\d.]+)"', svg)]
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert len(xs) == 3  # a logarithm of -1 has no place
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys == sorted(ys, reverse=True)
    assert "a&lt;b" in svg
    _check_tags(svg)
    with pytest.raises(ValueError, match="nothing to draw in 't'"):
        line_plot("t", Axis("x", is_log=True), Axis("y"), [Series("a", [(0, 1)])])


def test_dot_plot_leaves_out_what_has_no_mean() -> None:
    rows = [("one", 0.5, 0.1, [0.4, 0.6]), ("two", -0.2, math.nan, [-0.2]), ("three", math.nan, math.nan, [])]
    svg = dot_plot("t", Axis("loss"), rows, limit=0.3)
    _check_tags(svg)
    assert "one" in svg
    assert "three" not in svg
    assert 'class="limit"' in svg
    assert 'class="limit"' not in dot_plot("t", Axis("loss"), rows, limit=None)
    with pytest.raises(ValueError, match="no row has a mean"):
        dot_plot("t", Axis("loss"), rows[2:], limit=0.3)


def test_inline_marks_and_escapes() -> None:
    assert inline("a < `b < c` [d](e.md) f") == 'a &lt; <code>b &lt; c</code> <a href="e.md">d</a> f'
    assert '<td class="n">+1.5</td><td>word</td>' in table(["x", "y"], [["+1.5", "word"]])


def test_markdown_of_the_benchmarks_becomes_html() -> None:
    html = to_html(
        "# T\n\ntext\nmore\n\n## U\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n- one\n- two\n\n![p](p.png)\n",
        image_folder="f",
    )
    assert "<h1>" not in html
    assert "<h3>U</h3>" in html
    assert "<p>text more</p>" in html
    assert html.count("<tr>") == 2
    assert html.count("<li>") == 2
    assert 'src="f/p.png"' in html


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return report.render(RESULTS)


def test_page_is_well_formed_and_its_links_lead_somewhere(rendered: dict[str, str]) -> None:
    parsed = _check_tags(rendered["evidence.html"])
    own = {
        "summary",
        "claims",
        "accuracy",
        "steps",
        "ablation",
        "wire",
        "bandwidth",
        "scale",
        "quantization",
        "pruning",
    }
    assert own | {"provenance"} <= parsed.ids
    assert len(parsed.ids) == len(parsed.all_ids)
    assert parsed.count["svg"] >= 3
    assert parsed.count["script"] == 0
    for target in parsed.targets:
        if target.startswith("#"):
            assert target[1:] in parsed.ids
        elif not target.startswith(("http", "data:")):
            assert (ROOT / "docs" / target).exists(), target


def test_page_shows_every_results_file(rendered: dict[str, str]) -> None:
    for path in RESULTS.glob("*.json"):
        assert f"{path.name}</a>" in rendered["evidence.html"]


def test_claims_and_accuracy_are_those_of_the_results(rendered: dict[str, str]) -> None:
    assert (ROOT / "docs" / "evidence.md").read_text() == rendered["evidence.md"], "run python -m benchmarks.report"
    stored = (ROOT / "docs" / "evidence.html").read_text()
    for anchor in (
        "claims",
        "accuracy",
        "steps",
        "ablation",
        "quantization",
        "pruning",
    ):  # other sections may wait for the next report
        assert _section(stored, anchor) == _section(rendered["evidence.html"], anchor), (
            "run python -m benchmarks.report"
        )
    rows = json.loads((RESULTS / "accuracy.json").read_text())
    assert (RESULTS / "accuracy.md").read_text() == accuracy_markdown(rows), "run python -m benchmarks.accuracy"


def _section(page: str, anchor: str) -> str:
    return page.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def test_rows_come_from_the_recipes() -> None:
    for row in json.loads((RESULTS / "accuracy.json").read_text()):
        task, method, seed = row["name"].split("/")
        if task != "fashion-resnet8":  # its first rows are older than the recipes
            assert row["command"] == Run(task, method, int(seed)).command


class _Parsed(HTMLParser):
    """Checks that tags nest, and gathers ids, counts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all_ids: list[str] = []
        self.targets: list[str] = []
        self.count: dict[str, int] = {"svg": 0, "script": 0}

    @property
    def ids(self) -> set[str]:
        return set(self.all_ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.all_ids.append(str(value))
            elif name in ("href", "src"):
                self.targets.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"


def _check_tags(text: str) -> _Parsed:
    parsed = _Parsed()
    parsed.feed(text)
    parsed.close()
    assert not parsed.open
    return parsed
