"""Chains where memory is short or a member slow: nobody waits for ever, no budget is exceeded."""

from __future__ import annotations

import random
from functools import partial
from types import ModuleType

import pytest

from comfy_cluster.protocol import BufferSent, RelayLate
from tests.chains import (
    CONTENT,
    LINK,
    SIZE,
    STATED_TIME,
    all_ended,
    assert_clean,
    broadcast,
    have_it,
)
from tests.core_instance import CoreCluster, address_of, endings, key_of
from tests.simnet import Link


def test_nobody_waits_for_a_member_that_has_no_memory(engine: ModuleType) -> None:
    """Instance 1 has not asked for it, and it is more than unclaimed buffers may take."""
    cluster = CoreCluster(engine, count=4, link=LINK, options={"memory_budget": 4 * SIZE - 400})
    cluster.connect()
    for index in (2, 3):
        cluster.claim(index, "a", 0)
    transfers = cluster.send_chain(0, [1, 2, 3], "a", CONTENT)
    cluster.run_until(partial(have_it, cluster, 2, 3), time_limit=1.0)
    assert transfers[1] not in endings(cluster.instances[0])
    cluster.claim(1, "a", 0)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=1.0)
    assert have_it(cluster, 1)
    assert_clean(cluster)


def test_nobody_waits_for_a_successor_that_has_no_memory(engine: ModuleType) -> None:
    """Instance 2 would be sent to by instance 1, which is done long before 2 asks for it."""
    cluster = CoreCluster(engine, count=4, link=LINK, options={"memory_budget": 4 * SIZE - 400})
    cluster.connect()
    for index in (1, 3):
        cluster.claim(index, "a", 0)
    transfers = cluster.send_chain(0, [1, 2, 3], "a", CONTENT)
    cluster.run_until(partial(have_it, cluster, 1, 3), time_limit=2.0)
    cluster.run_for(0.5)
    assert cluster.instances[1].memory.used == 0
    cluster.claim(2, "a", 0)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=1.0)
    assert have_it(cluster, 2)
    assert_clean(cluster)


def test_a_slow_successor_holds_up_nobody_before_it(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=3, link=LINK)
    slow = Link(delay=0.002, rate=100_000.0, queue_size=20_000)
    cluster.connect()
    cluster.network.set_link(address_of(1), address_of(2), slow)
    transfers = broadcast(cluster)
    cluster.run_until(lambda: bool(cluster.instances[1].seen(RelayLate)), time_limit=1.0)
    assert have_it(cluster, 1) and not have_it(cluster, 2)
    assert cluster.instances[1].memory.used >= SIZE  # it is read, and counted, until the end
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=10.0)
    assert cluster.instances[2].contents == {key_of("a", 0): CONTENT}
    assert_clean(cluster)


def ring(cluster: CoreCluster, contents: dict[int, bytes]) -> dict[int, dict[int, int]]:
    """An all-gather: the payload of each instance goes once round."""
    count = cluster.count
    for source in range(count):
        for index in range(count):
            if index != source:
                cluster.claim(index, "a", source)
    return {
        source: cluster.send_chain(
            source, [(source + step) % count for step in range(1, count)], "a", contents[source]
        )
        for source in range(count)
    }


def assert_gathered(cluster: CoreCluster, contents: dict[int, bytes]) -> None:
    for index, instance in cluster.instances.items():
        wanted = {key_of("a", each): contents[each] for each in contents if each != index}
        assert instance.contents == wanted


@pytest.mark.parametrize("budget", [8 * SIZE, 4 * SIZE, 2 * SIZE, SIZE, SIZE // 2])
def test_all_gather_of_eight_ends_however_tight_the_budgets(
    engine: ModuleType, budget: int
) -> None:
    size = SIZE // 4
    contents = {index: random.Random(index).randbytes(size) for index in range(8)}
    options = {"memory_budget": budget // 4}
    cluster = CoreCluster(engine, count=8, link=LINK, options=options)
    cluster.connect()
    transfers = ring(cluster, contents)
    cluster.run_until(
        lambda: all(all_ended(cluster, transfers[each], each) for each in range(8)),
        time_limit=60.0,
    )
    assert_gathered(cluster, contents)
    for instance in cluster.instances.values():
        assert instance.memory.peak <= max(budget // 8, size)
        assert len(instance.seen(BufferSent)) == 7
    assert_clean(cluster)


@pytest.mark.parametrize("seed", range(3))
def test_all_gather_with_loss_and_a_death(engine: ModuleType, seed: int) -> None:
    link = Link(delay=0.003, jitter=0.003, loss=0.02, rate=5_000_000.0)
    contents = {index: random.Random(index).randbytes(100_000) for index in range(5)}
    cluster = CoreCluster(engine, count=5, link=link, seed=seed, options={"memory_budget": 600_000})
    cluster.connect()
    transfers = ring(cluster, contents)
    cluster.run_for(random.Random(seed).random() * 0.2)
    cluster.kill(2)
    others = [0, 1, 3, 4]
    cluster.run_until(
        lambda: all(all_ended(cluster, transfers[each], each) for each in others), time_limit=30.0
    )
    for source in others:
        ends = endings(cluster.instances[source])
        for index in others:
            if index != source:
                assert cluster.instances[index].contents[key_of("a", source)] == contents[source]
                assert ends[transfers[source][index]] == ["BufferSent"]
    cluster.run_for(STATED_TIME)
    assert_clean(cluster)
