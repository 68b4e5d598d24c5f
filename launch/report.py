"""The figures of a run: one dictionary for files, one table for people."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.options import Options

__all__ = ["render", "summarize", "write_json"]


def summarize(
    options: Options,
    *,
    label: str,
    metric: str,
    history: list[float],
    flushed_value: float | None,
    ranks: int,
    steps: int,
    is_finished: bool,
    seconds: float,
    steady: dict[str, float],
    whole_run: dict[str, float],
    milliseconds: dict[str, float],
) -> dict[str, Any]:
    """Everything the closing table says, and what it takes to repeat the run.

    `steady` holds bytes per step after warm-up (empty if the run ended before) and `whole_run` bytes of one rank in
    all; `history` is the metric after each epoch, `flushed_value` the metric after a flush (None without one),
    `is_finished` False where a signal ended the run early, and `milliseconds` the mean time per step by phase.
    """
    return {
        "task": options.data.task,
        "model": options.model_name,
        "data": label,
        "compress": options.compress.compress,
        "quant": options.train.quant,
        "ranks": ranks,
        "steps": steps,
        "is_finished": is_finished,
        "metric": metric,
        "value": history[-1] if history else None,
        "history": history,
        "flushed_value": flushed_value,
        "bytes_per_step": steady,
        "bytes_run": whole_run,
        "ratio": {
            "steady_matrices": _ratio(steady, "_matrices"),
            "steady": _ratio(steady, ""),
            "whole_run": _ratio(whole_run, ""),
        },
        "milliseconds_per_step": milliseconds,
        "seconds": seconds,
        "options": json.loads(json.dumps(asdict(options), default=str)),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def _ratio(counted: dict[str, float], suffix: str) -> float | None:
    sent = counted.get(f"bytes_sent{suffix}")
    return counted[f"bytes_dense{suffix}"] / sent if sent else None


def render(result: dict[str, Any]) -> str:
    """The closing table."""
    steady, run, ratio = result["bytes_per_step"], result["bytes_run"], result["ratio"]
    value = "not measured" if result["value"] is None else f"{result['value']:.2f}"
    options = result["options"]
    rows: list[tuple[str, ...]] = [
        ("task", f"{result['task']}: {result['model']} on {result['data']}"),
        ("exchange", _exchange(options["compress"])),
        ("ranks, epochs, steps", f"{result['ranks']}, {options['train']['epochs']}, {result['steps']}"),
        (result["metric"], value),
    ]
    if result["quant"] is not None:
        rows.insert(2, ("quantization", f"{result['quant']}, in training and in the test"))
    if result["flushed_value"] is not None:
        rows.append((f"{result['metric']}, flushed", f"{result['flushed_value']:.2f}"))
    for name, counted, kind, suffix in (
        ("bytes per step, matrices", steady, "steady_matrices", "_matrices"),
        ("bytes per step, everything", steady, "steady", ""),
        ("bytes of the whole run", run, "whole_run", ""),
    ):
        rows.append((f"{name}: sent", _bytes(counted.get(f"bytes_sent{suffix}"))))
        rows.append(("    dense DDP would send", _bytes(counted.get(f"bytes_dense{suffix}"))))
        rows.append(("    ratio", "-" if ratio[kind] is None else f"{ratio[kind]:,.1f}x"))
    phases = result["milliseconds_per_step"]
    rows.append(("milliseconds per step", ", ".join(f"{name} {value:.1f}" for name, value in phases.items())))
    rows.append(("wall time", f"{result['seconds']:.1f} s"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _exchange(compress: dict[str, Any]) -> str:
    if compress["compress"] == "dgc":
        return f"dgc at density {compress['density']:g}, {compress['warmup_epochs']:g} warm-up epochs"
    return {"none": "plain DDP, fp32", "fp16": "fp16", "powersgd": "PowerSGD", "demo-like": "DeMo-like"}[
        compress["compress"]
    ]


def _bytes(count: float | None) -> str:
    return "- (the run ended within the warm-up)" if count is None else f"{count:,.0f}"


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result to a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)
