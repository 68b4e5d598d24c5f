"""`python -m dgcomp.hwmodel`: what a layer, a sparse product or a design would cost, from the command line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.hwmodel.network import Network
from dgcomp.hwmodel.operation import Accelerator
from dgcomp.hwmodel.pattern import Pattern
from dgcomp.hwmodel.published import EIE_LAYERS
from dgcomp.hwmodel.registry import parse_accelerator, parse_accelerators
from dgcomp.hwmodel.sweeps import Row, compare, eie_table_4, layer_operation, spgemm_points, sweep

EXAMPLES = """examples:
  python -m dgcomp.hwmodel layer --rows 4096 --inner 4096 --weight-density 0.09 --on eie,vsquant:4/4/4/6,sparch
  python -m dgcomp.hwmodel sweep eie fifo_depth 2 3 5 9 17 33 --layer NT-We --plot queue.png
  python -m dgcomp.hwmodel sweep vsquant design 4/4/4/6 6/8/6/- 8/8/-/- --y joules
  python -m dgcomp.hwmodel spgemm wiki-Vote.mtx
  python -m dgcomp.hwmodel table4

Accelerators are names with settings ("eie:num_pes=256,process=28nm", "sparch:prefetch=false") or .toml files. The cost
of a real training step is what dgcomp.hwmodel.profile prices, see docs/hardware.md.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with a sentence on standard error and status 2 where the input is wrong."""
    options = _parser().parse_args(arguments)
    try:
        rows = options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"dgcomp.hwmodel: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(format_rows(rows, options.columns))
    for note in dict.fromkeys(note for row in rows for note in row.get("notes", ())):
        print(f"note: {note}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dgcomp.hwmodel",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    layer = commands.add_parser("layer", help="one fully connected layer on several accelerators")
    layer.add_argument("--on", default="eie,vsquant:4/4/4/6,sparch", help="accelerators (default: %(default)s)")
    _add_layer(layer)
    layer.set_defaults(run=_run_layer, columns=["accelerator", "priced", "cycles", "seconds", "joules", "area_mm2"])
    sweeping = commands.add_parser("sweep", help="one setting of an accelerator over several values")
    sweeping.add_argument("accelerator", help='name, name:settings or .toml file, such as "eie"')
    sweeping.add_argument("setting", help='setting to change, such as "fifo_depth" or "num_pes"')
    sweeping.add_argument("values", nargs="+", help="its values")
    sweeping.add_argument("--y", default="seconds", help="what to plot and print (default: %(default)s)")
    sweeping.add_argument("--plot", metavar="PNG", help="draw a picture")
    _add_layer(sweeping)
    sweeping.set_defaults(run=_run_sweep, columns=None)
    spgemm = commands.add_parser("spgemm", help="SpArch's design points on a sparse matrix times itself")
    spgemm.add_argument("matrix", help="MatrixMarket file (coordinate)")
    spgemm.set_defaults(run=_run_spgemm, columns=["design", "megabytes", "microseconds", "microjoules", "multiplies"])
    table = commands.add_parser("table4", help="EIE's Table IV, published and modelled")
    table.set_defaults(run=lambda options: eie_table_4(), columns=[*_TABLE_4])
    for command in (layer, sweeping, spgemm, table):
        command.add_argument("--json", metavar="FILE", help="also write all numbers as JSON")
    return parser


_TABLE_4 = ("layer", "theoretical_us", "published_theoretical_us", "actual_us", "published_actual_us", "microjoules")


def _add_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", choices=list(EIE_LAYERS), help="a layer of EIE's Table III instead of the four below"
    )
    parser.add_argument("--rows", type=int, default=4096, help="outputs (default: %(default)s)")
    parser.add_argument("--inner", type=int, default=4096, help="inputs (default: %(default)s)")
    parser.add_argument("--weight-density", type=float, default=0.1, help="share of nonzeros (default: %(default)s)")
    parser.add_argument("--activation-density", type=float, default=0.35, help="same (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=1, dest="num_columns", help="input vectors (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random pattern (default: %(default)s)")


def _operation(options: argparse.Namespace) -> Any:
    if options.layer:
        layer = EIE_LAYERS[options.layer]
        sizes = layer.outputs, layer.inputs, layer.weight_density, layer.activation_density
    else:
        sizes = options.rows, options.inner, options.weight_density, options.activation_density
    for name, density in (("weight-density", sizes[2]), ("activation-density", sizes[3])):
        if not 0 <= density <= 1:
            raise ValueError(f"--{name} must lie in [0, 1], got {density}")
    if min(*sizes[:2], options.num_columns) < 1:
        raise ValueError(f"--rows, --inner and --columns must be at least 1, got {sizes[:2]}, {options.num_columns}")
    return layer_operation(*sizes, columns=options.num_columns, seed=options.seed)


def _run_layer(options: argparse.Namespace) -> list[Row]:
    chips: list[Accelerator] = [chip for chip in parse_accelerators(options.on) if not isinstance(chip, Network)]
    return compare(chips, _operation(options))


def _run_sweep(options: argparse.Namespace) -> list[Row]:
    chip = parse_accelerator(options.accelerator)
    values = [json.loads(value) if _is_number(value) else value for value in options.values]
    rows = sweep(chip, options.setting, values, _operation(options))
    missing = [row for row in rows if options.y not in row]
    if missing:
        known = ", ".join(key for key in rows[0] if key not in (options.setting, "notes", "priced"))
        raise ValueError(f"--y must be one of {known}, got {options.y!r}")
    options.columns = list(dict.fromkeys([options.setting, options.y, "cycles", "joules"]))
    if options.plot:
        _plot(rows, options.setting, options.y, options.plot)
    return rows


def _run_spgemm(options: argparse.Namespace) -> list[Row]:
    pattern = read_matrix_market(Path(options.matrix))
    return spgemm_points(pattern, pattern)


def read_matrix_market(path: Path) -> Pattern:
    """Pattern of a coordinate MatrixMarket file; symmetric ones are completed. ValueError for other files."""
    with path.open() as file:
        header = file.readline().lower().split()
        if header[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
            raise ValueError(f"{path} must be a coordinate MatrixMarket file, got the header {' '.join(header)!r}")
        numbers = np.loadtxt(file, comments="%", usecols=(0, 1), dtype=np.int64, ndmin=2)
    (rows, columns), entries = numbers[0], numbers[1:] - 1
    if header[-1] != "general":
        entries = np.vstack([entries, entries[:, ::-1]])
    return Pattern.from_coordinates(int(rows), int(columns), entries[:, 0], entries[:, 1])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plot(rows: list[Row], x: str, y: str, path: str) -> None:
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--plot needs matplotlib: pip install 'dgcomp[plots]'") from error
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([str(row[x]) for row in rows], [row[y] for row in rows], marker="o")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def format_rows(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as aligned text."""
    cells = [list(columns), *([_text(row.get(column, "-")) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
