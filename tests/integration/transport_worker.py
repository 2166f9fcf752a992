"""One process of a cluster: `python transport_worker.py '{"index": 0, "ports": [...], ...}'`.

Run by test_processes.py. What it finds goes to stdout, one JSON object a line; stderr stays empty.
Sizes and bytes follow from round, sender and receiver, so that each side knows what must come.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.errors import PeerLost, TransferError
from comfy_cluster.protocol import PeerConnected
from comfy_cluster.transport.digests import SMALL_PAYLOAD
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.peer_info import PeerInfo
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType, TransferKey

FANIN = MessageType.DISTRIBUTE_BUFFER_FANIN
WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
LARGE = 8_000_000  # bytes of a payload that is in flight for a while


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class Worker:
    def __init__(
        self,
        index: int,
        ports: list[int],
        shared_memory: SharedMemory,
        hostnames: list[str] | None = None,
    ) -> None:
        self.index = index
        self.peers = [peer for peer in range(len(ports)) if peer != index]
        hostnames = hostnames or ["127.0.0.1"] * len(ports)
        addresses = list(zip(hostnames, ports, strict=True))
        config = ClusterConfig.static(index, addresses)
        config = replace(config, shared_memory=shared_memory)
        self.transport = Transport(config)
        self._connected: set[int] = set()
        self._changed = threading.Condition()
        self.transport.add_peer_listener(self._on_event)
        self.transport.start()
        for peer in self.peers:
            self.transport.add_member(peer, addresses[peer])
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._connected) == len(self.peers), WAIT)

    def _on_event(self, event: object) -> None:
        if isinstance(event, PeerConnected):
            with self._changed:
                self._connected.add(event.peer)
                self._changed.notify_all()

    def key(self, source: int, target: int, number: int) -> TransferKey:
        return TransferKey("job", f"to {target}", list_index=number, source=source)

    def send(self, target: int, number: int, data: bytes) -> Any:
        payload = EncodedPayload(data[:64], memoryview(data)[64:], "raw")
        key = self.key(self.index, target, number)
        return self.transport.send_buffer(target, key, payload, message_type=FANIN)

    def receive(self, source: int, number: int) -> Any:
        key = self.key(source, self.index, number)
        return self.transport.receive_buffer(key, peer=source)


def data_of(seed: int, number: int, source: int, target: int) -> bytes:
    rng = random.Random(f"{seed} {number} {source} {target}")
    largest = rng.choice([2000, *[200_000] * 8, 2 * SMALL_PAYLOAD])
    return rng.randbytes(rng.randrange(largest))


def usage(worker: Worker) -> dict[str, int]:
    """Each segment of shared memory has a descriptor; how many there are depends on timing.

    Workers open a file for a moment: the smallest of several looks counts.
    """
    process = psutil.Process()
    descriptors = []
    for _ in range(20):
        segments = worker.transport.stats().get("shared_memory_segments", 0)
        descriptors.append(process.num_fds() - segments)
        time.sleep(0.01)
    # The worker threads, a fixed number, start with the first large payload.
    workers = sum("worker" in thread.name for thread in threading.enumerate())
    memory = process.memory_info()
    return {
        "threads": process.num_threads() - workers,
        "descriptors": min(descriptors),
        "private_memory": memory.rss - getattr(memory, "shared", 0),  # segments are kept on purpose
    }


def shared_bytes_of(worker: Worker) -> int:
    return worker.transport.stats().get("shared_memory_bytes_received", 0)


def segments_held() -> int:
    """Mappings and descriptors of segments that this process has."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else ""
    descriptors = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            descriptors += "memfd:comfy-cluster" in os.readlink(path)
    return maps.count("memfd:comfy-cluster") + descriptors


def run_rounds(worker: Worker, *, rounds: int, warm_up: int, seed: int) -> None:
    """Every round each instance sends to each other one, and checks what it receives."""
    before: dict[str, int] = {}
    for number in range(rounds):
        if number == warm_up:
            before = usage(worker)
        received = {peer: worker.receive(peer, number) for peer in worker.peers}
        sent = [
            worker.send(peer, number, data_of(seed, number, worker.index, peer))
            for peer in worker.peers
        ]
        for peer, handle in received.items():
            buffer = handle.result(WAIT)
            expected = data_of(seed, number, peer, worker.index)
            assert buffer.data == expected, f"round {number} from {peer}"
            buffer.release()
        for handle in sent:
            handle.result(WAIT)
    tell(before=before, after=usage(worker), shared_bytes=shared_bytes_of(worker))
    worker.transport.close()


def run_until_lost(worker: Worker, *, shared_bytes: int = 0) -> None:
    """Sends and receives large payloads until a peer is lost, and tells what the handles say.

    It is running once that many bytes came through shared memory.
    """
    is_running = False
    data = bytes(LARGE)
    number = 0
    errors: list[TransferError] = []
    while not errors:
        handles = [worker.receive(peer, number) for peer in worker.peers]
        handles += [worker.send(peer, number, data) for peer in worker.peers]
        if number and not is_running and shared_bytes_of(worker) >= shared_bytes:
            is_running = True
            tell(state="running")
        for handle in handles:
            error = handle.exception(WAIT)
            if isinstance(error, TransferError):
                errors.append(error)
        del handles
        number += 1
    lost = {error.peer: str(error) for error in errors if isinstance(error, PeerLost)}
    worker.transport.close()
    tell(lost=lost, segments_left=segments_held())


class Traffic:
    """Large payloads to and from all peers for as long as the process lives."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._data = bytes(LARGE)
        for peer in worker.peers:
            self._send(peer, 0)
            self._receive(peer, 0)
        while min(map(_received_from, worker.transport.peers())) < LARGE:
            time.sleep(0.01)

    def _send(self, peer: int, number: int) -> None:
        self._go_on(self._worker.send(peer, number, self._data), self._send, peer, number)

    def _receive(self, peer: int, number: int) -> None:
        self._go_on(self._worker.receive(peer, number), self._receive, peer, number)

    def _go_on(
        self, handle: Handle[Any], fn: Callable[[int, int], None], peer: int, number: int
    ) -> None:
        def on_done(ended: Handle[Any]) -> None:
            if ended.exception() is None:
                fn(peer, number + 1)

        handle.add_done_callback(on_done)


def _received_from(peer: PeerInfo) -> int:
    return peer.bytes_received + peer.shared_bytes_received


def run_into_exit(worker: Worker) -> None:
    """Ends as a script ends: with transfers in flight, and without closing anything."""
    Traffic(worker)
    tell(state="running")
    sys.stdin.readline()


def run_into_signal(worker: Worker) -> None:
    """Waits for a signal, with transfers in flight."""
    Traffic(worker)
    tell(state="running")
    while True:
        signal.pause()


def run_into_handled_signal(worker: Worker) -> None:
    """The same in a program that turns SIGTERM into an exit, as servers do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    run_into_signal(worker)


def run_waiting(worker: Worker) -> None:
    """The main thread waits in a handle when the signal comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    Traffic(worker)
    never = worker.receive(worker.peers[0], 999_999)
    tell(state="running")
    never.result()


MODES: dict[str, Callable[..., None]] = {
    "rounds": run_rounds,
    "until_lost": run_until_lost,
    "exit": run_into_exit,
    "signal": run_into_signal,
    "handled_signal": run_into_handled_signal,
    "waiting": run_waiting,
}


def main() -> None:
    options = json.loads(sys.argv[1])
    shared_memory = SharedMemory(options.pop("shared_memory"))
    hostnames = options.pop("hostnames", None)
    worker = Worker(options.pop("index"), options.pop("ports"), shared_memory, hostnames)
    MODES[options.pop("mode")](worker, **options)


if __name__ == "__main__":
    assert os.name == "posix"
    main()
