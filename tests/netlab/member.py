"""An instance in a host of a lab that looks for the others, as its environment says.

    python -m tests.netlab.member

Prints one JSON line for each event, and where it stands for each line of its standard input, with
which it ends. Imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from comfy_cluster.config import ClusterConfig
from comfy_cluster.protocol.events import PeerConnected, PeerLost, PeerRefused, StrangerHeard
from comfy_cluster.runtime import build_discovery
from comfy_cluster.transport.transport import Transport

_lock = threading.Lock()


def tell(event: str, **values: object) -> None:
    with _lock:
        print(json.dumps({"event": event, **values}), flush=True)


def main() -> None:
    config = ClusterConfig.from_env(os.environ)
    transport = Transport(config)
    discovery = build_discovery(config)

    def on_event(event: object) -> None:
        if isinstance(event, PeerConnected):
            tell("connected", peer=event.peer, hostname=event.address[0])
            discovery.on_peer_connected(event.peer)
        elif isinstance(event, PeerLost):
            tell("lost", peer=event.peer)
            discovery.on_peer_lost(event.peer)
        elif isinstance(event, StrangerHeard):
            discovery.on_heard(event.peer, event.address, is_observer=event.is_observer)
        elif isinstance(event, PeerRefused):
            tell("refused", peer=event.peer, reason=event.reason)

    transport.add_peer_listener(on_event)
    transport.start()
    try:
        discovery.start(transport.add_member, lambda error: tell("failed", reason=str(error)))
        tell("started")
        for _ in sys.stdin:
            tell("stands", peers=[str(each) for each in transport.peers()], stats=transport.stats())
    finally:
        discovery.close()
        transport.close()


if __name__ == "__main__":
    main()
