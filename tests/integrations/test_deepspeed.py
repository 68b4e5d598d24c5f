"""What is particular to DeepSpeed: half precision with loss scaling, accumulation, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import dgcomp
from tests.integrations.conformance import SPARSE, TOLERANCE
from tests.integrations.jobs import Job, make_model, make_sgd
from tests.integrations.test_conformance import free_port, prepare
from tests.ranks import run_ranks
from tests.training import same_on_all_ranks

JOB = Job(config=dgcomp.DGCConfig(density=1.0), steps=range(8))
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 1000, "hysteresis": 1}}
BF16 = {"bf16": {"enabled": True}}


def _accumulation(train: Any) -> None:
    for stage in (0, 1):
        options = {"zero_optimization": {"stage": stage}, "gradient_accumulation_steps": 2}
        dense, ours = (train(replace(JOB, config=c, options=options)).parameters for c in (None, JOB.config))
        assert float((dense - ours).abs().max()) <= TOLERANCE, stage


def _half_precision(train: Any, folder: Path) -> None:
    """At density 1 as DeepSpeed's own up to the rounding of its half-precision sums; sparse, equal and resumable."""
    for case, stage, half in (("fp16", 0, FP16), ("fp16", 1, FP16), ("bf16", 0, BF16), ("bf16", 1, BF16)):
        options = {"zero_optimization": {"stage": stage}, **half}
        dense, ours = (train(replace(JOB, config=c, options=options)).parameters for c in (None, JOB.config))
        # 8 updates of up to 0.05 * 10 * |g|, each with a relative rounding of the half type.
        tolerance = 8 * 0.5 * (2.0**-11 if case == "fp16" else 2.0**-8)
        assert float((dense - ours).abs().max()) <= tolerance, (case, stage)
        own = folder / f"{case}{stage}"
        sparse = Job(config=SPARSE, steps=range(12), options=options)
        whole = train(sparse)
        assert same_on_all_ranks(whole.parameters)
        train(replace(sparse, steps=range(6), save=own))
        dist.barrier()
        resumed = train(replace(sparse, steps=range(6, 12), load=own))
        assert torch.equal(whole.parameters, resumed.parameters), (case, stage)
        assert torch.equal(whole.residual, resumed.residual), (case, stage)


def _overflow(train: Any) -> None:
    """A bad gradient lowers the loss scale, is counted as skipped, and leaves no trace in u and v."""
    for stage in (0, 1):
        options = {"zero_optimization": {"stage": stage}, "fp16": {**FP16["fp16"], "loss_scale": 128.0}}
        job = Job(config=SPARSE, steps=range(8), options=options)
        bad = train(replace(job, bad_step=5))
        without = train(replace(job, steps=[step for step in range(8) if step != 5]))
        assert bad.nonfinite_steps == 1
        assert torch.equal(bad.parameters, without.parameters), stage
        assert torch.equal(bad.residual, without.residual), stage


def _growing_scale(train: Any) -> None:
    """In steps that raise the loss scale, 0.19.8 divides by the new one; what DGC delivers arrives whole."""
    for stage in (0, 1):
        ends = []
        for scale in ({"loss_scale": 256.0}, {"loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 2}):
            options = {"zero_optimization": {"stage": stage}, "fp16": {"enabled": True, **scale}}
            ends.append(train(Job(config=SPARSE, steps=range(8), options=options)).parameters)
        # Other scales round fp16 gradients alike but for underflow.
        assert torch.allclose(ends[0], ends[1], atol=2e-3), stage


def _large_updates(train: Any) -> None:
    """What was gathered over many steps, times the loss scale, exceeds fp16 and still arrives."""
    options = {"zero_optimization": {"stage": 1}, "fp16": {"enabled": True, "loss_scale": 4096.0}}
    for stage in (0, 1):
        options["zero_optimization"] = {"stage": stage}
        config = dgcomp.DGCConfig(density=0.01, codec="fp32")
        found = train(Job(config=config, steps=range(60), options=options))
        assert found.nonfinite_steps == 0
        assert torch.isfinite(found.parameters).all()


def _refusals() -> None:
    import deepspeed

    from dgcomp.integrations.deepspeed import attach

    cases = [
        ({"zero_optimization": {"stage": 2}}, "partitions gradients while backward runs"),
        ({"zero_optimization": {"stage": 1, "overlap_comm": True}}, "overlap_comm"),
        ({"gradient_clipping": 1.0}, "gradient_clipping"),
        ({**BF16, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}, "grad_accum_dtype"),
    ]
    for settings, words in cases:
        module = make_model(JOB)
        basis = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "gradient_clipping": 0.0}
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=make_sgd(JOB, module.parameters()), config=basis | settings
        )
        with pytest.raises(ValueError, match=words):
            attach(engine)
        assert engine.basic_optimizer.param_groups[0]["momentum"] == 0.9, "a refusal changes nothing"


def _all(rank: int, folder: Path, port: int) -> None:
    prepare(rank, folder, port)
    from deepspeed.accelerator import get_accelerator

    from tests.integrations.optional_loops import train_deepspeed

    # DeepSpeed wants a CPU with fp16 instructions; torch computes the same without them, slower.
    get_accelerator().is_fp16_supported = lambda: True

    _accumulation(train_deepspeed)
    _overflow(train_deepspeed)
    _large_updates(train_deepspeed)
    _growing_scale(train_deepspeed)
    _half_precision(train_deepspeed, folder)
    _refusals()


@pytest.mark.optional
def test_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_ranks(_all, 2, tmp_path, free_port(), timeout_s=200)
