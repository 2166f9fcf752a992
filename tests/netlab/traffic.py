"""Senders and receivers of plain TCP and UDP, run in a lab's hosts.

    python -m tests.netlab.traffic tcp-sink PORT
    python -m tests.netlab.traffic tcp-source ADDRESS PORT BYTES
    python -m tests.netlab.traffic udp-sink PORT
    python -m tests.netlab.traffic udp-source ADDRESS PORT COUNT SEGMENTS [SIZE]

A sink prints READY, and one JSON line at its end. UDP datagrams are numbered; with SEGMENTS above 1
they leave as super-packets (UDP_SEGMENT), as the engine's do.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable

READY = "ready"
UDP_SEGMENT = 103  # linux/udp.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
DATAGRAM_SIZE = 1400  # bytes
NUMBER = struct.Struct("!Q")
QUIET = 0.5  # seconds without a datagram, after which no more come: longer than any queue here
FIRST_WAIT = 30.0  # seconds; a bound for a broken link
RECEIVE_BUFFER = 64 << 20  # bytes: what arrives is not lost at the end of its way
PAUSE = 0.001  # seconds between bursts, so that the devices' queues never fill


def main(kind: str, *arguments: str) -> None:
    if kind.endswith("-sink"):
        sink = {"tcp-sink": tcp_sink, "udp-sink": udp_sink}[kind]
        sink(int(arguments[0]))
        return
    address = (arguments[0], int(arguments[1]))
    numbers = [int(argument) for argument in arguments[2:]]
    sources: dict[str, Callable[..., None]] = {"tcp-source": tcp_source, "udp-source": udp_source}
    sources[kind](address, *numbers)


def tcp_sink(port: int) -> None:
    with socket.create_server(("", port)) as server:
        print(READY, flush=True)
        connection, _ = server.accept()
        digest, size, started_at = hashlib.sha256(), 0, 0.0
        with connection:
            while data := connection.recv(1 << 20):
                started_at = started_at or time.perf_counter()
                digest.update(data)
                size += len(data)
            seconds = time.perf_counter() - started_at
    print(json.dumps({"bytes": size, "seconds": seconds, "sha256": digest.hexdigest()}))


def tcp_source(address: tuple[str, int], size: int) -> None:
    data = random.Random(size).randbytes(size)
    with socket.create_connection(address) as connection:
        connection.sendall(data)
    print(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}))


def udp_sink(port: int) -> None:
    count = inversions = damaged = size = 0
    highest, first_at, last_at = -1, 0.0, 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.bind(("", port))
        sock.settimeout(FIRST_WAIT)
        print(READY, flush=True)
        while (data := _recv(sock)) is not None:
            sock.settimeout(QUIET)
            last_at = time.perf_counter()
            first_at = first_at or last_at
            number = NUMBER.unpack_from(data)[0]
            damaged += data != _datagram(number, len(data))
            inversions += number < highest
            highest = max(highest, number)
            count += 1
            size += len(data)
    row = {"count": count, "inversions": inversions, "damaged": damaged, "bytes": size}
    print(json.dumps({**row, "seconds": last_at - first_at}))


def _recv(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65536)
    except TimeoutError:
        return None


def udp_source(
    address: tuple[str, int], count: int, segments: int, size: int = DATAGRAM_SIZE
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if segments > 1:
            sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for first in range(0, count, segments):
            numbers = range(first, min(first + segments, count))
            sock.sendto(b"".join(_datagram(number, size) for number in numbers), address)
            time.sleep(PAUSE)
    print(json.dumps({"count": count}))


def _datagram(number: int, size: int) -> bytes:
    head = NUMBER.pack(number)
    return head + bytes([number % 251]) * (size - len(head))


if __name__ == "__main__":
    main(*sys.argv[1:])
