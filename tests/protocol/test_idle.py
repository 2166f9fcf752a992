"""An idle cluster sends heartbeats and nothing else, and wakes for little more."""

from __future__ import annotations

from types import ModuleType

import pytest

from comfy_cluster.protocol import PeerLost
from tests.core_instance import CoreCluster, address_of
from tests.simnet import Link

SECONDS = 300
HEARTBEATS_PER_SECOND = 2


@pytest.mark.parametrize("count", [2, 4])
def test_idle_instances_only_beat(engine: ModuleType, count: int) -> None:
    cluster = CoreCluster(engine, count=count, link=Link(delay=0.001, jitter=0.001))
    cluster.connect()
    cluster.run_for(5.0)
    packets = cluster.network.counts.packets
    wake_ups = dict(cluster.network.wake_ups)
    cluster.run_for(SECONDS)
    beats = count * (count - 1) * HEARTBEATS_PER_SECOND * SECONDS
    assert 0.9 * beats <= cluster.network.counts.packets - packets <= 1.1 * beats
    for index, instance in cluster.instances.items():
        woken = cluster.network.wake_ups[address_of(index)] - wake_ups[address_of(index)]
        assert woken <= 4 * HEARTBEATS_PER_SECOND * SECONDS
        assert not instance.seen(PeerLost)


def test_idle_after_work_is_as_quiet_as_before(engine: ModuleType) -> None:
    """No timer of a finished transfer or message stays behind."""
    cluster = CoreCluster(engine, link=Link(delay=0.001, loss=0.05), seed=4)
    cluster.connect()
    for number in range(20):
        cluster.send(number % 2, 1 - number % 2, f"n{number}", bytes(1000 * number))
        cluster.say(number % 2, 1 - number % 2, bytes(100 * number))
    cluster.run_for(30.0)
    assert sum(len(i.contents) for i in cluster.instances.values()) == 20
    packets, steps = cluster.network.counts.packets, cluster.network.steps
    cluster.run_for(SECONDS)
    beats = 2 * HEARTBEATS_PER_SECOND * SECONDS
    assert cluster.network.counts.packets - packets <= 1.1 * beats
    assert cluster.network.steps - steps <= 4 * beats
