"""An instance in a host of a lab that asks a STUN server for its address, and prints each one.

    python -m tests.netlab.reflexive PORT SERVER SERVER_PORT

Prints JSON lines, and ends with its standard input. Imports no torch.
"""

from __future__ import annotations

import json
import sys

from comfy_cluster.config import ClusterConfig, RegistrationMode
from comfy_cluster.discovery.reflexive import ReflexiveAddress
from comfy_cluster.transport.transport import Transport

INTERVAL = (1.5, 2.0)  # seconds; the lab's NAT forgets within one


def tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main(port: str, server: str, server_port: str) -> None:
    config = ClusterConfig(
        instance_count=2,
        registration_mode=RegistrationMode.BROADCAST,
        direct_listen_port=int(port),
    )
    transport = Transport(config)
    keeper = ReflexiveAddress(
        config,
        [(server, int(server_port))],
        ask=transport.ask_reflexive,
        on_change=lambda address: tell(
            address=address,
            candidates=[(each.type, each.address, each.port) for each in keeper.candidates()],
        ),
        interval=INTERVAL,
    )
    transport.start()
    try:
        keeper.start()
        sys.stdin.read()
        tell(failure=str(transport.failure or ""), stats=transport.stats())
    finally:
        keeper.close()
        transport.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
