"""How fast each engine is, without sockets: `python -m tests.benchmarks.bench_fastpath`.

Prints one JSON line with rates for both engines and how many times the compiled one is faster.
Numbers for people to read; nothing asserts them. All rates are per second of one core.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # run as a file, too
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.hostile import Target, nasty_packets

ENGINES = {"python": "comfy_cluster._fastpath_py", "compiled": "comfy_cluster._fastpath"}
SECONDS = 0.5  # each measurement goes on for so long
A, B = ("10.0.0.1", 1), ("10.0.0.2", 2)


def rate(work: Callable[[], int]) -> float:
    """Return units a second; `work` returns how many units one call did."""
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        done += work()
    return round(done / (time.perf_counter() - started), 1)


def connected_pair(engine: ModuleType, packet_size: int) -> tuple[Any, Any]:
    cores = engine.PacketEngine(), engine.PacketEngine()
    for index, core in enumerate(cores):
        core.connect_peer(
            1 - index,
            (B, A)[index],
            local_session=10 + index,
            remote_session=11 - index,
            packet_size=packet_size,
            now=0.0,
        )
    return cores


def transfer(engine: ModuleType, packet_size: int, size: int = 4 << 20) -> Callable[[], int]:
    """Carry one buffer from engine to engine, packet by packet; units are megabytes."""
    payload = bytes(size)
    chunk_size = engine.chunk_size_for(packet_size)
    ids = iter(range(1 << 40))
    sender, receiver = connected_pair(engine, packet_size)
    now = 0.0

    def work() -> int:
        nonlocal now
        buffer_id, memory = next(ids), bytearray(size)
        receiver.open_incoming(0, buffer_id, memory, size=size, chunk_size=chunk_size)
        sender.open_outgoing(1, buffer_id, b"", payload, chunk_size=chunk_size)
        while not sender.take_events():
            now += 0.0005
            for _, packet in sender.packets_to_send(now):
                receiver.receive_packet(packet, A, now)
            for _, packet in receiver.packets_to_send(now):
                sender.receive_packet(packet, B, now)
        receiver.take_events()
        sender.close_outgoing(buffer_id)
        receiver.close_incoming(buffer_id)
        return size >> 20

    return work


def hostile(engine: ModuleType) -> Callable[[], int]:
    core, _ = connected_pair(engine, 1200)
    core.open_incoming(1, 5, bytearray(40_000), size=40_000, chunk_size=400)
    flood = nasty_packets(random.Random(1), Target(10, 5, 100, 400), count=2000)

    def work() -> int:
        receive = core.receive_packet
        for packet in flood:
            receive(packet, B, 0.0)
        return len(flood)

    return work


def headers(engine: ModuleType) -> Callable[[], int]:
    def work() -> int:
        for counter in range(1000):
            engine.parse_header(engine.pack_header(0xC2, 7, counter))
        return 1000

    return work


def sacks(engine: ModuleType) -> Callable[[], int]:
    words = [2**64 - 1] * 16

    def work() -> int:
        for _ in range(200):
            engine.parse_sack(engine.pack_sack(64 * 16 - 1, 100, 1 << 20, words))
        return 200

    return work


def bitmap(engine: ModuleType) -> Callable[[], int]:
    def work() -> int:
        chunks = engine.ChunkBitmap(2000)
        for index in range(2000):
            chunks.add(index)
        return 2000

    return work


def measure(engine: ModuleType) -> dict[str, float]:
    return {
        "transfer_1200_megabytes": rate(transfer(engine, 1200)),
        "transfer_8952_megabytes": rate(transfer(engine, 8952)),
        "hostile_packets": rate(hostile(engine)),
        "headers_packed_and_parsed": rate(headers(engine)),
        "sacks_packed_and_parsed": rate(sacks(engine)),
        "bitmap_adds": rate(bitmap(engine)),
    }


def main() -> None:
    """Measure each engine that is there."""
    result: dict[str, Any] = {
        "benchmark": "fastpath",
        "machine": platform.machine(),
        "python_version": platform.python_version(),
    }
    for name, module in ENGINES.items():
        try:
            result[name] = measure(import_module(module))
        except ModuleNotFoundError:
            result[name] = None
    if result["python"] and result.get("compiled"):
        ratios = {
            key: result["compiled"][key] / result["python"][key] for key in result["compiled"]
        }
        result["times_faster"] = {key: round(ratio, 1) for key, ratio in ratios.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
