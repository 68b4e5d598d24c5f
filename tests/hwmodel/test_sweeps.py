"""Sweeps: the trends that EIE's Figures 8, 9 and 11 to 13 show."""

from math import prod

import pytest

from dgcomp import hwmodel
from dgcomp.hwmodel import sweeps
from dgcomp.hwmodel.published import EIE_LAYERS


def test_figure_8_deeper_queues_balance_better_and_nt_we_worst() -> None:
    curves = {name: [row["load_balance"] for row in sweeps.queue_depths(name)] for name in ("Alex-8", "NT-We")}
    for curve in curves.values():
        assert curve == sorted(curve)
        assert curve[3] - curve[0] > 3 * (curve[-1] - curve[3])  # little to gain past 8
    assert curves["NT-We"][0] < 0.5  # more than half idle
    assert all(a < b for a, b in zip(curves["NT-We"], curves["Alex-8"], strict=True))


def test_figure_9_reads_fall_with_width_and_saturate() -> None:
    rows = sweeps.sram_widths("Alex-7")
    reads = [row["reads"] for row in rows]
    assert reads == sorted(reads, reverse=True)
    assert reads[0] / reads[1] < 2  # half of each wider line is not wanted
    # One read per column and element remains: the column's entries lie together.
    columns = round(0.353 * 4096)
    assert reads[-1] > 0.5 * columns * 64 / 8
    # The published minimum of total energy at 64 bit holds for any read energy of this many pJ + 1 pJ per bit.
    offsets = [offset for offset in range(400) if _cheapest(rows, offset) == 64]
    assert offsets
    assert offsets == list(range(offsets[0], offsets[-1] + 1))


def _cheapest(rows: list[sweeps.Row], offset: float) -> int:
    return min(rows, key=lambda row: row["reads"] * (offset + row["sram_bits"]))["sram_bits"]  # type: ignore[no-any-return]


def test_figures_11_to_13_more_elements() -> None:
    rows = sweeps.scaling("VGG-8", (1, 16, 64, 256))
    assert [row["speedup"] for row in rows] == sorted(row["speedup"] for row in rows)
    assert [row["real_work"] for row in rows] == sorted(row["real_work"] for row in rows)
    assert rows[-1]["load_balance"] < rows[1]["load_balance"]


def test_figures_6_and_7_against_the_cpu() -> None:
    """Geometric means over the layers but the 100 M weights of VGG-6: published values from Table IV."""
    names = [name for name in EIE_LAYERS if name != "VGG-6"]
    rows = sweeps.eie_table_4(names)
    speedup = prod(row["speedup_over_cpu_dense"] for row in rows) ** (1 / 8)
    published = prod(EIE_LAYERS[name].cpu_us[0] / EIE_LAYERS[name].actual_us for name in names) ** (1 / 8)
    assert speedup == pytest.approx(published, rel=0.08)
    energy = prod(row["energy_gain_over_cpu_dense"] for row in rows) ** (1 / 8)
    figure_7 = (34522, 61533, 14826, 76784, 11828, 9485, 10904, 8053)  # VGG-6 left out here too
    assert energy == pytest.approx(prod(figure_7) ** (1 / 8), rel=0.15)


def test_sweep_changes_one_setting() -> None:
    operation = sweeps.layer_operation(64, 48, 0.2, 0.5)
    rows = sweeps.sweep(hwmodel.EIE(), "num_pes", [4, 16], operation)
    assert rows[0]["cycles"] > rows[1]["cycles"]
    with pytest.raises(ValueError, match="setting must be one of num_pes, fifo_depth, .* got 'depth'"):
        sweeps.sweep(hwmodel.EIE(), "depth", [1], operation)


def test_spgemm_points_are_the_ablation() -> None:
    operation = sweeps.layer_operation(80, 80, 0.2, 0.5)
    rows = sweeps.spgemm_points(operation.a, operation.a)
    assert [row["design"] for row in rows] == ["outerspace", "pipelined", "+condense", "+huffman", "+prefetch"]
    assert len({row["multiplies"] for row in rows}) == 1
