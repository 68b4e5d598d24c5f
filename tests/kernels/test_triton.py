"""The Triton engine in Triton's interpreter, and its compilation for two GPUs. No GPU runs it here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dgcomp import kernels
from dgcomp.kernels.rules import Rule

pytestmark = pytest.mark.optional
triton = pytest.importorskip("triton", reason="needs triton: pip install triton")
ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dgcomp.kernels import triton_engine as engine

pointers = {"gradient": "*GRADIENT", "parameter": "*fp32", "momentum": "*fp32", "residual": "*fp32", "counts": "*i64"}
scalars = {"numel": "i64", "scale": "fp32", "factor": "fp32", "decay": "fp32", "threshold": "fp32"}
flags = ("RULE", "HAS_MOMENTUM", "HAS_PARAMETER", "BLOCK")
jobs = []
for dtype in ("fp32", "bf16", "fp16"):
    for rule in range(5):
        names = {k: t.replace("GRADIENT", dtype) for k, t in (pointers | scalars).items()}
        values = {"RULE": rule, "HAS_MOMENTUM": rule > 0, "HAS_PARAMETER": True, "BLOCK": engine.BLOCK}
        jobs.append((engine.update_kernel, names, values))
jobs.append((engine.count_kernel, {"residual": "*fp32", "counts": "*i64", "numel": "i64", "threshold": "fp32"},
             {"BLOCK": engine.BLOCK}))
jobs.append((engine.position_kernel, {"residual": "*fp32", "counts": "*i64", "ends": "*i64", "positions": "*i64",
             "numel": "i64", "threshold": "fp32"}, {"BLOCK": engine.BLOCK}))
for architecture in (80, 90):
    for function, names, values in jobs:
        signature = names | dict.fromkeys(values, "constexpr")
        source = ASTSource(function, signature, values)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32),
                                  options={"enable_fp_fusion": False})
        assert len(compiled.asm["cubin"]) > 1000
        assert "fma." not in compiled.asm["ptx"], "a fused multiply-add rounds once where the reference rounds twice"
print("compiled", 2 * len(jobs))
"""


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", list(Rule))
def test_interpreted_equals_torch_to_the_bit(rule: Rule, dtype: torch.dtype) -> None:
    additional = rule in (Rule.ADDITIONAL_MOMENTUM, Rule.ADDITIONAL_NESTEROV)
    call = kernels.accumulate_additional if additional else kernels.accumulate_select
    for numel, weight_decay in ((0, 0.0), (1, 0.01), (1024, 0.0), (2500, 0.01)):
        results = []
        for engine in ("torch", "triton"):
            torch.manual_seed(numel)
            g, u, v, w = torch.randn(numel).to(dtype), torch.randn(numel), torch.randn(numel), torch.randn(numel)
            found = call(
                g,
                None if rule == Rule.FEEDBACK else u,
                v,
                threshold=1.0,
                parameter=w,
                gradient_scale=0.37,
                nesterov=rule in (Rule.NESTEROV, Rule.ADDITIONAL_NESTEROV),
                weight_decay=weight_decay,
                engine=engine,
            )
            results.append((found, g, u, v, kernels.find_at_least(v, 0.5, engine=engine)))
        for reference, ours in zip(*results, strict=True):
            assert torch.equal(reference, ours)


def test_compiles_to_cubin_without_a_gpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compiled", "34"]
