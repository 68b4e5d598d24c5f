"""A switch in user space that holds every frame back and drops some: delay and loss without netem.

    python relay.py --delay-ms 5 --loss 0.001 port0 port1 port2

Reads raw frames from the given interfaces (AF_PACKET), waits, and sends them to the interface behind which the
destination address was last seen, as a learning switch does. Prints "ready" once it forwards. Runs until killed.
Frames pass with their virtio header, so that a 64 KB segmentation-offload frame stays one and its checksum is
completed by the kernel: one system call forwards up to 45 packets.
"""

import argparse
import collections
import contextlib
import random
import select
import socket
import time

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
ETH_P_ALL = 0x0003
VNET_HEADER_BYTES = 10
BUFFER_BYTES = 64 << 20


def open_port(name: str) -> socket.socket:
    """Raw socket on one interface that sees what arrives there and not what we send."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    port.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    port.bind((name, ETH_P_ALL))
    port.setblocking(False)
    return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ports", nargs="+", metavar="INTERFACE")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, milliseconds (default: 0)")
    parser.add_argument("--loss", type=float, default=0.0, help="probability of dropping a frame (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of dropped frames (default: 0)")
    arguments = parser.parse_args()
    forward([open_port(name) for name in arguments.ports], arguments.delay_ms / 1e3, arguments.loss, arguments.seed)


def forward(ports: list[socket.socket], delay_s: float, loss: float, seed: int) -> None:
    """Relay frames for ever; the delay is the same for all, so one queue keeps them in order."""
    chance = random.Random(seed)
    waiting: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    behind: dict[bytes, socket.socket] = {}
    print("ready", flush=True)
    while True:
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], wait)[0]:
            # A few frames from each port in turn, so that one busy sender cannot hold up the others.
            for _ in range(16):
                try:
                    frame = port.recv(1 << 17)
                except BlockingIOError:
                    break
                behind[frame[VNET_HEADER_BYTES + 6 : VNET_HEADER_BYTES + 12]] = port
                if loss == 0 or chance.random() >= loss:
                    waiting.append((time.monotonic() + delay_s, port, frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, source, frame = waiting.popleft()
            known = behind.get(frame[VNET_HEADER_BYTES : VNET_HEADER_BYTES + 6])
            for port in [known] if known else [p for p in ports if p is not source]:
                # A full queue drops the frame, like any switch; TCP sends it again.
                with contextlib.suppress(BlockingIOError, OSError):
                    port.send(frame)


if __name__ == "__main__":
    main()
