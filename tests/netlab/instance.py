"""One instance of ours in a host of a lab: sends one payload to the other one, or receives it.

    python -m tests.netlab.instance INDEX SIZE HOSTNAME:PORT HOSTNAME:PORT

Prints one JSON line with the digest of the payload. Imports no torch, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
from dataclasses import replace

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import ClusterConfig, SharedMemory
from comfy_cluster.protocol.events import PeerConnected
from comfy_cluster.transport.transport import Transport
from comfy_cluster.wire import MessageType, TransferKey

SENDER, RECEIVER = 0, 1
KEY = TransferKey("netlab", "test", source=SENDER)
WAIT = 30.0  # seconds; a bound for a broken build


def main(index: int, size: int, addresses: list[tuple[str, int]]) -> None:
    config = ClusterConfig.static(index, addresses)
    transport = Transport(replace(config, shared_memory=SharedMemory.OFF))
    connected = threading.Event()
    transport.add_peer_listener(
        lambda event: connected.set() if isinstance(event, PeerConnected) else None
    )
    transport.start()
    try:
        transport.add_member(1 - index, addresses[1 - index])
        assert connected.wait(WAIT), "the other instance was not found"
        data = _send(transport, size) if index == SENDER else _receive(transport)
        print(json.dumps({"sha256": hashlib.sha256(data).hexdigest()}), flush=True)
    finally:
        transport.close()


def _send(transport: Transport, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    payload = EncodedPayload(b"", memoryview(data), "raw")
    kind = MessageType.DISTRIBUTE_BUFFER_FANIN
    transport.send_buffer(RECEIVER, KEY, payload, message_type=kind).result(WAIT)
    return data


def _receive(transport: Transport) -> bytes:
    return bytes(transport.receive_buffer(KEY, peer=SENDER).result(WAIT).data)


if __name__ == "__main__":
    pairs = [text.rpartition(":") for text in sys.argv[3:]]
    main(int(sys.argv[1]), int(sys.argv[2]), [(name, int(port)) for name, _, port in pairs])
