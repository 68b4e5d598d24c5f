"""Total cost of ownership: steps to target from curves, seconds from the model, and where they break even."""

import math

import pytest

from benchmarks import ownership
from benchmarks.evidence.tables import Entry
from dgcomp.exchange.model import Link, ring_all_reduce

SHAPES = [(1000, 1000), (1000,)]
WORKLOAD = ownership.Workload(SHAPES, compute_s=0.01, steps_times_workers=8000, compute_watts=300, wait_watts=100)


def _entry(method: str, history: list[float]) -> Entry:
    row = {"value": history[-1], "history": history, "steps": 10 * len(history)}
    return Entry("image", method, (row,), ())


def test_steps_to_the_common_target_are_interpolated() -> None:
    methods = {"dense fp32": _entry("dense", [50.0, 80.0, 90.0]), "DGC": _entry("dgc-int4", [40.0, 70.0, 85.0])}
    assert ownership.steps_to_common_target(methods) == {"dense fp32": pytest.approx(25.0), "DGC": 30.0}
    falling = {"dense fp32": _entry("dense", [9.0, 5.0, 4.0]), "DGC": _entry("dgc-int4", [9.0, 6.0, 5.0])}
    assert ownership.steps_to_common_target(falling) == {"dense fp32": 20.0, "DGC": 30.0}


def test_methods_without_rows_count_like_dense() -> None:
    factors = ownership.steps_factors([])
    assert {found["median"] for found in factors.values()} == {1.0}
    where = {"steps": 30, "metric": "m"}
    rows = [
        {"name": "image/dense/0", "value": 90.0, "history": [50.0, 80.0, 90.0], **where},
        {"name": "image/dgc/0", "value": 80.0, "history": [40.0, 70.0, 80.0], **where},
        {"name": "fashion-resnet8/dense/0", "value": 90.0, **where},  # an old row, without history
    ]
    factors = ownership.steps_factors(rows)
    assert factors["DGC"]["by_task"] == {"image": pytest.approx(1.5)}
    assert factors["PowerSGD"]["by_task"] == {}


def test_dense_exchange_hides_behind_backward_on_a_fast_link() -> None:
    fast, slow = (ownership.dense_step_s(WORKLOAD, 8, rate) for rate in (1000.0, 0.1))
    assert fast == pytest.approx(WORKLOAD.compute_s, rel=0.2)
    link = Link(0.1, WORKLOAD.rtt_ms)
    exchange_s = ring_all_reduce(4.0 * WORKLOAD.numel, 8, link, ownership.HOST).seconds
    assert slow > exchange_s * 0.9
    assert ownership.fp16_step_s(WORKLOAD, 8, 0.1) == pytest.approx(slow / 2, rel=0.2)


def test_trees_save_latency_but_no_bytes() -> None:
    link = Link(10.0, rtt_ms=1.0)
    small, large = (ownership.all_reduce_s(size, 1024, link) for size in (1e3, 1e9))
    assert small == pytest.approx(2 * 10 * (link.one_way_s + ownership.HOST.message_s), rel=0.01)
    assert large == pytest.approx(2 * 1e9 / link.bytes_per_s, rel=0.02)


def test_break_even_is_where_both_take_equally_long() -> None:
    rate = ownership.break_even_gbit_per_s(lambda r: 1.0, lambda r: 0.5 + 4.0 / r)
    assert rate == pytest.approx(8.0)
    assert ownership.break_even_gbit_per_s(lambda r: 2.0, lambda r: 1.0) is None
    assert ownership.break_even_gbit_per_s(lambda r: 1.0, lambda r: 2.0, high=50.0) == 50.0


def test_more_steps_to_target_move_the_break_even_down() -> None:
    equal = dict.fromkeys(ownership.STEPS, 1.0)
    even, worse = (ownership.break_even_table(WORKLOAD, equal | {"DGC": factor})[0] for factor in (1.0, 1.5))
    for peer in ("dense fp32", "fp16"):
        assert worse[peer] < even[peer]
    cells = ownership.cells(WORKLOAD, equal)
    assert len(cells) == len(ownership.STEPS) * len(ownership.WORKERS) * len(ownership.GBIT_PER_S)
    assert all(math.isfinite(cell["hours"]) and cell["kilowatt_hours"] > 0 for cell in cells)
    alone = next(cell for cell in cells if cell["exchange"] == "dense fp32" and cell["gbit_per_s"] == 100)
    joules = 8000 * (300 * 0.01 + 100 * (alone["step_ms"] * 1e-3 - 0.01))
    assert alone["kilowatt_hours"] == pytest.approx(joules / 3.6e6)
