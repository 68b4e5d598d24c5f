"""The scripts of docs/integrations.md: complete, under 40 lines, and they learn and compress."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "integrations.md").read_text()
SCRIPTS = {
    match[1]: (match[2], match[0])
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for match in [re.match(r'"""([\w.]+): (.+?)"""\n.*', code, re.DOTALL)]
    if match
}
PACKAGES = {
    "zero1.py": "deepspeed",
    "light.py": "lightning",
    "speed.py": "accelerate",
    "hf.py": "transformers",
    "hvd.py": "horovod.torch",
    "ft.py": "torchft.manager",
}
LAUNCHERS = {"torchrun": "torch.distributed.run", "horovodrun": "horovod.runner.launch"}


def test_every_script_is_complete_and_short() -> None:
    assert len(SCRIPTS) == TEXT.count("```python\n") == 8
    for name, (command, code) in SCRIPTS.items():
        assert command.endswith(name)
        assert len(code.rstrip().splitlines()) < 40, f"{name} has {len(code.rstrip().splitlines())} lines"
        compile(code, name, "exec")


NAMES = [pytest.param(name, marks=[pytest.mark.optional] if name in PACKAGES else []) for name in SCRIPTS]


@pytest.mark.parametrize("name", NAMES)
def test_script(name: str, tmp_path: Path) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    command, code = SCRIPTS[name]
    (tmp_path / name).write_text(code)
    launcher, *arguments = (sys.executable if word == "python" else word for word in shlex.split(command))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [sys.executable, "-m", LAUNCHERS[launcher], *_at_a_free_port(launcher), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"loss ([\d.]+), (\d+)x less sent", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < 0.7, "a random guess costs 2.3"
    assert int(found[2]) >= 5


def _at_a_free_port(launcher: str) -> list[str]:
    return ["--standalone"] if launcher == "torchrun" else []
