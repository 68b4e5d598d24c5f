"""What docs/security.md promises and a machine can check: what comes from outside is read as data, never as code.

Checkpoints with code in them are tried in tests/launch/test_checkpoint.py, damaged messages in tests/fuzz, arguments of
the launch scripts in tests/launch/test_scripts_static.py.
"""

import ast
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from dgcomp.wire import WireError, decode, decode_message

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path for folder in ("dgcomp", "launch") for path in (ROOT / folder).rglob("*.py"))

# A call by any of these names runs, or may run, what it is given.
RUNS_CODE = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "os.execvp", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.loads"),
    *("yaml.load", "yaml.unsafe_load"),
}
# Collectives that unpickle what other ranks send.
UNPICKLES = {
    *("all_gather_object", "gather_object", "broadcast_object_list", "broadcast_object", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "allgather_object"),
}
EXCEPTIONS = {
    # a pickle reader that knows arrays and containers and refuses every other name: CIFAR-10 comes as pickles
    ("launch/tasks/image_data.py", "pickle.Unpickler"),
    # what Horovod's own elastic states do
    ("dgcomp/integrations/horovod.py", "broadcast_object"),
}


def _violations(path: Path) -> list[str]:
    """Calls and base classes in a file that may run what they read, outside EXCEPTIONS."""
    file, found = path.relative_to(ROOT).as_posix(), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            found += [name for base in node.bases if (name := ast.unparse(base)) in RUNS_CODE]
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        last = name.rpartition(".")[2]
        if name in RUNS_CODE or last in UNPICKLES:
            found.append(last if last in UNPICKLES else name)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
            found.append(f"{name} with shell or allow_pickle")
    return [f"{file}: {what}" for what in found if (file, what) not in EXCEPTIONS]


def test_nothing_shipped_runs_what_it_reads() -> None:
    assert [violation for path in SHIPPED for violation in _violations(path)] == []


def test_the_check_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_security.ROOT", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(
        "class A(pickle.Unpickler): ...\neval('1')\ntorch.load(f)\ntorch.load(f, weights_only=False)\n"
        "run(c, shell=True)\nnp.load(f, allow_pickle=True)\ndist.all_gather_object(a, b)\nmodel.eval()\n"
        "re.compile('a')\ntorch.load(f, weights_only=True)\nnp.load(f)\n"
    )
    assert len(_violations(bad)) == 7


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_no_message(tmp_path: Path) -> None:
    raw = pickle.dumps(_Evil(tmp_path / "ran"))
    message = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    for read in (decode, decode_message):
        with pytest.raises(WireError):
            read(message)
    assert not (tmp_path / "ran").exists()
    pickle.loads(raw)
    assert (tmp_path / "ran").exists(), "the pickle itself works"


def test_the_audit_fails_for_what_can_be_mended_alone() -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit"))
    clean, unknown = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
    mended = {"name": "c", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
    open_one = {"name": "d", "version": "1", "vulns": [{"id": "X-2", "fix_versions": []}]}
    assert audit["judge"]([clean]) == (["audit: 1 of 1 packages looked up"], 0)
    lines, status = audit["judge"]([clean, unknown, open_one])
    assert status == 0
    assert lines[0] == "audit: d 1 has X-2, no fixed version yet"
    assert "NOT looked up: b" in lines[1]
    assert audit["judge"]([clean, mended])[1] == 1
