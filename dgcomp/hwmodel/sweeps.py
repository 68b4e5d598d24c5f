"""Design sweeps: one setting of an accelerator over many values, and EIE's published figures and tables again.

Every function returns rows (dicts with units in their keys) that print, plot and dump as JSON.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.eie import EIE, entries, load_balance, random_layer
from dgcomp.hwmodel.operation import Accelerator, Operation
from dgcomp.hwmodel.published import EIE_LAYERS, EIE_PLATFORMS, EIELayer
from dgcomp.hwmodel.sparch import OuterSPACE, SpArch, design_points

__all__ = [
    "compare",
    "eie_table_4",
    "layer_operation",
    "queue_depths",
    "scaling",
    "spgemm_points",
    "sram_widths",
    "sweep",
]

Row = dict[str, Any]

QUEUE_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SRAM_WIDTHS = (32, 64, 128, 256, 512)
NUM_PES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def layer_operation(
    rows: int, inner: int, weight_density: float, activation_density: float, *, columns: int = 1, seed: int = 0
) -> Operation:
    """A random fully connected layer [rows, inner] and `columns` input vectors."""
    weight, _ = random_layer(rows, inner, weight_density, activation_density, seed)
    x = torch.stack([random_layer(1, inner, 0, activation_density, seed + i)[1] for i in range(columns)])
    return Operation(
        "layer",
        "linear",
        "forward",
        rows,
        inner,
        columns,
        a=weight,
        x=x,
        a_is_weight=True,
        a_density=weight_density,
        x_density=activation_density,
    )


def compare(accelerators: Sequence[Accelerator], operation: Operation) -> list[Row]:
    """Cost of one operation on each accelerator; `priced` is False where a model does not cover it."""
    rows = []
    for accelerator in accelerators:
        cost = accelerator.price(operation)
        rows.append({"accelerator": accelerator.name, "priced": cost is not None, **(_flat(cost) if cost else {})})
    return rows


def sweep(accelerator: Any, setting: str, values: Sequence[Any], operation: Operation) -> list[Row]:
    """Cost of one operation with `setting` of a (dataclass) accelerator at each of `values`.

    Raises ValueError for a setting that the accelerator does not have.
    """
    if setting not in accelerator.__dataclass_fields__:
        known = ", ".join(accelerator.__dataclass_fields__)
        raise ValueError(f"setting must be one of {known}, got {setting!r}")
    rows = []
    for value in values:
        cost = replace(accelerator, **{setting: value}).price(operation)
        rows.append({setting: value, "priced": cost is not None, **(_flat(cost) if cost else {})})
    return rows


def _flat(cost: Cost) -> Row:
    return {
        "cycles": cost.cycles,
        "seconds": cost.seconds,
        "joules": cost.joules,
        "area_mm2": cost.area_mm2,
        **cost.breakdown,
        "notes": list(cost.notes),
    }


# --- EIE's tables and figures -----------------------------------------------------------------------------------


def published_layer(layer: EIELayer, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random pattern and activation with the densities of Table III."""
    return random_layer(layer.outputs, layer.inputs, layer.weight_density, layer.activation_density, seed)


def eie_table_4(layers: Sequence[str] = tuple(EIE_LAYERS)) -> list[Row]:
    """Microseconds of Table IV: published, and modelled from random patterns at Table III's densities."""
    rows = []
    cpu_watts = EIE_PLATFORMS["Core i7-5930K"].watts
    for name in layers:
        published = EIE_LAYERS[name]
        cost = EIE().run(*published_layer(published))
        theoretical_us = cost.breakdown["theoretical_cycles"] / (EIE().process.clock_ghz * 1e3)
        rows.append(
            {
                "layer": name,
                "theoretical_us": theoretical_us,
                "published_theoretical_us": published.theoretical_us,
                "actual_us": cost.seconds * 1e6,
                "published_actual_us": published.actual_us,
                "microjoules": cost.joules * 1e6,
                "speedup_over_cpu_dense": published.cpu_us[0] * 1e-6 / cost.seconds,
                "speedup_over_gpu_dense": published.gpu_us[0] * 1e-6 / cost.seconds,
                "speedup_over_mobile_gpu_dense": published.mobile_gpu_us[0] * 1e-6 / cost.seconds,
                "energy_gain_over_cpu_dense": published.cpu_us[0] * 1e-6 * cpu_watts / cost.joules,
                "notes": list(cost.notes),
            }
        )
    return rows


def queue_depths(name: str, held: Sequence[int] = QUEUE_DEPTHS) -> list[Row]:
    """Figure 8: load balance by the activations that a queue holds (a ring of D holds D - 1)."""
    counts = entries(*_layer(name))
    return [{"layer": name, "held": depth, "load_balance": load_balance(counts, depth + 1)} for depth in held]


def sram_widths(name: str, widths: Sequence[int] = SRAM_WIDTHS) -> list[Row]:
    """Figure 9: reads of the weight memories by their width."""
    rows = []
    for width in widths:
        cost = EIE(sram_bits=width).run(*_layer(name))
        rows.append({"layer": name, "sram_bits": width, "reads": cost.breakdown["spmat_reads_count"]})
    return rows


def scaling(name: str, num_pes: Sequence[int] = NUM_PES) -> list[Row]:
    """Figures 11 to 13: speed-up over one PE, real work among all entries, and load balance, by PEs."""
    rows: list[Row] = []
    one = EIE(num_pes=1).run(*_layer(name)).cycles
    for count in num_pes:
        cost = EIE(num_pes=count).run(*_layer(name))
        real = cost.breakdown["multiplies_count"] / cost.breakdown["entries_count"]
        rows.append(
            {
                "layer": name,
                "num_pes": count,
                "speedup": one / cost.cycles,
                "real_work": real,
                "load_balance": _balance(cost),
            }
        )
    return rows


_layers: dict[str, tuple[Tensor, Tensor]] = {}


def _layer(name: str) -> tuple[Tensor, Tensor]:
    """The layer last asked for is kept: a sweep asks for it again and again."""
    if name not in _layers:
        _layers.clear()
        _layers[name] = published_layer(EIE_LAYERS[name])
    return _layers[name]


def _balance(cost: Cost) -> float:
    return cost.breakdown["theoretical_cycles"] / cost.cycles


def spgemm_points(a: Any, b: Any) -> list[Row]:
    """OuterSPACE and the design points of SpArch on one product: megabytes by kind, microseconds, microjoules."""
    rows = []
    chips: dict[str, OuterSPACE | SpArch] = {"outerspace": OuterSPACE(), **design_points()}
    for name, chip in chips.items():
        cost = chip.run(a, b)
        traffic = {f"{kind}_megabytes": value / 1e6 for kind, value in cost.part("bytes").items()}
        rows.append(
            {
                "design": name,
                "megabytes": sum(traffic.values()),
                "microseconds": cost.seconds * 1e6,
                "microjoules": cost.joules * 1e6,
                "multiplies": cost.breakdown["multiplies_count"],
                **traffic,
            }
        )
    return rows
