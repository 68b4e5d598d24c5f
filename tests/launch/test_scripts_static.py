"""The launch scripts, without any launcher: their form, their manifests, and what they do to arguments.

Programs that a script would start are replaced by stubs that note their arguments, so that a word that a shell would
interpret anywhere on its way shows.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch.scripts import LAUNCH, MANIFESTS, ROOT, SHELL_SCRIPTS, environment

NASTY = [
    *("$(touch pwned)", "`touch pwned`", "; touch pwned", "&& touch pwned", "| touch pwned", "> pwned", "$HOME", "~"),
    *(
        "a b",
        "*",
        "'",
        '"',
        "\\",
        "'; touch pwned; '",
        "line\nbreak",
        "",
        "--option=$(touch pwned)",
        "#",
        "!x",
        "{a,b}",
    ),
]


def test_there_is_a_script_for_every_launcher() -> None:
    assert {Path(name).parent.name for name in SHELL_SCRIPTS + MANIFESTS} == {
        *("torchrun", "slurm", "kubernetes", "mpi", "deepspeed", "horovod", "ssh")
    }


@pytest.mark.parametrize("name", SHELL_SCRIPTS + MANIFESTS)
def test_the_header_says_what_to_edit(name: str) -> None:
    lines = (LAUNCH / name).read_text().splitlines()
    is_shell = name in SHELL_SCRIPTS
    assert not is_shell or lines[0] == "#!/usr/bin/env bash"
    header = "\n".join(lines[is_shell : next(n for n, line in enumerate(lines) if not line.startswith("#"))])
    assert "edit" in header.lower(), header
    if "Nothing to edit" not in header:
        assert f"launch/{name}" in header, "the header shows how it is called"


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shellcheck(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "bash", str(LAUNCH / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    if name.endswith(".sh"):
        assert os.access(LAUNCH / name, os.X_OK)


NOTE = """
import sys
from pathlib import Path
Path(__file__).with_name("arguments").write_text(repr(sys.argv[1:]))
"""

# What each launcher does with the command that it is given, as far as a shell is involved.
STUBS = {
    "srun": 'shift; RANK=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"',
    "scontrol": "echo localhost",
    "mpirun": """
while [ "$1" != launch/mpi/rank.sh ]; do shift; done
OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0 exec "$@" """,
    # horovod/runner/launch.py: ' '.join(quote(par) for par in args.command), run by a shell
    "horovodrun": """
while [ "$1" != launch/horovod/rank.sh ]; do shift; done
export HOROVOD_RANK=0 HOROVOD_SIZE=1 HOROVOD_LOCAL_RANK=0
exec sh -c "$(python3 -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "$@")" """,
    "deepspeed": 'exec "$PYTHON" "$@"',
    # sshd hands the last word to the user's shell
    "ssh": 'for last; do :; done; exec sh -c "$last"',
}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of stub launchers, and of a stub `python` that notes its arguments in a file `arguments`."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    (folder / "note.py").write_text(NOTE)
    programs = STUBS | {"python": f'exec {sys.executable} {folder}/note.py "$@"'}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("name", [name for name in SHELL_SCRIPTS if not name.endswith("rank.sh")])
def test_arguments_arrive_word_for_word(name: str, stubs: Path, tmp_path: Path) -> None:
    surroundings = environment(
        PYTHON=str(stubs / "python"),
        PATH=f"{stubs}:{os.environ['PATH']}",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_ID="12",
        SLURM_JOB_NODELIST="localhost",
        CHECKPOINTS=str(tmp_path / "check points; touch pwned"),
    )
    done = subprocess.run(
        ["bash", str(LAUNCH / name), *NASTY], env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    arguments: list[str] = ast.literal_eval((stubs / "arguments").read_text())
    assert arguments[-len(NASTY) :] == NASTY
    assert arguments[arguments.index("--checkpoint-folder") + 1] == str(tmp_path / "check points; touch pwned")
    assert arguments[arguments.index("--checkpoint-folder") - 1] == "launch/train.py"
    for folder in (tmp_path, ROOT, stubs):
        assert not (folder / "pwned").exists()


def test_hosts_are_not_evaluated(stubs: Path, tmp_path: Path) -> None:
    for hosts in ("a:x[$(touch pwned)]", "a:2;touch pwned", "a"):
        surroundings = environment(PATH=f"{stubs}:{os.environ['PATH']}", HOSTS=hosts)
        script = str(LAUNCH / "horovod/train.sh")
        done = subprocess.run(["bash", script], env=surroundings, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert "HOSTS must be host:ranks" in done.stderr
        assert not (ROOT / "pwned").exists()


# --- Kubernetes -------------------------------------------------------------------------------------------------

# The part of Kubeflow's training-operator v1 schema that the manifest uses: a type, a dict of fields (those with a
# "!" are required), or a list of allowed values. Pod templates are checked below them.
POD = "pod template"
PYTORCHJOB: dict[str, Any] = {
    "apiVersion!": ["kubeflow.org/v1"],
    "kind!": ["PyTorchJob"],
    "metadata!": {"name!": str, "namespace": str, "labels": dict},
    "spec!": {
        "runPolicy!": {
            "cleanPodPolicy": ["None", "Running", "All"],
            "backoffLimit": int,
            "activeDeadlineSeconds": int,
            "ttlSecondsAfterFinished": int,
            "suspend": bool,
        },
        "elasticPolicy": {
            "rdzvBackend": ["c10d", "etcd", "etcd-v2"],
            "minReplicas": int,
            "maxReplicas": int,
            "maxRestarts": int,
            "nProcPerNode": int,
        },
        "nprocPerNode": str,
        "pytorchReplicaSpecs!": {
            name: {
                "replicas": int,
                "restartPolicy": ["Always", "OnFailure", "Never", "ExitCode"],
                "template!": POD,
            }
            for name in ("Master", "Worker")
        },
    },
}


def _misfits(value: Any, schema: Any, path: str = "") -> list[str]:
    """Every place where `value` is not what `schema` asks for."""
    if schema == POD:
        return [] if isinstance(value, dict) and value.get("spec", {}).get("containers") else [f"{path}: no containers"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        return [] if value in schema else [f"{path}: {value!r} is not one of {schema}"]
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no mapping"]
    fields = {name.rstrip("!"): part for name, part in schema.items()}
    missing = [f"{path}.{name[:-1]} is missing" for name in schema if name.endswith("!") and name[:-1] not in value]
    unknown = [f"{path}.{name} is unknown" for name in value if name not in fields]
    known = [m for name in value if name in fields for m in _misfits(value[name], fields[name], f"{path}.{name}")]
    return missing + unknown + known


def _manifest(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="reading manifests needs PyYAML")
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def test_pytorchjob_has_the_operators_form() -> None:
    (job,) = _manifest("kubernetes/pytorchjob.yaml")
    assert _misfits(job, PYTORCHJOB) == []
    policy, worker = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch", "the operator looks for the container of this name"
    # the check itself notices what is wrong
    worker["replicaz"] = worker.pop("replicas")
    policy["rdzvBackend"], policy["maxReplicas"] = "c10", "4"
    del job["spec"]["runPolicy"]
    assert len(_misfits(job, PYTORCHJOB)) == 4


def test_job_and_service_fit_together() -> None:
    service, job = _manifest("kubernetes/job.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completions"] == spec["parallelism"]
    assert f"--nnodes={spec['completions']}" in container["args"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    name, port = job["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:{port}" in container["args"]


@pytest.mark.optional
@pytest.mark.filterwarnings("ignore")  # of the validator's own imports
def test_manifests_against_kubernetes_schemas() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    version = validator.latest_version()
    service, job = _manifest("kubernetes/job.yaml")
    for document in (service, job):
        validator.validate(document, version, strict=True)
    (pytorchjob,) = _manifest("kubernetes/pytorchjob.yaml")
    template = pytorchjob["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, "spec": template["spec"]}
    validator.validate(pod, version, strict=True)
    pod["spec"]["containers"][0]["imagee"] = "typo"
    with pytest.raises(validator.ValidationError):
        validator.validate(pod, version, strict=True)


@pytest.mark.optional
@pytest.mark.filterwarnings("ignore")
def test_pytorchjob_survives_kubeflows_own_model() -> None:
    training = pytest.importorskip("kubeflow.training", reason="pip install kubeflow-training")
    import json
    from types import SimpleNamespace

    (job,) = _manifest("kubernetes/pytorchjob.yaml")
    client = training.ApiClient()
    model = client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")
    # a field that the model does not know is lost on the way
    assert client.sanitize_for_serialization(model) == job
