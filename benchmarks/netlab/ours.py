"""One instance of this project in a host of the lab: sends payloads again and again, or takes them.

    python -m benchmarks.netlab.ours INDEX HOST:PORT HOST:PORT --megabytes 32 --seconds 5

Instance 0 sends to instance 1. The payload is raw random bytes, so that goodput is the link's and
not a codec's; digests are computed as always. Two payloads are under way at a time, so that the
next one starts while the last chunks of one are acknowledged. Without `--seconds` it sends until
its input ends. Prints SENDING when it begins, and one JSON line at its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import select
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.discovery import StaticDiscovery
from comfy_cluster.discovery.static import resolve_ipv4
from comfy_cluster.errors import PeerLost
from comfy_cluster.protocol.events import PeerConnected
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType, TransferKey

SENDER, RECEIVER = 0, 1
KIND = MessageType.DISTRIBUTE_BUFFER_FANIN
END = MessageType.EXECUTION_RESULT
SENDING = "sending"
TIMEOUT = 120.0  # seconds; for a broken build
IN_ADVANCE = 32  # payloads that the receiver waits for at a time

Arrivals = queue.Queue[Any]  # handles of payloads; None: the sender has ended


@dataclass
class Meter:
    """CPU and wall seconds of a span."""

    started_at: float = field(default_factory=time.monotonic)
    cpu_at_start: float = field(default_factory=lambda: cpu_seconds())

    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    def cpu(self) -> float:
        return cpu_seconds() - self.cpu_at_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("index", type=int, choices=(SENDER, RECEIVER))
    parser.add_argument("addresses", nargs=2)
    parser.add_argument("--megabytes", type=float, default=32.0, help="of one payload")
    parser.add_argument("--seconds", type=float, help="no payload starts later")
    parser.add_argument("--under-way", type=int, default=2, help="payloads at a time")
    options = parser.parse_args()
    pairs = [text.rpartition(":") for text in options.addresses]
    addresses = [(hostname, int(port)) for hostname, _, port in pairs]
    config = ClusterConfig.static(options.index, addresses)
    transport = Transport(replace(config, shared_memory=SharedMemory.OFF))
    connected = threading.Event()
    arrivals: Arrivals = queue.Queue()
    transport.add_peer_listener(
        lambda event: connected.set() if isinstance(event, PeerConnected) else None
    )
    transport.add_message_listener(END, lambda peer, payload: arrivals.put(None))
    transport.start()
    discovery = StaticDiscovery(addresses, options.index, resolve=resolve_ipv4)
    discovery.start(transport.add_member)
    try:
        if not connected.wait(TIMEOUT):
            raise TimeoutError(f"instance {options.index} found no peer at {options.addresses}")
        row = (
            _send(transport, options) if options.index == SENDER else _receive(transport, arrivals)
        )
        print(json.dumps(row), flush=True)
    finally:
        discovery.close()
        transport.close()


def _send(transport: Transport, options: argparse.Namespace) -> dict[str, Any]:
    payload = EncodedPayload(b"", memoryview(os.urandom(int(options.megabytes * 1e6))), "raw")
    under_way: deque[Handle[None]] = deque()
    done_at: list[float] = []
    print(SENDING, flush=True)
    meter, number = Meter(), 0

    def finish_one() -> None:
        under_way.popleft().result(TIMEOUT)
        done_at.append(time.monotonic())

    while not number or not _is_over(meter, options.seconds):
        if len(under_way) == options.under_way:
            finish_one()
        under_way.append(transport.send_buffer(RECEIVER, _key(number), payload, message_type=KIND))
        number += 1
    while under_way:
        finish_one()
    seconds, cpu = meter.elapsed(), meter.cpu()
    row = {
        "bytes": number * payload.size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "payload_size": payload.size,
        "done_at": done_at,
        "peer": asdict(transport.peers()[0]),
        "stats": transport.stats(),
    }
    with contextlib.suppress(PeerLost):  # it had the message, left, and its ACK was lost
        transport.send_message(RECEIVER, END, b"").result(TIMEOUT)
    return row


def _is_over(meter: Meter, seconds: float | None) -> bool:
    if seconds is not None:
        return meter.elapsed() >= seconds
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _receive(transport: Transport, arrivals: Arrivals) -> dict[str, Any]:
    """Until the sender says that all is acknowledged, which comes after the last payload."""

    def ask(number: int) -> None:
        transport.receive_buffer(_key(number), peer=SENDER).add_done_callback(arrivals.put)

    for number in range(IN_ADVANCE):
        ask(number)
    count = size = 0
    meter = Meter()
    while (handle := arrivals.get(timeout=TIMEOUT)) is not None:
        buffer = handle.result()
        size += len(buffer.data)
        buffer.release()
        ask(IN_ADVANCE + count)
        count += 1
    return {"bytes": size, "cpu_seconds": meter.cpu(), "stats": transport.stats()}


def _key(number: int) -> TransferKey:
    return TransferKey("netlab", "link", list_index=number, source=SENDER)


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
