"""Broadcasts and all-gathers along chains of whole cores on the simulated network."""

from __future__ import annotations

import random

from tests.core_instance import CoreCluster, address_of, endings, key_of
from tests.simnet import Link

LINK = Link(delay=0.002, rate=625_000.0, queue_size=30_000)
SIZE = 100_000
CONTENT = random.Random(3).randbytes(SIZE)
STATED_TIME = 3.0 + 0.6  # INSTANCE_TIMEOUT and what follows a loss


def broadcast(cluster: CoreCluster, *, is_claimed: bool = True, name: str = "a") -> dict[int, int]:
    others = list(range(1, cluster.count))
    for index in others:
        if is_claimed:
            cluster.claim(index, name, 0)
    return cluster.send_chain(0, others, name, CONTENT)


def have_it(cluster: CoreCluster, *indexes: int) -> bool:
    return all(key_of("a", 0) in cluster.instances[index].contents for index in indexes)


def all_ended(cluster: CoreCluster, transfers: dict[int, int], source: int = 0) -> bool:
    ends = endings(cluster.instances[source])
    return all(transfer_id in ends for transfer_id in transfers.values())


def sent_by_origin(cluster: CoreCluster) -> int:
    return sum(
        cluster.network.direction(address_of(0), address_of(index)).counts.bytes
        for index in cluster.instances
        if index
    )


def assert_clean(cluster: CoreCluster) -> None:
    """Nothing is left anywhere, and nothing is sent but signs of life."""
    cluster.run_for(1.0)
    before = cluster.network.counts.bytes
    for index, instance in cluster.instances.items():
        endpoint = instance.endpoint
        left = {
            "memory": instance.memory.used,
            "chains": len(endpoint._chains),
            "relays": len(endpoint._relays),
            "routes": len(endpoint._incoming._routes),
            "store": len(endpoint._incoming._store),
            "budget": endpoint._incoming._store._budget.used,
            "outgoing": len(endpoint._outgoing) + endpoint._outgoing._budget.used,
        }
        assert not any(left.values()), (index, left)
    cluster.run_for(2.0)
    assert cluster.network.counts.bytes - before < 20_000 * len(cluster.instances)
