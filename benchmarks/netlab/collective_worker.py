"""One instance of several in hosts of the lab: payloads from one to one, one to all, all to all.

    python -m benchmarks.netlab.collective_worker INDEX HOST:PORT ... --megabytes 25 --rounds 5

Each round begins on all instances at one moment, when instance 0 has heard that all others are
ready. Payloads are raw random bytes; digests are made and checked as always. Prints one JSON
line at its end: how long each round of each way took, as this instance saw it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import threading
import time

from benchmarks.netlab.ours import cpu_seconds
from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig
from comfy_cluster.discovery import StaticDiscovery
from comfy_cluster.discovery.static import resolve_ipv4
from comfy_cluster.protocol.events import PeerConnected
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType, TransferKey

ONE, DIRECT, CHAIN, ALL_GATHER, ALL_DIRECT = WAYS = (
    "one",
    "direct",
    "chain",
    "all-gather ring",
    "all-gather direct",
)
READY, GO = MessageType.EXECUTION_PROGRESS, MessageType.EXECUTE_WORKFLOW
KIND = MessageType.DISTRIBUTE_BUFFER_BROADCAST
TIMEOUT = 300.0  # seconds; for a broken build


class Worker:
    def __init__(self, index: int, addresses: list[tuple[str, int]], *, megabytes: float) -> None:
        self.index = index
        self.others = [each for each in range(len(addresses)) if each != index]
        self.payload = EncodedPayload(b"", memoryview(os.urandom(int(megabytes * 1e6))), "raw")
        self.transport = Transport(ClusterConfig.static(index, addresses))
        self._signals: queue.Queue[None] = queue.Queue()
        self._connected = threading.Semaphore(0)
        self.transport.add_peer_listener(
            lambda event: self._connected.release() if isinstance(event, PeerConnected) else None
        )
        for kind in (READY, GO):
            self.transport.add_message_listener(kind, lambda peer, payload: self._signals.put(None))
        self.transport.start()
        self._discovery = StaticDiscovery(addresses, index, resolve=resolve_ipv4)
        self._discovery.start(self.transport.add_member)

    def close(self) -> None:
        self._discovery.close()
        self.transport.close()

    def wait_until_connected(self) -> None:
        for _ in self.others:
            if not self._connected.acquire(timeout=TIMEOUT):
                raise TimeoutError(f"instance {self.index} is not connected to all others")

    def run(self, way: str, number: int) -> float:
        """One round; its seconds."""
        sources = [*self.others, self.index] if way in (ALL_GATHER, ALL_DIRECT) else [0]
        takers = [1] if way == ONE else [0, *range(1, 1 + len(self.others))]
        arriving: list[Handle[ReceivedBuffer]] = [
            self.transport.receive_buffer(_key(way, number, source), peer=source)
            for source in sources
            if source != self.index and self.index in takers
        ]
        self.meet()
        started_at = time.monotonic()
        sending = self._send(way, number) if self.index in sources else []
        for sent in sending:
            sent.result(TIMEOUT)
        for received in arriving:
            received.result(TIMEOUT).release()
        return time.monotonic() - started_at

    def _send(self, way: str, number: int) -> list[Handle[None]]:
        key = _key(way, number, self.index)
        after = [each for each in self.others if each > self.index]
        peers = [1] if way == ONE else after + [each for each in self.others if each < self.index]
        if way in (CHAIN, ALL_GATHER):
            sent = self.transport.send_chain(peers, key, self.payload, message_type=KIND)
            return list(sent.values())
        return [
            self.transport.send_buffer(peer, key, self.payload, message_type=KIND) for peer in peers
        ]

    def meet(self) -> None:
        """Wait until all instances are here."""
        if self.index:
            self.transport.send_message(0, READY, b"")
            self._signals.get(timeout=TIMEOUT)
            return
        for _ in self.others:
            self._signals.get(timeout=TIMEOUT)
        for peer in self.others:
            self.transport.send_message(peer, GO, b"")


def _key(way: str, number: int, source: int) -> TransferKey:
    return TransferKey("netlab", way, list_index=number, source=source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("index", type=int)
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--megabytes", type=float, default=25.0, help="of one payload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    pairs = [text.rpartition(":") for text in options.addresses]
    addresses = [(hostname, int(port)) for hostname, _, port in pairs]
    worker = Worker(options.index, addresses, megabytes=options.megabytes)
    try:
        worker.wait_until_connected()
        seconds: dict[str, list[float]] = {way: [] for way in options.ways}
        cpu = dict.fromkeys(options.ways, 0.0)
        for number in range(-1, options.rounds):  # the first round of each only finds the rate
            for way in options.ways:
                cpu_before = cpu_seconds()
                taken = worker.run(way, number + 1)
                seconds[way] += [taken] if number >= 0 else []
                cpu[way] += cpu_seconds() - cpu_before if number >= 0 else 0.0
        worker.meet()  # who leaves earlier ends what it sends on
        stats = worker.transport.stats()
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "stats": stats}), flush=True)
    finally:
        worker.close()


if __name__ == "__main__":
    main()
