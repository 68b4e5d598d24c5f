"""Accelerator cost models: published tables and figures again, the profiler's overhead, and a walk-through picture.

  published: EIE's Tables IV and V, VS-Quant's designs, SpArch's traffic, model beside paper
  figures:   EIE's Figures 8, 9, 11, 12 and 13 -> results/hardware_eie.png
  step:      train ResNet-20 with pruning and 4 bits, priced live -> results/hardware_step.png
  overhead:  time that profiling adds to a ResNet-20 step (needs a quiet machine)

Example: python benchmarks/hardware.py step --steps 100 --accelerators eie,vsquant:auto,sparch,winograd

Each command prints a table, keeps its numbers in results/hardware.json and rewrites results/hardware.md.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the repository need not be installed
import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.hardware_overhead import overhead  # noqa: E402
from benchmarks.store import describe_commit  # noqa: E402
from dgcomp import hwmodel, quant, sparse  # noqa: E402
from dgcomp.hwmodel import sweeps, vsquant  # noqa: E402
from dgcomp.hwmodel.__main__ import format_rows, read_matrix_market  # noqa: E402
from dgcomp.hwmodel.eie import NM28  # noqa: E402
from dgcomp.hwmodel.energy import EIE_TABLE_1, HOROWITZ_2014  # noqa: E402
from dgcomp.hwmodel.published import EIE_LAYERS, EIE_PLATFORMS, EIE_PRECISIONS  # noqa: E402
from dgcomp.hwmodel.winograd import PUBLISHED_GAINS, published_density_product  # noqa: E402
from launch.tasks.image_data import ImageData, load_fashion_mnist, normalize, synthetic_images  # noqa: E402
from launch.tasks.resnet import resnet  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FOUR = "eie,vsquant:auto,sparch,winograd"  # "auto" prices every layer at the bits it trains with


# --- Published tables -------------------------------------------------------------------------------------------


def published(arguments: argparse.Namespace) -> dict[str, Any]:
    """Model beside paper."""
    found: dict[str, Any] = {"EIE, Table IV (us), random patterns": _table_4(), "EIE, Tables II and V": _table_5()}
    found["VS-Quant, relative to 8/8/-/-"] = [
        {
            "design": design,
            "energy": vsquant.relative_energy(vsquant.parse_design(design)),
            "published_energy": energy,
            "performance_per_area": 1 / vsquant.relative_area(vsquant.parse_design(design)),
            "published_performance_per_area": 1 / area if (area := vsquant.PUBLISHED_AREA.get(design)) else "-",
        }
        for design, energy in vsquant.PUBLISHED_ENERGY.items()
    ]
    found["Winograd, multiplications saved"] = [
        {"data": name, "published": gain, "density_product": published_density_product(gain)}
        for name, gain in PUBLISHED_GAINS.items()
    ]
    for path in arguments.matrix:
        pattern = read_matrix_market(path)
        found[f"SpArch on {path.stem}, times itself"] = sweeps.spgemm_points(pattern, pattern)
    return found


def _table_4() -> list[sweeps.Row]:
    rows = sweeps.eie_table_4()
    for row in rows:
        row["actual_off"] = row["actual_us"] / row["published_actual_us"] - 1
        row["theoretical_off"] = row["theoretical_us"] / row["published_theoretical_us"] - 1
        del row["notes"]
    return rows


def _table_5() -> list[sweeps.Row]:
    rows = []
    chips = {"EIE 64 PE, 45 nm": hwmodel.EIE(), "EIE 256 PE, 28 nm": hwmodel.EIE(num_pes=256, process=NM28)}
    for name, chip in chips.items():
        cost, paper = chip.run(*sweeps.published_layer(EIE_LAYERS["Alex-7"])), EIE_PLATFORMS[name]
        rows.append(
            {
                "chip": name,
                "area_mm2": chip.area_mm2,
                "published_area_mm2": paper.area_mm2,
                "watts": chip.watts,
                "published_watts": paper.watts,
                "frames_per_s": 1 / cost.seconds,
                "published_frames_per_s": paper.frames_per_s,
                "frames_per_joule": 1 / cost.joules,
                "published_frames_per_joule": paper.frames_per_s / paper.watts,
            }
        )
    return rows


# --- Figures 8 to 13 of EIE -------------------------------------------------------------------------------------


def figures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Curves over queue depth, memory width and number of PEs, from random patterns of Table III's densities."""
    import matplotlib.figure

    layers = ("Alex-6", "Alex-7", "Alex-8", "VGG-7", "VGG-8", "NT-We", "NT-Wd", "NT-LSTM")
    curves: dict[str, list[sweeps.Row]] = {"queue": [], "width": [], "scaling": []}
    for name in layers:
        curves["queue"] += sweeps.queue_depths(name)
        curves["width"] += sweeps.sram_widths(name)
        curves["scaling"] += sweeps.scaling(name)
    panels = (
        ("queue", "held", "load_balance", "Figure 8: activations in a queue"),
        ("width", "sram_bits", "reads", "Figure 9: weight memory width, bit"),
        ("scaling", "num_pes", "speedup", "Figure 11: PEs"),
        ("scaling", "num_pes", "real_work", "Figure 12: PEs"),
        ("scaling", "num_pes", "load_balance", "Figure 13: PEs"),
    )
    figure = matplotlib.figure.Figure(figsize=(18, 3.6), layout="constrained")
    for axis, (curve, x, y, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in layers:
            rows = [row for row in curves[curve] if row["layer"] == name]
            axis.plot([row[x] for row in rows], [row[y] for row in rows], marker=".", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log" if y in ("speedup", "reads") else "linear")
        axis.set_xlabel(title)
        axis.set_ylabel(y.replace("_", " "))
    figure.axes[0].legend(fontsize=7)
    figure.savefig(RESULTS / "hardware_eie.png", dpi=110)
    widths = [row for row in curves["width"] if row["layer"] == "Alex-7"]
    return {
        "EIE, load balance by queue depth": _pivot(curves["queue"], "held", "load_balance"),
        "EIE, speed-up by PEs": _pivot(curves["scaling"], "num_pes", "speedup"),
        "EIE, real work by PEs": _pivot(curves["scaling"], "num_pes", "real_work"),
        "EIE, load balance by PEs": _pivot(curves["scaling"], "num_pes", "load_balance"),
        "EIE, weight reads of Alex-7 by width": widths,
        "EIE, Figure 10: precision of the arithmetic": [
            {"precision": name, "alexnet_top5_percent": accuracy, **_multiply_energies(name)}
            for name, accuracy in EIE_PRECISIONS.items()
        ],
    }


def _multiply_energies(precision: str) -> dict[str, Any]:
    """Picojoules of a multiplication in each table that gives it, side by side because tables do not mix."""
    operation = f"{precision}_mul"
    return {f"{table.name}_pJ": table.picojoules.get(operation, "-") for table in (EIE_TABLE_1, HOROWITZ_2014)}


def _pivot(rows: list[sweeps.Row], column: str, value: str) -> list[sweeps.Row]:
    table: dict[str, sweeps.Row] = {}
    for row in rows:
        table.setdefault(row["layer"], {"layer": row["layer"]})[str(row[column])] = row[value]
    return list(table.values())


# --- Train with pruning and 4 bits, priced live -----------------------------------------------------------------


def training_data(offline: bool) -> ImageData:
    """Fashion-MNIST if it is on this machine (or may be downloaded), else the synthetic set."""
    try:
        return load_fashion_mnist(None, offline=offline)
    except Exception as error:
        print(f"synthetic images instead of Fashion-MNIST: {error}", file=sys.stderr)
        return synthetic_images(0)


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """ResNet-20 at 8 bits: dense, then pruned in three stages, then at 4 bits with a scale for every 16 elements."""
    torch.manual_seed(0)
    data = training_data(arguments.offline)
    model = resnet(20, in_channels=data.train_images.shape[1]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    stages = [
        ("dense, 8 bit", 1.0, "8/8"),
        ("50 %", 0.5, "8/8"),
        ("25 %", 0.25, "8/8"),
        ("10 %", 0.1, "8/8"),
        ("10 %, 4 bit", 0.1, "4/4/4/6"),
    ]
    per_stage = arguments.steps // len(stages)
    prof = hwmodel.profile(
        model,
        f"{arguments.accelerators},network:{arguments.link},nodes={arguments.nodes}",
        every=max(1, per_stage // 2),
    )
    pruner = sparse.Pruner(model, lambda step: stages[min((step - 1) // per_stage, len(stages) - 1)][1])
    contexts = {bits: quant.autocast(bits, model=model) for bits in ("8/8", "4/4/4/6")}
    with prof:
        for index in range(per_stage * len(stages)):
            name, _, bits = stages[index // per_stage]
            images, labels = batch(data, index)
            with contexts[bits]:
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
            if prof.step() is not None:
                print(f"[{name}] loss {loss.item():.2f}  {prof.summary()}", flush=True)
    print(prof.table())
    RESULTS.mkdir(exist_ok=True)
    prof.export(RESULTS / "hardware_layers.png")
    rows = []
    for report in prof.reports:
        row: sweeps.Row = {"step": report.step, "stage": stages[min(report.step // per_stage, len(stages) - 1)][0]}
        for chip in report.accelerators:
            total = report.total(chip)
            row |= {
                f"{chip}_us": total.seconds * 1e6,
                f"{chip}_uJ": total.joules * 1e6,
                f"{chip}_priced": 1 - report.not_priced(chip)[0],
            }
        rows.append(row)
    plot_course(rows, [name for name, _, _ in stages], per_stage, data.label, RESULTS / "hardware_step.png")
    return {
        f"ResNet-20 on {data.label}, batch 64, per training step": rows,
        "VS-Quant 4/4/4/4, the trained network: vector products gated by rounding the scale product": gating(
            model, data
        ),
    }


def gating(model: nn.Module, data: ImageData) -> list[sweeps.Row]:
    """Share of vector products whose rounded scale product is zero, on real weights and activations.

    Elements that the published PE multiplies together lie along the channels, so kernel positions come first.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    chosen = [name for name in layers if layers[name].in_channels % vsquant.VECTOR == 0][::6]
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        layers[name].register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0].detach()))
        for name in chosen
    ]
    with torch.no_grad():
        model.eval()(batch(data, 0, 8)[0])
    for hook in hooks:
        hook.remove()
    rows = []
    for name in chosen:
        conv, x = layers[name], inputs[name]
        patches = nn.functional.unfold(x, 3, padding=1, stride=conv.stride).unflatten(1, (conv.in_channels, 9))
        vectors = patches.permute(0, 3, 2, 1).reshape(-1, 9 * conv.in_channels)[::7]
        weight = conv.weight.detach().permute(0, 2, 3, 1).reshape(conv.out_channels, -1)
        row: sweeps.Row = {"layer": name, "weight_density": float((weight != 0).float().mean())}
        for bits in (None, 6, 4):
            cost = hwmodel.VSQuantPE("4/4/4/4", bits).run(weight, vectors)
            share = cost.breakdown["gated_vector_products_count"] / cost.breakdown["vector_products_count"]
            row[f"gated_{bits or 8}_bit"] = share
        rows.append(row)
    return rows


def batch(data: ImageData, index: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """The index-th batch of the training set, in order."""
    start = index * size % (len(data.train_images) - size)
    return normalize(data.train_images[start : start + size], data), data.train_labels[start : start + size]


def plot_course(rows: list[sweeps.Row], stages: list[str], per_stage: int, label: str, path: Path) -> None:
    """Time and energy of a training step on every accelerator, while the network is pruned and quantized."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4.4), layout="constrained")
    chips = [key.removesuffix("_us") for key in rows[0] if key.endswith("_us")]
    for axis, (unit, title) in zip(figure.subplots(1, 2), (("us", "microseconds"), ("uJ", "microjoules")), strict=True):
        for chip in chips:
            name = f"{chip} ({rows[-1][f'{chip}_priced']:.0%} of MACs priced)"
            values = [row[f"{chip}_{unit}"] for row in rows]
            axis.plot([row["step"] for row in rows], values, marker="o", markersize=3, label=name)
        for stage, stage_name in enumerate(stages):
            axis.axvline(stage * per_stage, color="0.8", zorder=0)
            axis.text(stage * per_stage, 1.01, f" {stage_name}", fontsize=8, transform=axis.get_xaxis_transform())
        axis.set_xlim(right=per_stage * len(stages))
        axis.set_yscale("log")
        axis.set_xlabel("training step")
        axis.set_ylabel(f"{title} per training step")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(
        f"ResNet-20 on {label}, batch 64: share of weights kept, and their and the activations' bits", fontsize=10
    )
    figure.savefig(path, dpi=120)


# --- Report -----------------------------------------------------------------------------------------------------


def keep(name: str, found: dict[str, Any]) -> None:
    """Print the tables, store them under the command's name, and write the Markdown page of all commands."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "hardware.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    stored[name] = {
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": describe_commit(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tables": found,
    }
    path.write_text(json.dumps(stored, indent=1))
    for title, rows in found.items():
        print(f"\n{title}\n{format_rows(rows, list(rows[0]))}")
    pages = [_markdown(stored[command], command) for command in COMMANDS if command in stored]
    (RESULTS / "hardware.md").write_text(
        "# Accelerator cost models\n\nWritten by benchmarks/hardware.py.\n\n" + "\n".join(pages)
    )


PICTURES = {"figures": ["hardware_eie.png"], "step": ["hardware_step.png", "hardware_layers.png"]}


def _markdown(record: dict[str, Any], command: str) -> str:
    lines = [
        f"## {command}\n",
        f"`{record['command']}`, commit {record['commit']}, torch {record['versions']['torch']},",
    ]
    lines.append(f"{record['machine']}, {record['time']}.\n")
    for title, rows in record["tables"].items():
        lines += [f"### {title}\n", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(column, "-")) for column in rows[0]) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines + [f"![{name}]({name})\n" for name in PICTURES.get(command, [])])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COMMANDS = {"published": published, "figures": figures, "step": step, "overhead": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--matrix", type=Path, nargs="*", default=[], help="published: MatrixMarket files for SpArch")
    parser.add_argument("--steps", type=int, default=100, help="step: training steps in all five stages (default: 100)")
    parser.add_argument("--accelerators", default=FOUR, help="step: chips (default: %(default)s)")
    parser.add_argument("--link", default="1gbit", help="step: line rate between nodes (default: 1gbit)")
    parser.add_argument("--nodes", type=int, default=8, help="step: nodes (default: 8)")
    parser.add_argument("--offline", action="store_true", help="step: download no data")
    parser.add_argument("--batch", type=int, default=128, help="overhead: images a step (default: 128)")
    parser.add_argument("--blocks", type=int, default=3, help="overhead: blocks of each kind (default: 3)")
    parser.add_argument(
        "--block-steps", type=int, default=50, help="overhead: steps of a block, its first one sampled (default: 50)"
    )
    arguments = parser.parse_args()
    keep(arguments.command, COMMANDS[arguments.command](arguments))


if __name__ == "__main__":
    main()
