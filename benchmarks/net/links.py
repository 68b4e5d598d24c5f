"""Emulated links between processes on one machine: network namespaces, veth pairs, tc tbf, and a delaying switch.

    with Network(nodes=4, rate="1gbit", rtt_ms=10, loss=0.001) as network:
        process = network.start(2, [sys.executable, "-c", "..."])     # runs inside node 2

Every node is a namespace with one interface, `eth0`, at 10.77.0.(1 + node). Its peer sits in a switch namespace of
its own, so nothing appears on the host. tbf limits both directions: the node's sends and the switch's sends to it.
Without delay or loss the switch is a kernel bridge. Otherwise it is relay.py beside this file, because many kernels
lack netem and a relay in user space behaves the same on all of them. Everything is removed on exit, on errors and
on Ctrl-C; namespaces that a killed run left behind are removed by the next one.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType

PREFIX = "dgcnet"
INTERFACE = "eth0"
_RATE = re.compile(r"^([0-9.]+)(kbit|mbit|gbit)$")
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def why_not_permitted() -> str | None:
    """One sentence that says why this machine cannot emulate links, or None where it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the command `{tool}` is not there; install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{PREFIX}{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"`ip netns add` is refused: {made.stderr.strip()}"
    try:
        _ip("-n", name, "link", "add", "name", "try0", "type", "veth", "peer", "name", "try1")
        _run("tc", "-n", name, "qdisc", "add", "dev", "try0", "root", "tbf", *_tbf("100mbit"))
    except RuntimeError as error:
        return str(error)
    finally:
        _ip("netns", "del", name)
    return None


def bits_per_s(rate: str) -> float:
    """Bits a second of a tc rate such as "100mbit"; infinite for "unshaped"."""
    if rate == "unshaped":
        return float("inf")
    match = _RATE.match(rate)
    if match is None:
        raise ValueError(f'rate must be "unshaped" or look like "100mbit" or "1gbit", got {rate!r}')
    return float(match[1]) * _BITS[match[2]]


class Network:
    """`nodes` namespaces joined by a switch; a context manager that takes everything down again.

    `rate` is a tc rate or "unshaped"; `rtt_ms` is ADDED to the few hundredths of a millisecond of the bare path;
    `loss` is the probability that the switch drops a frame. Raises RuntimeError with the command that failed.
    """

    def __init__(self, nodes: int, rate: str = "unshaped", rtt_ms: float = 0.0, loss: float = 0.0) -> None:
        if nodes < 2:
            raise ValueError(f"nodes must be at least 2, got {nodes}")
        bits_per_s(rate)
        self.nodes, self.rate, self.rtt_ms, self.loss = nodes, rate, rtt_ms, loss
        self._name = f"{PREFIX}{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._old_handler: signal.Handlers | None = None

    def namespace(self, node: int) -> str:
        return f"{self._name}n{node}"

    @staticmethod
    def address(node: int) -> str:
        return f"10.77.0.{1 + node}"

    def start(self, node: int, command: Sequence[str], **popen: object) -> "subprocess.Popen[bytes]":
        """Start `command` in a node's namespace; it is killed when the network goes down."""
        return self._start(self.namespace(node), command, **popen)

    def __enter__(self) -> "Network":
        remove_leftovers()
        # SIGTERM would end the process without running any `finally`.
        self._old_handler = signal.signal(signal.SIGTERM, _raise_exit)  # type: ignore[assignment]
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        switch = f"{self._name}sw"
        delayed = self.rtt_ms > 0 or self.loss > 0
        _ip("netns", "add", switch)
        if not delayed:
            _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for node in range(self.nodes):
            name, port = self.namespace(node), f"port{node}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", name)
            # No IPv6: its neighbour discovery would be traffic that nobody asked for.
            for namespace in (name, switch):
                _run("ip", "netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            _ip("-n", name, "addr", "add", f"{self.address(node)}/24", "dev", INTERFACE)
            if self.loss > 0:
                # One segment a frame: a lost frame is then one lost packet, not a lost 64 KB burst.
                _ip("-n", name, "link", "set", INTERFACE, "gso_max_segs", "1")
            _ip("-n", name, "link", "set", INTERFACE, "up")
            _ip("-n", switch, "link", "set", port, "up", *(() if delayed else ("master", "bridge")))
            if self.rate != "unshaped":
                for namespace, device in ((name, INTERFACE), (switch, port)):
                    _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *_tbf(self.rate))
        if delayed:
            relay = [sys.executable, str(Path(__file__).with_name("relay.py")), "--delay-ms", str(self.rtt_ms / 2)]
            ports = [f"port{node}" for node in range(self.nodes)]
            process = self._start(switch, [*relay, "--loss", str(self.loss), *ports], stdout=subprocess.PIPE)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the relay in the switch namespace did not start; its error is above")

    def _start(self, namespace: str, command: Sequence[str], **popen: object) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            preexec_fn=_die_with_parent,
            **popen,  # type: ignore[call-overload]
        )
        self._processes.append(process)
        return process

    def _remove(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()
        for namespace in [self.namespace(node) for node in range(self.nodes)] + [f"{self._name}sw"]:
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", namespace)
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
            self._old_handler = None


def namespaces() -> list[str]:
    """Names of the namespaces that this module has made, in any process, and that still exist."""
    lines = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if line.startswith(PREFIX)]


def remove_leftovers() -> None:
    """Delete namespaces whose maker is gone (killed with SIGKILL, which nothing can catch)."""
    for name in namespaces():
        owner = re.match(rf"{PREFIX}(\d+)", name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", name)


def transfer_gbit_per_s(network: Network, seconds: float = 1.0) -> float:
    """Line rate seen by TCP from node 0 to node 1, payload Gbit/s, measured at the receiver."""
    program = str(Path(__file__).with_name("transfer.py"))
    receiver = network.start(1, [sys.executable, program, "receive", str(seconds)], stdout=subprocess.PIPE)
    assert receiver.stdout is not None
    receiver.stdout.readline()  # "listening"
    sender = network.start(0, [sys.executable, program, "send", str(seconds), network.address(1)])
    rate = float(receiver.stdout.readline())
    sender.wait(timeout=seconds + 30)
    receiver.wait(timeout=seconds + 30)
    return rate


def round_trip_ms(network: Network, count: int = 20) -> float:
    """Median round trip of a one-byte message over an open TCP connection between nodes 0 and 1, milliseconds."""
    program = str(Path(__file__).with_name("transfer.py"))
    server = network.start(1, [sys.executable, program, "echo", str(count)], stdout=subprocess.PIPE)
    assert server.stdout is not None
    server.stdout.readline()
    client = network.start(0, [sys.executable, program, "ping", str(count), network.address(1)], stdout=subprocess.PIPE)
    assert client.stdout is not None
    trip = float(client.stdout.readline())
    client.wait(timeout=30)
    server.wait(timeout=30)
    return trip


def _tbf(rate: str) -> list[str]:
    # The bucket must hold a timer tick at the line rate; more would let a whole compressed message pass unpaced.
    burst = max(32_000, int(bits_per_s(rate) / 8 * 1e-3))
    return ["rate", rate, "burst", str(burst), "latency", "50ms"]


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def _raise_exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL (prctl PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def poll(processes: "Sequence[subprocess.Popen[bytes]]", timeout_s: float) -> Iterator[None]:
    """Yield ten times a second, and once when all processes have ended; one that fails takes the others with it."""
    deadline = time.monotonic() + timeout_s
    while any(process.poll() is None for process in processes):
        failed = any(process.poll() not in (None, 0) for process in processes)
        if failed:
            # A victim of another rank's failure needs a moment to write its own traceback.
            time.sleep(1.0)
        if failed or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
        yield
    yield  # for what a process wrote just before it ended
