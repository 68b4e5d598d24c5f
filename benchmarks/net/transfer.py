"""Raw TCP between two namespaces: line rate and round trip, with sockets and nothing else.

python transfer.py receive SECONDS          listens, prints "listening", then the rate in Gbit/s
python transfer.py send SECONDS ADDRESS
python transfer.py echo COUNT               listens, prints "listening", answers COUNT one-byte messages
python transfer.py ping COUNT ADDRESS       prints the median round trip in milliseconds
"""

import socket
import statistics
import sys
import time

PORT = 9177
CHUNK_BYTES = 1 << 18


def _accept() -> socket.socket:
    with socket.create_server(("", PORT)) as server:
        print("listening", flush=True)
        server.settimeout(20)
        connection, _ = server.accept()
    return connection


def receive(seconds: float) -> None:
    """Print the payload rate, leaving out the first fifth of the time: slow start and the shaper's full bucket."""
    buffer = bytearray(CHUNK_BYTES)
    with _accept() as connection:
        start = time.monotonic()
        counted_from, counted = None, 0
        while num := connection.recv_into(buffer):
            now = time.monotonic()
            if counted_from is None and now - start > seconds / 5:
                counted_from, num = now, 0
            if counted_from is not None:
                counted += num
                last = now
    assert counted_from is not None
    print(counted * 8e-9 / (last - counted_from), flush=True)


def send(seconds: float, address: str) -> None:
    chunk = bytes(CHUNK_BYTES)
    with socket.create_connection((address, PORT), timeout=20) as connection:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.sendall(chunk)


def echo(count: int) -> None:
    with _accept() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            connection.sendall(connection.recv(1))


def ping(count: int, address: str) -> None:
    trips = []
    with socket.create_connection((address, PORT), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start = time.monotonic()
            connection.sendall(b"x")
            connection.recv(1)
            trips.append(time.monotonic() - start)
    print(statistics.median(trips) * 1e3, flush=True)


if __name__ == "__main__":
    role, amount, *rest = sys.argv[1:]
    if role in ("receive", "send"):
        {"receive": receive, "send": send}[role](float(amount), *rest)  # type: ignore[operator]
    else:
        {"echo": echo, "ping": ping}[role](int(amount), *rest)  # type: ignore[operator]
