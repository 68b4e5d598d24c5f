"""Mutated messages: a few hundred by default, 100,000 with bounds checks in the compiled loops under -m slow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import mutate

ROOT = Path(__file__).resolve().parents[2]


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32 - 1))
def test_mutated_messages_are_refused_or_decoded_consistently(seed: int) -> None:
    rng = np.random.default_rng(seed)
    message = mutate.random_message(rng)
    assert mutate.check(message)
    mutate.check(mutate.mutated(message, rng))


@settings(deadline=None, max_examples=200)
@given(raw=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decoded_consistently(raw: bytes) -> None:
    mutate.check(mutate.with_checksum(np.frombuffer(b"\xd6\xc1" + raw, np.uint8)))


def test_some_mutations_get_past_the_checksum() -> None:
    """Otherwise the fuzzing would test the checksum alone."""
    assert mutate.run(300) > 10


def _run(code: str, tmp_path: Path, **environment: str) -> str:
    # a cache of its own: the cached kernels of other runs have no bounds checks
    surroundings = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_hundred_thousand_messages_with_bounds_checks(tmp_path: Path) -> None:
    code = "from tests.fuzz import mutate; print(mutate.run(100_000, seed=1))"
    accepted = int(_run(code, tmp_path, NUMBA_BOUNDSCHECK="1"))
    assert 1000 < accepted < 100_000


@pytest.mark.slow
@pytest.mark.optional
def test_coverage_guided_fuzzing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install dgcomp[fuzz]")
    options = ["-max_total_time=60", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.fuzz.atheris_decode", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
