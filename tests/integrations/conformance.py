"""The checks that every trainer has to pass, called inside its ranks."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import dgcomp
from tests.integrations.jobs import FixedGradient, Job, Outcome, Train
from tests.training import same_on_all_ranks

STEPS = 16
# fp32 sums in another order: 16 steps * 2^-24 * |w| of about 1, with momentum's factor of 10.
TOLERANCE = 2e-5
SPARSE = dgcomp.DGCConfig(density=0.05, warmup_steps=4, clip_norm=2.0)


def conform(train: Train, folder: Path) -> None:
    """Run all checks; collective."""
    check_parity(train)
    check_conservation(train)
    check_resume_and_replicas(train, folder)
    check_nonfinite(train)


def check_parity(train: Train) -> None:
    """At density 1 the run is the trainer's own with torch.optim.SGD, momentum and weight decay, to round-off."""
    dense = Job(config=None, steps=range(STEPS))
    expected = train(dense).parameters
    found = train(replace(dense, config=dgcomp.DGCConfig(density=1.0)))
    difference = (expected - found.parameters).abs().max().item()
    assert difference <= TOLERANCE, f"parameters differ by {difference}"
    assert found.steps == STEPS


def check_conservation(train: Train) -> None:
    """Whatever is sent when, a sparse run and a flush move the parameters as far as the dense run does."""
    for momentum in (0.0, 0.9):
        dense = Job(config=None, steps=range(8), model=FixedGradient, momentum=momentum)
        config = dgcomp.DGCConfig(density=0.05, momentum_masking=False, leftover_codec="fp32")
        expected = train(dense).parameters
        sparse = replace(dense, config=config)
        before, after = train(sparse).parameters, train(replace(sparse, flush=True)).parameters
        scale = float(expected.abs().max())
        assert not torch.allclose(before, expected, atol=1e-3 * scale), "nothing was held back: a test of nothing"
        gap = (after - expected).abs().max().item()
        assert gap <= 1e-5 * scale, f"momentum {momentum}: {gap} of {scale} was lost"


def check_resume_and_replicas(train: Train, folder: Path) -> None:
    """A run that is stopped and resumed ends with the bits of the one that was not; all ranks hold the same."""
    whole = train(Job(config=SPARSE, steps=range(STEPS)))
    assert same_on_all_ranks(whole.parameters), "replicas differ"
    assert torch.isfinite(whole.parameters).all()
    half = STEPS // 2
    train(Job(config=SPARSE, steps=range(half), save=folder))
    dist.barrier()
    resumed = train(Job(config=SPARSE, steps=range(half, STEPS), load=folder))
    assert resumed.steps == STEPS
    assert_equal(whole, resumed)


def check_nonfinite(train: Train) -> None:
    """One bad gradient on one rank leaves no trace on any."""
    bad_step = STEPS - 5
    with_it = train(Job(config=SPARSE, steps=range(STEPS), bad_step=bad_step))
    without = train(Job(config=SPARSE, steps=[step for step in range(STEPS) if step != bad_step]))
    assert (with_it.nonfinite_steps, without.nonfinite_steps) == (1, 0)
    assert_equal(with_it, without)


def assert_equal(one: Outcome, other: Outcome) -> None:
    """Same parameters, residuals and momentum, to the bit."""
    for name in ("parameters", "residual", "momentum"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a, b), f"{name} differ by {(a - b).abs().max().item()}"
