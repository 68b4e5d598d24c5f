"""VS-Quant: published designs, the fits between them, and the gating that rounded scale products allow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp import hwmodel
from dgcomp.hwmodel import vsquant
from dgcomp.hwmodel.operation import Operation, Precision
from dgcomp.hwmodel.vsquant import parse_design, relative_area, relative_energy

# Labelled Pareto points as each figure shows them: normalised energy, performance per area. Figures 4, 5 and 6.
LABELLED = [
    ("4/6/4/-", 0.573, 1.572),
    ("4/4/4/6", 0.761, 1.587),
    ("4/3/4/6", 0.72, 1.634),
    ("6/3/-/4", 0.552, 1.351),
    ("6/6/-/-", 0.764, 1.284),
    ("6/4/-/6", 1.079, 1.307),
    ("6/8/8/-", 0.980, 1.133),
    ("6/8/6/-", 0.986, 1.137),
    ("8/8/-/-", 1.0, 1.0),
    ("4/8/6/10", 1.346, 1.347),
    ("6/8/-/10", 1.220, 1.181),
    ("4/8/4/10", 1.225, 1.401),
    ("3/8/6/10", 1.189, 1.556),
    ("3/8/4/10", 1.042, 1.607),
    ("4/8/-/10", 0.989, 1.502),
    ("6/8/-/-", 0.823, 1.229),
    ("4/8/6/10", 1.346, 1.346),
    ("6/8/-/10", 1.222, 1.180),
    ("6/8/-/-", 0.822, 1.228),
    ("3/8/4/10", 1.044, 1.608),  # printed as 6/8/10/8
    ("3/6/6/10", 1.00, 1.65),
    ("4/8/-/10", 0.990, 1.501),
    ("4/8/-/8", 0.988, 1.515),
    ("3/6/4/10", 1.051, 1.703),
]
ROUNDED = [  # Figure 3: energy with products of 4 bits, 6 bits, full width
    ("4/4/4/4", 0.365, 0.425, 0.644),
    ("6/6/4/4", 0.629, 0.741, 1.043),
    ("6/8/8/-", 0.799, 0.825, 0.980),
    ("8/8/6/-", 0.859, 1.040, 1.043),
]


@pytest.mark.parametrize(("design", "energy", "performance_per_area"), LABELLED)
def test_labelled_designs(design: str, energy: float, performance_per_area: float) -> None:
    precision = parse_design(design)
    assert relative_energy(precision) == pytest.approx(energy, rel=0.02)
    assert 1 / relative_area(precision) == pytest.approx(performance_per_area, rel=0.03)


@pytest.mark.parametrize(("design", "bits_4", "bits_6", "full"), ROUNDED)
def test_rounded_scale_products(design: str, bits_4: float, bits_6: float, full: float) -> None:
    precision = parse_design(design)
    energies = [relative_energy(precision, bits) for bits in (4, 6, None)]
    assert energies == pytest.approx([bits_4, bits_6, full], rel=0.02)


def test_abstract_37_percent_area_24_percent_energy() -> None:
    cost, baseline = (
        hwmodel.VSQuantPE(design).gemm(parse_design(design), 64, 64, 64) for design in ("4/4/4/6", "8/8/-/-")
    )
    assert 1 - cost.area_mm2 / baseline.area_mm2 == pytest.approx(0.37, abs=0.005)
    assert 1 - cost.joules / baseline.joules == pytest.approx(0.24, abs=0.005)


def test_datapath_holds_the_largest_values() -> None:
    widths = vsquant.datapath_bits(parse_design("4/4/4/4"))
    assert widths == {"product": 8, "dot_product": 12, "scale_product": 8, "partial_sum": 20}
    # Narrow-range operands of magnitude 7 and scales of 15, sixteen times, fit with their sign.
    assert 2 ** (widths["dot_product"] - 1) > 16 * 7 * 7
    assert 2 ** (widths["partial_sum"] - 1) > 16 * 7 * 7 * 15 * 15
    assert vsquant.datapath_bits(parse_design("4/4/4/4"), 6)["partial_sum"] == 18
    assert vsquant.datapath_bits(parse_design("8/8/-/-"))["partial_sum"] == 20


def test_baseline_is_magnet() -> None:
    chip = hwmodel.VSQuantPE("8/8/-/-")
    cost = chip.gemm(parse_design("8/8/-/-"), 256, 1024, 256)
    operations = 2 * 256 * 1024 * 256
    assert cost.joules / operations == pytest.approx(69e-15, rel=1e-6)
    assert operations / cost.seconds / cost.area_mm2 == pytest.approx(2.1e12, rel=1e-6)
    assert operations / cost.joules == pytest.approx(14.5e12, rel=0.01)


def test_fits_predict_designs_left_out() -> None:
    """What the docstring says of designs that were not published: leave one out, fit the rest, predict it."""
    texts = [text for text in vsquant.PUBLISHED_ENERGY if text != vsquant.ENERGY_OUTLIER]
    features = np.array([vsquant.energy_features(parse_design(text)) for text in texts])
    logs = np.log([vsquant.PUBLISHED_ENERGY[text] for text in texts])
    energy = _left_out(features, logs)
    assert np.sqrt(np.mean(energy**2)) < 0.065
    assert np.abs(energy).max() < 0.13
    values = np.array(list(vsquant.PUBLISHED_AREA.values()))
    features = np.array([vsquant.area_features(parse_design(text)) for text in vsquant.PUBLISHED_AREA])
    area = _left_out(features / values[:, None], np.ones(len(values)))
    assert np.sqrt(np.mean(area**2)) < 0.01
    assert np.abs(area).max() < 0.025


def _left_out(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    errors = []
    for i in range(len(values)):
        rest = np.arange(len(values)) != i
        fit = np.linalg.lstsq(features[rest], values[rest], rcond=None)[0]
        errors.append(features[i] @ fit - values[i])
    return np.array(errors)


bits = st.integers(3, 8)
scale = st.one_of(st.none(), st.integers(3, 10))


@settings(deadline=None, max_examples=100)
@given(bits, bits, scale, scale)
def test_any_design_has_a_positive_price(w: int, a: int, ws: int | None, as_: int | None) -> None:
    precision = Precision(w, a, ws, as_)
    assert parse_design(str(precision)) == precision
    assert 0.3 < relative_energy(precision) < 2.5
    assert 0.4 < relative_area(precision) < 1.3


def test_smooth_law_grows_with_bits() -> None:
    assert (vsquant.fit_area()[1:] > 0).all()
    log_product, scale_bits = vsquant.fit_energy()[1:3]
    assert log_product > 0
    assert scale_bits > 0


def test_padding_to_whole_vectors_is_paid() -> None:
    chip = hwmodel.VSQuantPE("4/4/4/4")
    whole, ragged = (chip.gemm(parse_design("4/4/4/4"), 16, inner, 16) for inner in (32, 17))
    assert (ragged.cycles, ragged.joules) == (whole.cycles, whole.joules)
    assert ragged.breakdown["padding_multiplies_count"] == 15 * 256


def test_convolutions_pad_at_every_kernel_position() -> None:
    chip = hwmodel.VSQuantPE("4/4/4/4")
    first_layer = Operation("conv", "conv", "forward", 16, 27, 100, channels=3)
    cost = chip.price(first_layer)
    assert cost is not None
    assert cost.breakdown["vector_products_count"] == 16 * 9 * 100
    assert cost.breakdown["padding_multiplies_count"] == 16 * 9 * 100 * 13


def test_scale_codes_of_the_worked_example() -> None:
    # papers: N = M = V = 4; here vectors have 16, so each group of four is padded with zeros.
    x = torch.tensor(
        [[0.30, -1.20, 0.75, 0.10], [0.02, -0.05, 0.04, 0.01], [2.0, -0.4, 1.1, -1.9], [0.5, 0.5, -0.5, 0.25]]
    )
    row = torch.nn.functional.pad(x, (0, 12)).reshape(1, 64)
    assert vsquant.scale_codes(row, bits=4, scale_bits=4, per_row=True).tolist() == [[9, 0, 15, 4]]
    assert vsquant.scale_codes(torch.zeros(2, 16), 4, 4, per_row=True).tolist() == [[0], [0]]


def test_gated_share_equals_explicit_rounding() -> None:
    weights, activations = torch.randint(0, 16, (6, 5)), torch.randint(0, 64, (7, 5))
    for product_bits in (4, 6, 10):
        products = weights[:, None, :] * activations[None, :, :]
        rounded = torch.floor(products / 2 ** (10 - product_bits) + 0.5)
        share = float((rounded == 0).float().mean())
        assert vsquant.gated_share(weights, activations, 10, product_bits) == pytest.approx(share)


def test_run_measures_gating_on_data() -> None:
    weight, x = torch.randn(32, 64), torch.randn(8, 64) * torch.logspace(-3, 0, 64)
    gated = [
        hwmodel.VSQuantPE("4/4/4/6", product_bits).run(weight, x).breakdown["gated_vector_products_count"]
        for product_bits in (None, 6, 4)
    ]
    assert gated == sorted(gated)
    assert gated[-1] > gated[0]
    assert "gated_vector_products_count" not in hwmodel.VSQuantPE("4/4/-/-").run(weight, x).breakdown


def test_auto_follows_the_operation() -> None:
    operation = Operation("fc", "linear", "forward", 8, 32, 4, precision=parse_design("4/6/4/-"))
    assert hwmodel.VSQuantPE("auto").price(operation) == hwmodel.VSQuantPE("4/6/4/-").price(operation)
    assert hwmodel.VSQuantPE("auto").price(Operation("fc", "linear", "forward", 8, 32, 4)) is None


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match='design must look like "4/4/4/6"'):
        hwmodel.VSQuantPE("4/4")
    with pytest.raises(ValueError, match=r"weight bits must be in \[3, 8\].* got 16"):
        hwmodel.VSQuantPE("16/8/-/-")
    with pytest.raises(ValueError, match=r'scale bits must be "-" or in \[3, 10\]'):
        hwmodel.VSQuantPE("4/8/4/12")
    with pytest.raises(ValueError, match="product_bits must be 4, 6 or None .* got 5"):
        hwmodel.VSQuantPE("4/4/4/4", 5)
    with pytest.raises(ValueError, match="weight must be"):
        hwmodel.VSQuantPE().run(torch.ones(3, 4), torch.ones(2, 5))
