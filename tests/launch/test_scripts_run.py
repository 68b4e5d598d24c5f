"""The launch scripts, run by the launchers they are for, on this machine; docs/launch.md lists what these tests ran.

All are `slow`: each starts a launcher and two ranks, some of them twice. A launcher that is not installed is skipped.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from launch.stopping import STOPPED_STATUS
from tests.faults.runs import saved_step, wait_until
from tests.launch.scripts import (
    LAUNCH,
    ROOT,
    TIMEOUT_S,
    check_result,
    environment,
    free_port,
    options,
    run,
)

pytestmark = pytest.mark.slow


def _needs(program: str, package: str) -> str:
    path = shutil.which(program, path=environment()["PATH"])
    if path is None:
        pytest.skip(f"{program} is not installed ({package})")
    return path


def test_torchrun_two_nodes_on_loopback(tmp_path: Path) -> None:
    """Two agents, one rank each, that meet through the c10d rendezvous."""
    port = str(free_port())
    settings = {"RENDEZVOUS": f"localhost:{port}", "NODES": "2", "RANKS_PER_NODE": "1", "CHECKPOINTS": str(tmp_path)}
    script = ["bash", str(LAUNCH / "torchrun/node.sh"), *options(tmp_path / "result.json")]
    nodes = [subprocess.Popen(script, env=environment(**settings)) for _ in range(2)]
    assert [node.wait(TIMEOUT_S) for node in nodes] == [0, 0]
    check_result(tmp_path / "result.json", ranks=2)


@pytest.mark.optional
@pytest.mark.parametrize("name", ["kubernetes/pytorchjob.yaml", "kubernetes/job.yaml"])
def test_commands_of_the_kubernetes_manifests(name: str, tmp_path: Path) -> None:
    """Two processes run what two pods would, with the variables that Kubernetes or Kubeflow's operator gives them."""
    yaml = pytest.importorskip("yaml", reason="reading manifests needs PyYAML")
    document = list(yaml.safe_load_all((LAUNCH / name).read_text()))[-1]
    spec = document["spec"].get("pytorchReplicaSpecs", {}).get("Worker", document["spec"])
    (container,) = spec["template"]["spec"]["containers"]
    port, pods = str(free_port()), []
    for index in range(2):
        # training-operator v1, pkg/controller.v1/pytorch/elastic.go; min and max are the test's, which has two pods
        operator = {
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": f"localhost:{port}",
            "PET_RDZV_ID": "job",
            "PET_NNODES": "2:2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MAX_RESTARTS": "10",
        }
        settings = operator if document["kind"] == "PyTorchJob" else {}
        words = [*container["command"], *container["args"], *options(tmp_path / "result.json")]
        replaced = {"$(JOB_COMPLETION_INDEX)": str(index), "=/checkpoints": f"={tmp_path}", ":29400": f":{port}"}
        replaced |= {f"dgcomp-train-{pod}.dgcomp-train": "localhost" for pod in range(2)}
        for old, new in replaced.items():
            words = [word.replace(old, new) for word in words]
        settings |= {variable["name"]: variable["value"] for variable in container["env"]}
        pods.append(subprocess.Popen(words, cwd=ROOT, env=environment(**settings)))
    assert [pod.wait(TIMEOUT_S) for pod in pods] == [0, 0]
    check_result(tmp_path / "result.json", ranks=2)


@pytest.mark.optional
def test_mpirun_and_its_signal(tmp_path: Path) -> None:
    """SIGUSR1 to mpirun reaches the ranks: they stop with a checkpoint, and the next call goes on from it."""
    _needs("mpirun", "Debian: openmpi-bin")
    settings = {
        "HOSTS": "localhost:2",
        "PORT": str(free_port()),
        "CHECKPOINTS": str(tmp_path),
        "MPIRUN_OPTIONS": "--allow-run-as-root --oversubscribe",
    }
    endless = [*options(tmp_path / "stopped.json", steps=10**6), "--checkpoint-interval", "4"]
    command = ["bash", str(LAUNCH / "mpi/train.sh"), *endless]
    process = subprocess.Popen(command, env=environment(**settings), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: saved_step(tmp_path) > 0, "the first checkpoint")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == STOPPED_STATUS, output
    stopped = re.search(r"stopped after step (\d+); go on with --resume", output)
    assert stopped, output
    last = int(stopped[1]) + 8
    done = run("mpi/train.sh", options(tmp_path / "result.json", steps=last), **settings)
    assert done.returncode == 0, done.stderr
    assert f"going on after step {stopped[1]}" in done.stdout
    check_result(tmp_path / "result.json", ranks=2, steps=last)


@pytest.mark.optional
def test_deepspeed_launcher(tmp_path: Path) -> None:
    launcher = _needs("deepspeed", "pip install deepspeed")
    settings = {"DEEPSPEED": launcher, "PORT": str(free_port()), "CHECKPOINTS": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    done = run("deepspeed/train.sh", options(tmp_path / "result.json"), **settings)
    assert done.returncode == 0, done.stderr
    check_result(tmp_path / "result.json", ranks=2)


def _horovod_python() -> str:
    """A Python that has Horovod: this one, or that of $DGCOMP_HOROVOD_PYTHON."""
    python = os.environ.get("DGCOMP_HOROVOD_PYTHON", sys.executable)
    if not Path(python).with_name("horovodrun").exists():
        pytest.skip("horovodrun is not installed (DGCOMP_HOROVOD_PYTHON names the Python of a build)")
    return python


@pytest.mark.optional
def test_horovodrun(tmp_path: Path) -> None:
    """horovodrun as the launcher of launch/train.py, and of a script that uses Horovod."""
    python = _horovod_python()
    settings = {"PYTHON": python, "HOROVODRUN": str(Path(python).with_name("horovodrun")), "HOSTS": "localhost:2"}
    settings |= {"PORT": str(free_port()), "CHECKPOINTS": str(tmp_path)}
    settings["PATH"] = f"{Path(python).parent}:{os.environ['PATH']}"
    done = run("horovod/train.sh", options(tmp_path / "result.json"), **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    check_result(tmp_path / "result.json", ranks=2)
    own = tmp_path / "own.py"
    own.write_text(
        "import sys, torch, horovod.torch as hvd\nhvd.init()\n"
        "total = hvd.allreduce(torch.ones(1), op=hvd.Sum)\nprint('sum', int(total), sys.argv[1:])\n"
    )
    done = run("horovod/train.sh", ["a b", "$(c)"], **settings, SCRIPT=str(own))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sum 2 ['a b', '$(c)']") == 2


# --- ssh ----------------------------------------------------------------------------------------------------------


@contextmanager
def _sshd(folder: Path) -> Iterator[str]:
    """An ssh server of our own on a free port of the loopback device; yields options for ssh."""
    _needs("ssh", "Debian: openssh-client")
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(server).exists():
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    folder.mkdir()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its child in, as root
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        known = f"-o UserKnownHostsFile={folder}/known -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
        yield f"-p {port} -i {folder}/user -o IdentitiesOnly=yes {known}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.optional
def test_ssh_to_two_hosts(tmp_path: Path) -> None:
    """Two names of this machine; then a host that can't be reached ends the run on the other."""
    with _sshd(tmp_path / "sshd") as ssh_options:
        settings = {
            "HOSTS": "localhost 127.0.0.1",
            "RANKS_PER_NODE": "1",
            "PORT": str(free_port()),
            "SSH_OPTIONS": ssh_options,
            "CHECKPOINTS": str(tmp_path / "check $(points)"),
        }
        done = run("ssh/train.sh", options(tmp_path / "result.json"), **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        check_result(tmp_path / "result.json", ranks=2)
        assert (tmp_path / "check $(points)" / "latest.json").exists()
        done = run("ssh/train.sh", options(tmp_path / "no.json"), **settings | {"HOSTS": "localhost nowhere.invalid"})
        assert done.returncode == 1
        assert "nowhere.invalid" in done.stderr


# --- Slurm --------------------------------------------------------------------------------------------------------

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@contextmanager
def _slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this host, as root; yields the environment for its commands."""
    for program in ("sbatch", "slurmctld", "slurmd", "munged"):
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None:
            pytest.skip(f"{program} is not installed (Debian: slurm-wlm slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of our own needs root")
    for name in ("", "state", "spool.n1", "spool.n2"):
        (folder / name).mkdir(exist_ok=True)
    host = subprocess.run(["hostname", "-s"], capture_output=True, text=True, check=True).stdout.strip()
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, ports=ports, user="root"))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    surroundings = environment(SLURM_CONF=str(folder / "slurm.conf"), MASTER_ADDR="localhost")
    surroundings["PATH"] += ":/usr/sbin"
    munged = ["munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munged += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
    commands = [munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    daemons = []
    try:
        for command in commands:
            output = (folder / f"{command[0]}.out").open("a")
            daemons.append(subprocess.Popen(command, env=surroundings, stdout=output, stderr=output))
            output.close()
        wait_until(lambda: _says(["sinfo", "-h", "-o", "%t"], surroundings) == "idle", "the nodes are idle")
        yield surroundings
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _says(command: list[str], surroundings: dict[str, str]) -> str:
    return subprocess.run(command, env=surroundings, capture_output=True, text=True).stdout.strip()


@pytest.mark.optional
def test_slurm_requeues_what_it_stopped(tmp_path: Path) -> None:
    """Two nodes of one task: SIGUSR1 to the ranks saves and requeues the job, which goes on to its end."""
    with _slurm(tmp_path / "slurm") as surroundings:
        _check_requeue(tmp_path, surroundings)


def _check_requeue(folder: Path, surroundings: dict[str, str]) -> None:
    checkpoints, log = folder / "checkpoints", folder / "job.log"
    surroundings = surroundings | {"CHECKPOINTS": str(checkpoints)}
    run_options = [*options(folder / "result.json", steps=400), "--checkpoint-interval", "4"]
    batch = ["sbatch", "--parsable", "--ntasks-per-node=1", f"--output={log}", "launch/slurm/train.sbatch"]
    submitted = subprocess.run([*batch, *run_options], cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    wait_until((checkpoints / "latest.json").exists, "the first checkpoint")
    # what Slurm does three minutes before the time limit
    subprocess.run(["scancel", "--signal=USR1", job], env=surroundings, check=True)
    wait_until(lambda: "stopped after step" in log.read_text(), "the ranks have stopped")
    wait_until((folder / "result.json").exists, f"the requeued job is through\n{log.read_text()}")
    wait_until(lambda: _says(["squeue", "-h", "-j", job, "-o", "%T"], surroundings) in ("", "COMPLETED"), "the end")
    text = log.read_text()
    stopped = re.search(r"stopped after step (\d+)", text)
    assert stopped
    assert f"going on after step {stopped[1]}" in text
    check_result(folder / "result.json", ranks=2, steps=400)
