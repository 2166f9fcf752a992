"""Round trips of small packets while something else uses the link: ICMP echo, answered by a kernel.

    python -m benchmarks.netlab.echo ADDRESS --seconds 5

Prints one JSON line. Needs root, for the raw socket.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import time

ECHO_REQUEST, ECHO_REPLY = 8, 0
HEADER = struct.Struct("!BBHHH")  # RFC 792: type, code, checksum, identifier, sequence number
LAST_WAIT = 1.0  # seconds for the last answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--interval", type=float, default=0.02)
    options = parser.parse_args()
    trips, sent = _round_trips(options.address, options.seconds, options.interval)
    print(json.dumps(_summary(trips, sent)), flush=True)


def _round_trips(address: str, seconds: float, interval: float) -> tuple[list[float], int]:
    identifier = os.getpid() & 0xFFFF
    sent_at: list[float] = []
    trips: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        start = time.perf_counter()
        end = start + seconds + LAST_WAIT
        while (now := time.perf_counter()) < end and len(trips) < int(seconds / interval):
            if len(sent_at) * interval <= now - start < seconds:
                sock.sendto(_request(identifier, len(sent_at)), (address, 0))
                sent_at.append(now)
            sock.settimeout(max(1e-4, min(end, start + len(sent_at) * interval) - now))
            try:
                packet = sock.recv(2048)
            except (TimeoutError, BlockingIOError):
                if now - start >= seconds and len(trips) == len(sent_at):
                    break
                continue
            arrived_at = time.perf_counter()
            number = _answered(packet, identifier)
            if number is not None and number < len(sent_at):
                trips.append(arrived_at - sent_at[number])
    return trips, len(sent_at)


def _request(identifier: int, number: int) -> bytes:
    header = HEADER.pack(ECHO_REQUEST, 0, 0, identifier, number)
    total = sum(struct.unpack("!4H", header))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return HEADER.pack(ECHO_REQUEST, 0, checksum, identifier, number)


def _answered(packet: bytes, identifier: int) -> int | None:
    header_size = (packet[0] & 0x0F) * 4
    kind, _, _, to, number = HEADER.unpack_from(packet, header_size)
    return int(number) if kind == ECHO_REPLY and to == identifier else None


def _summary(trips: list[float], sent: int) -> dict[str, float | int | None]:
    if not trips:
        return {"sent": sent, "answered": 0, "min_ms": None, "median_ms": None, "p95_ms": None}
    ordered = sorted(1e3 * trip for trip in trips)
    return {
        "sent": sent,
        "answered": len(ordered),
        "min_ms": ordered[0],
        "median_ms": statistics.median(ordered),
        "p95_ms": ordered[int(len(ordered) * 0.95)],
    }


if __name__ == "__main__":
    main()
