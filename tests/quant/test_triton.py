"""The Triton kernels in Triton's interpreter, and their compilation for two GPUs. No GPU runs them here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.optional
pytest.importorskip("triton", reason="needs triton: pip install triton")
ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dgcomp.quant import triton_quantize, triton_scale

jobs = []
for dtype in ("fp32", "bf16", "fp16"):
    jobs.append((triton_scale.histogram_kernel, {"x": f"*{dtype}", "packed": "*i64", "numel": "i64",
                 "num_copies": "i32"}, {"BLOCK": triton_scale.BLOCK}))
    shape = {"numel": "i64", "channels": "i64", "inner": "i64"}
    jobs.append((triton_quantize.quantize_kernel, {"x": f"*{dtype}", "step": "*fp32", "out": f"*{dtype}", **shape,
                 "low": "fp32", "high": "fp32"}, {"BLOCK": triton_quantize.BLOCK}))
    for keep in (True, False):
        jobs.append((triton_quantize.clip_gradient_kernel, {"gradient": f"*{dtype}", "x": f"*{dtype}",
                     "scale": "*fp32", "out": f"*{dtype}", **shape},
                     {"SIGNED": keep, "KEEP_DIRECTION": keep, "BLOCK": triton_quantize.BLOCK}))
jobs.append((triton_scale.fold_kernel, {"packed": "*i64", "total": "*i64", "num_copies": "i32"},
             {"BLOCK": triton_scale.BLOCK}))
levels = {"positive": "fp32", "overload": "fp32", "iterations": "i32"}
for flag in (True, False):
    jobs.append((triton_scale.solve_kernel, {"counts": "*i64", "residues": "*i64", "out": "*fp64", **levels},
                 {"SIGNED": flag}))
    jobs.append((triton_scale.row_kernel, {"rows": "*fp32", "starts": "*fp64", "out": "*fp64", "numel": "i64",
                 "negative": "fp32", **levels},
                 {"HAS_START": flag, "SYMMETRIC": flag, "EXACT": flag, "BLOCK": triton_scale.ROW_BLOCK}))
for architecture in (80, 90):
    for function, names, values in jobs:
        source = ASTSource(function, names | dict.fromkeys(values, "constexpr"), values)
        options = {"num_warps": 16} if function is triton_scale.solve_kernel else {"enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        assert len(compiled.asm["cubin"]) > 1000
print("compiled", 2 * len(jobs))
"""


def test_interpreted_kernels_equal_their_references() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/quant/interpreted_triton.py"]
    done = _run(command, {"TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout


def test_compiles_to_cubin_without_a_gpu(tmp_path: Path) -> None:
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    done = _run([sys.executable, str(script)], {"TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compiled", "34"]


def _run(command: list[str], settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), **settings}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
