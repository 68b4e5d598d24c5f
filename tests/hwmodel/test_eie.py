"""EIE: the recurrence against a queue-by-queue simulation, and the chip against the paper's tables.

The reference below steps through every cycle of every queue with plain lists, so that nothing of the recurrence is in
it: a mistake in the recurrence's indices cannot hide in both.
"""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp import hwmodel
from dgcomp.hwmodel.eie import NM28, NM45, load_balance, random_layer, simulate
from dgcomp.hwmodel.operation import Operation
from dgcomp.hwmodel.published import EIE_LAYERS, EIE_PLATFORMS
from dgcomp.sparse.eie import EIEMatrix
from tests.conftest import data_file


def cycles_by_queue(entries: np.ndarray, fifo_depth: int) -> int:
    """Cycle by cycle: one broadcast unless a ring is full, one entry per PE, six stages to drain."""
    num_pes, num_columns = entries.shape
    rings: list[deque[tuple[int, int]]] = [deque() for _ in range(num_pes)]  # (column, cycle of its broadcast)
    busy_until = [0] * num_pes
    next_column = cycle = 0
    while next_column < num_columns or any(rings):
        # The room that the broadcast sees is that of the cycle before: a ring of D is full with D - 1 in it.
        if cycle >= 1 and next_column < num_columns and all(len(ring) < fifo_depth - 1 for ring in rings):
            for ring in rings:
                ring.append((next_column, cycle))
            next_column += 1
        for pe, ring in enumerate(rings):
            if ring and ring[0][1] < cycle and busy_until[pe] <= cycle:
                column, _ = ring.popleft()
                busy_until[pe] = cycle + max(1, int(entries[pe, column]))
        cycle += 1
    return max(busy_until) + 6


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 5), st.integers(0, 25), st.integers(2, 12))
def test_recurrence_equals_queues(data: st.DataObject, num_pes: int, columns: int, fifo_depth: int) -> None:
    counts = st.lists(st.integers(0, 6), min_size=num_pes * columns, max_size=num_pes * columns)
    entries = np.array(data.draw(counts), int).reshape(num_pes, columns)
    assert simulate(entries, fifo_depth) == cycles_by_queue(entries, fifo_depth)


@pytest.mark.data
def test_recurrence_equals_queues_on_a_real_layer() -> None:
    """The last convolution of a trained ResNet-20, pruned to a tenth, as products of its patches."""
    with np.load(data_file("models/resnet20-cifar10.npz")) as file:
        weight = torch.from_numpy(file[next(name for name in file if "layer3.2.conv2" in name)]).reshape(64, -1)
    weight = weight * (weight.abs() > weight.abs().quantile(0.9))
    x = torch.randn(weight.shape[1]).relu()
    for num_pes in (4, 16, 64):
        entries = EIEMatrix.from_dense(weight, num_pes=num_pes).entries_per_pe(x)
        for fifo_depth in (2, 4, 8, 64):
            assert simulate(entries, fifo_depth) == cycles_by_queue(entries, fifo_depth)


def test_recurrence_by_hand() -> None:
    assert simulate(np.zeros((4, 0), int)) == 6  # nothing to do but drain
    # Broadcast in cycle 1, start in 2, three entries end in 5: 5 + 6.
    assert simulate(np.array([[3]])) == 11
    # An empty column still takes a PE one cycle, so it costs as much as one entry.
    assert simulate(np.array([[0, 0, 0]])) == simulate(np.array([[1, 1, 1]])) == 5 + 6
    # The slowest PE sets the time.
    assert simulate(np.array([[5, 5], [1, 1]])) == 12 + 6


def test_more_depth_never_hurts() -> None:
    entries = np.random.default_rng(0).poisson(0.8, (16, 300))
    cycles = [simulate(entries, depth) for depth in (2, 3, 5, 9, 17, 33, 400)]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[-1] == simulate(entries, 10_000)


def test_spmat_reads_by_hand() -> None:
    # One PE; columns of 3, 6, 0, 9 entries; lines of 8: entries 0-2 and 3-8 and 9-17.
    matrix = torch.zeros(9, 4)
    for column, count in enumerate((3, 6, 0, 9)):
        matrix[:count, column] = 1
    chip = hwmodel.EIE(num_pes=1)
    reads = {active: chip.run(matrix, torch.tensor(active)).breakdown["spmat_reads_count"] for active in _ACTIVE}
    assert reads == dict(zip(_ACTIVE, (1, 2, 0, 3, 3), strict=True))


_ACTIVE = (
    (1, 0, 0, 0),  # line 0
    (1, 1, 0, 0),  # line 0 is kept from column 0 to column 1, then line 1
    (0, 0, 1, 0),  # an empty column reads no weights
    (1, 1, 1, 1),  # lines 0, 1, 2, and line 1 kept over the empty column
    (1, 0, 0, 1),  # line 0, then 1 and 2
)


def test_dense_pattern_and_compressed_matrix_agree() -> None:
    weight = torch.randn(700, 60) * (torch.rand(700, 60) < 0.04)  # long columns, so padding exists
    x = torch.randn(60).relu()
    chip = hwmodel.EIE(num_pes=8)
    compressed = EIEMatrix.from_dense(weight, num_pes=8)
    from_matrix, from_pattern = chip.run(compressed, x), chip.run(weight, x)
    assert from_matrix == from_pattern
    assert from_matrix.cycles == simulate(compressed.entries_per_pe(x))
    assert np.array_equal(hwmodel.eie.entries(weight, x, num_pes=8), compressed.entries_per_pe(x))
    assert from_matrix.breakdown["multiplies_count"] == float((weight[:, x != 0] != 0).sum())
    assert from_matrix.breakdown["entries_count"] > from_matrix.breakdown["multiplies_count"]


def test_bias_is_one_more_active_column() -> None:
    weight, bias, x = torch.eye(8), torch.ones(8), torch.zeros(8)
    chip = hwmodel.EIE(num_pes=4)
    assert chip.run(EIEMatrix.from_dense(weight, bias, num_pes=4), x).breakdown["multiplies_count"] == 8
    assert chip.run(EIEMatrix.from_dense(weight, num_pes=4), x).breakdown["multiplies_count"] == 0


def test_batch_is_the_sum_of_its_vectors() -> None:
    weight, x = torch.randn(64, 32).relu(), torch.randn(3, 32).relu()
    chip = hwmodel.EIE(num_pes=16)
    assert chip.run(weight, x).cycles == sum(chip.run(weight, vector).cycles for vector in x)


def test_table_2_and_table_5_totals() -> None:
    chip = hwmodel.EIE()
    assert chip.num_lnzd_nodes == 21
    assert sum(NM45.milliwatts.values()) == pytest.approx(9.157, rel=2e-4)
    assert sum(NM45.square_um.values()) == pytest.approx(638_024, rel=1e-5)
    assert chip.watts == pytest.approx(0.5865, abs=1e-4)
    assert round(chip.area_mm2, 1) == EIE_PLATFORMS["EIE 64 PE, 45 nm"].area_mm2
    large, published = hwmodel.EIE(num_pes=256, process=NM28), EIE_PLATFORMS["EIE 256 PE, 28 nm"]
    assert large.watts == pytest.approx(published.watts, rel=0.005)
    assert large.area_mm2 == pytest.approx(published.area_mm2, rel=0.005)


@pytest.fixture(scope="module")
def table_4() -> dict[str, hwmodel.Cost]:
    """The nine layers from random patterns at Table III's densities, except the 100 M weights of VGG-6."""
    costs = {}
    for name, layer in EIE_LAYERS.items():
        weight, x = random_layer(layer.outputs, layer.inputs, layer.weight_density, layer.activation_density, seed=0)
        costs[name] = hwmodel.EIE().run(weight, x)
    return costs


def test_table_4(table_4: dict[str, hwmodel.Cost]) -> None:
    # Alex-8 and VGG-6 are not random: the published image and the imbalance of pruned VGG columns explain them.
    for name in EIE_LAYERS.keys() - {"Alex-8", "VGG-6"}:
        layer, cost = EIE_LAYERS[name], table_4[name]
        theoretical_us = cost.breakdown["theoretical_cycles"] / 800
        assert cost.seconds * 1e6 == pytest.approx(layer.actual_us, rel=0.11), name
        assert theoretical_us == pytest.approx(layer.theoretical_us, rel=0.08), name


def test_table_5_throughput_and_energy(table_4: dict[str, hwmodel.Cost]) -> None:
    published = EIE_PLATFORMS["EIE 64 PE, 45 nm"]
    alex_7 = table_4["Alex-7"]
    assert 1 / alex_7.seconds == pytest.approx(published.frames_per_s, rel=0.11)
    assert 1 / alex_7.joules == pytest.approx(published.frames_per_s / published.watts, rel=0.11)
    speedup = EIE_LAYERS["Alex-7"].cpu_us[0] * 1e-6 / alex_7.seconds
    assert speedup == pytest.approx(507, rel=0.11)  # Figure 6


def test_vgg_6_exceeds_the_chip_and_says_so(table_4: dict[str, hwmodel.Cost]) -> None:
    notes = "\n".join(table_4["VGG-6"].notes)
    assert "16-bit pointers reach 65536 entries" in notes
    assert "25089 pointers a PE, its SRAM holds 16384" in notes
    assert "25088 inputs in 7 batches of 4096" in notes
    assert table_4["VGG-7"].notes == ()


# papers' curve, recomputed from random patterns: load balance by the activations a queue holds (1, 2, 4, 8, 16, 32).
QUEUE_CURVES = {
    "Alex-6": (0.82, 0.90, 0.94, 0.97, 0.98, 0.99),
    "Alex-8": (0.69, 0.81, 0.88, 0.93, 0.95, 0.96),
    "NT-We": (0.33, 0.45, 0.58, 0.64, 0.67, 0.68),
    "NT-Wd": (0.93, 0.96, 0.97, 0.97, 0.97, 0.97),
}


@pytest.mark.parametrize("name", QUEUE_CURVES)
def test_queue_depth_curve(name: str) -> None:
    layer = EIE_LAYERS[name]
    weight, x = random_layer(layer.outputs, layer.inputs, layer.weight_density, layer.activation_density, seed=0)
    entries = hwmodel.eie.entries(weight, x)
    curve = [load_balance(entries, held + 1) for held in (1, 2, 4, 8, 16, 32)]
    assert curve == pytest.approx(QUEUE_CURVES[name], abs=0.02)


# real work / entries, load balance, speedup over one PE
SCALING = {
    ("Alex-7", 16): (0.79, 1.00, 16.2),
    ("Alex-7", 64): (0.84, 0.97, 66.5),
    ("Alex-7", 256): (1.0, 0.73, 241),
    ("VGG-7", 64): (0.64, 0.91, 77.8),
    ("VGG-7", 256): (1.0, 0.49, 262),
    ("NT-We", 64): (1.0, 0.63, 49.6),
    ("NT-We", 256): (1.0, 0.22, 69.6),
}


def test_scaling_with_processing_elements() -> None:
    for name in ("Alex-7", "VGG-7", "NT-We"):
        layer = EIE_LAYERS[name]
        weight, x = random_layer(layer.outputs, layer.inputs, layer.weight_density, layer.activation_density, seed=0)
        one = hwmodel.EIE(num_pes=1).run(weight, x)
        for num_pes in (16, 64, 256):
            if (name, num_pes) not in SCALING:
                continue
            cost = hwmodel.EIE(num_pes=num_pes).run(weight, x)
            real_work, balance, speedup = SCALING[name, num_pes]
            assert cost.breakdown["multiplies_count"] / cost.breakdown["entries_count"] == pytest.approx(
                real_work, abs=0.02
            )
            assert cost.breakdown["theoretical_cycles"] / cost.cycles == pytest.approx(balance, abs=0.02)
            assert one.cycles / cost.cycles == pytest.approx(speedup, rel=0.03)


def test_price_scales_a_sample_and_says_its_error() -> None:
    weight, x = torch.randn(64, 32) * (torch.rand(64, 32) < 0.2), torch.randn(8, 32).relu()
    chip = hwmodel.EIE(num_pes=16)
    operation = Operation("fc", "linear", "forward", 64, 32, 80, a=weight, x=x, a_is_weight=True)
    cost = chip.price(operation)
    assert cost is not None
    assert cost.cycles == pytest.approx(10 * chip.run(weight, x).cycles)
    assert "from 8 of 80 vectors, standard error" in cost.notes[-1]
    assert chip.price(Operation("fc", "linear", "weight_grad", 64, 32, 80, a=weight, x=x)) is None


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"fifo_depth must be at least 2 .* got 1"):
        simulate(np.ones((2, 2), int), 1)
    with pytest.raises(ValueError, match=r"entries must be integers \[num_pes, active columns\], got float64"):
        simulate(np.ones((2, 2)))
    with pytest.raises(ValueError, match="entries must not be negative, got -1"):
        simulate(np.array([[1, -1]]))
    with pytest.raises(ValueError, match="num_pes must be at least 1, got 0"):
        hwmodel.EIE(num_pes=0)
    with pytest.raises(ValueError, match="sram_bits must hold an entry of 8 bits, got 4"):
        hwmodel.EIE(sram_bits=4)
    with pytest.raises(ValueError, match=r"activation must have 4 elements .* got shape \(5,\)"):
        hwmodel.EIE().run(torch.ones(2, 4), torch.ones(5))
    with pytest.raises(ValueError, match="matrix must be compressed for 64 PEs .* got 8"):
        hwmodel.EIE().run(EIEMatrix.from_dense(torch.eye(4), num_pes=8), torch.ones(4))
    with pytest.raises(ValueError, match=r"matrix must be two-dimensional, got shape \(4,\)"):
        hwmodel.EIE().run(torch.ones(4), torch.ones(4))
