"""One payload along a chain of instances: each gets it once, whoever drops out or corrupts it."""

from __future__ import annotations

import random
from functools import partial
from types import ModuleType

import pytest

from comfy_cluster import errors
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
    RelayLate,
)
from comfy_cluster.wire import MessageType
from tests.core_instance import CoreCluster, address_of, endings, key_of, only_error
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


@pytest.mark.parametrize("count", [2, 3, 8])
def test_everybody_gets_it_and_the_origin_sends_it_once(engine: ModuleType, count: int) -> None:
    cluster = CoreCluster(engine, count=count, link=LINK)
    cluster.connect()
    cluster.run_for(2.0)  # until the paths' packet sizes are known: that costs some packets too
    before = sent_by_origin(cluster)
    transfers = broadcast(cluster)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=10.0)
    for index in range(1, count):
        assert cluster.instances[index].contents == {key_of("a", 0): CONTENT}
        assert not cluster.instances[index].seen(IncomingFailed)
    assert len(cluster.instances[0].seen(BufferSent)) == count - 1
    assert sent_by_origin(cluster) - before < 1.6 * SIZE  # what is sent again included
    assert_clean(cluster)


def test_a_chain_takes_little_longer_than_one_transfer(engine: ModuleType) -> None:
    moments = []
    for targets in ([1], [1, 2, 3, 4, 5, 6, 7]):
        cluster = CoreCluster(engine, count=8, link=LINK)
        cluster.connect()
        started = cluster.now
        for index in targets:
            cluster.claim(index, "a", 0)
        transfers = cluster.send_chain(0, targets, "a", CONTENT)
        cluster.run_until(partial(all_ended, cluster, transfers), time_limit=10.0)
        moments.append(cluster.now - started)
    assert moments[1] < 1.5 * moments[0]


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_reordering_change_nothing(engine: ModuleType, seed: int) -> None:
    link = Link(delay=0.005, jitter=0.01, loss=0.05, duplication=0.05, rate=5_000_000.0)
    cluster = CoreCluster(engine, count=5, link=link, seed=seed)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=60.0)
    assert have_it(cluster, 1, 2, 3, 4)
    assert len(cluster.instances[0].seen(BufferSent)) == 4
    assert_clean(cluster)


# 0.0: before anything is announced; 0.003: announced; then in mid-data, and about its end.
@pytest.mark.parametrize("alive_for", [0.0, 0.003, 0.007, 0.05, 0.1, 0.165, 0.17, 0.175, 0.18])
@pytest.mark.parametrize("victim", [1, 2, 4])
def test_a_dead_member_fails_alone(engine: ModuleType, victim: int, alive_for: float) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(alive_for)
    dead = cluster.instances[victim]
    cluster.kill(victim)
    survivors = [index for index in (1, 2, 3, 4) if index != victim]
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=STATED_TIME + 1.0)
    ends = endings(cluster.instances[0])
    for index in survivors:
        assert cluster.instances[index].contents == {key_of("a", 0): CONTENT}
        assert ends[transfers[index]] == ["BufferSent"]
        assert not cluster.instances[index].seen(IncomingFailed)
    if key_of("a", 0) not in dead.contents:
        error = only_error(cluster.instances[0].seen(BufferFailed))
        assert isinstance(error, errors.PeerLost) and error.peer == victim
    assert_clean(cluster)


@pytest.mark.parametrize("alive_for", [0.05, 0.1])
def test_two_dead_members_fail_alone(engine: ModuleType, alive_for: float) -> None:
    cluster = CoreCluster(engine, count=7, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(alive_for)
    cluster.kill(2)
    cluster.kill(3)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=STATED_TIME + 1.0)
    assert have_it(cluster, 1, 4, 5, 6)
    failed = cluster.instances[0].seen(BufferFailed)
    assert {event.buffer_id for event in failed} == {transfers[2], transfers[3]}
    assert_clean(cluster)


def test_a_goodbye_re_routes_at_once(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(0.05)
    leaving = cluster.instances[2]
    leaving.endpoint.close(cluster.now)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=1.0)
    assert have_it(cluster, 1, 3, 4)


@pytest.mark.parametrize("alive_for", [0.0, 0.05, 0.12])
def test_a_dead_origin_fails_the_claims(engine: ModuleType, alive_for: float) -> None:
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    broadcast(cluster)
    cluster.run_for(alive_for)
    cluster.kill(0)
    cluster.run_for(STATED_TIME)
    for instance in cluster.instances.values():
        if key_of("a", 0) not in instance.contents:
            error = only_error(instance.seen(IncomingFailed))
            assert isinstance(error, errors.PeerLost) and error.peer == 0
    assert_clean(cluster)


@pytest.mark.parametrize("corrupt_at", [(1,), (2,), (4,), (2, 3), (1, 2, 3, 4)])
def test_a_damaged_payload_is_repaired(engine: ModuleType, corrupt_at: tuple[int, ...]) -> None:
    """Each of these finds the digest wrong once, wherever it is in the chain."""
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    for index in corrupt_at:
        cluster.instances[index].rejections = 1
    transfers = broadcast(cluster)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=5.0)
    assert have_it(cluster, 1, 2, 3, 4)
    assert len(cluster.instances[0].seen(BufferSent)) == 4
    for instance in cluster.instances.values():
        assert not instance.seen(IncomingFailed)
    assert_clean(cluster)


def test_a_member_that_always_finds_it_damaged_fails_alone(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    cluster.instances[2].rejections = 2
    transfers = broadcast(cluster)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=5.0)
    assert have_it(cluster, 1, 3, 4)
    error = only_error(cluster.instances[0].seen(BufferFailed))
    assert isinstance(error, errors.CorruptPayload) and "instance 2" in str(error)
    assert isinstance(only_error(cluster.instances[2].seen(IncomingFailed)), errors.CorruptPayload)
    assert_clean(cluster)


@pytest.mark.parametrize("pair", [(1, 2), (3, 4), (2, 3)])
def test_members_that_cannot_reach_each_other(engine: ModuleType, pair: tuple[int, int]) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    first, second = map(address_of, pair)
    cluster.network.set_link(first, second, Link(loss=1.0))
    cluster.network.set_link(second, first, Link(loss=1.0))
    cluster.run_for(3.0)
    transfers = broadcast(cluster)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=2.0)
    assert have_it(cluster, 1, 2, 3, 4)
    assert len(cluster.instances[0].seen(BufferSent)) == 4
    assert_clean(cluster)


@pytest.mark.parametrize("moment", [0.003, 0.05, 0.1])
def test_members_whose_path_breaks(engine: ModuleType, moment: float) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(moment)
    cluster.network.set_link(address_of(2), address_of(3), Link(loss=1.0))
    cluster.network.set_link(address_of(3), address_of(2), Link(loss=1.0))
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=STATED_TIME + 1.0)
    assert have_it(cluster, 1, 2, 3, 4)
    assert len(cluster.instances[0].seen(BufferSent)) == 4
    assert_clean(cluster)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05, 0.12])
def test_the_origin_may_cancel_at_any_time(engine: ModuleType, delay: float) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(delay)
    for transfer_id in transfers.values():
        assert cluster.instances[0].endpoint.cancel_buffer(transfer_id, cluster.now)
    cluster.run_for(1.0)
    assert not have_it(cluster, 4)
    for event in cluster.instances[0].seen(BufferFailed):
        assert isinstance(event.error, errors.TransferCancelled)
    if delay > 0.02:  # all of them have heard of it
        for index in (1, 2, 3, 4):
            error = only_error(cluster.instances[index].seen(IncomingFailed))
            assert isinstance(error, errors.TransferCancelled) and error.peer == 0
    for index in (1, 2, 3, 4):
        cluster.instances[index].endpoint.end_job("job", cluster.now)
    assert_clean(cluster)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05, 0.12])
@pytest.mark.parametrize("member", [1, 2, 4])
def test_one_transfer_of_a_chain_may_be_cancelled(
    engine: ModuleType, member: int, delay: float
) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(delay)
    assert cluster.instances[0].endpoint.cancel_buffer(transfers[member], cluster.now)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=3.0)
    assert have_it(cluster, *({1, 2, 3, 4} - {member}))
    error = only_error(cluster.instances[0].seen(BufferFailed))
    assert isinstance(error, errors.TransferCancelled) and error.peer == member
    cluster.run_for(0.5)
    assert not have_it(cluster, member)
    cluster.instances[member].endpoint.end_job("job", cluster.now)
    assert_clean(cluster)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.05, 0.12])
@pytest.mark.parametrize("member", [1, 3, 4])
def test_a_member_may_end_the_job_at_any_time(
    engine: ModuleType, member: int, delay: float
) -> None:
    cluster = CoreCluster(engine, count=5, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(delay)
    cluster.instances[member].endpoint.end_job("job", cluster.now)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=3.0)
    assert have_it(cluster, *({1, 2, 3, 4} - {member}))
    error = only_error(cluster.instances[0].seen(BufferFailed))
    assert isinstance(error, errors.TransferCancelled) and error.peer == member
    assert_clean(cluster)


def test_the_origin_may_end_the_job(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(0.05)
    cluster.instances[0].endpoint.end_job("job", cluster.now)
    cluster.run_for(0.5)
    assert all_ended(cluster, transfers)
    assert_clean(cluster)


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


def test_a_stopped_member_is_gone_round(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(0.05)
    stopped = cluster.instances[2]
    cluster.network.detach(address_of(2))
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=STATED_TIME + 1.0)
    assert have_it(cluster, 1, 3)
    cluster.network.attach(address_of(2), stopped)
    cluster.run_until(lambda: bool(stopped.seen(IncomingFailed)), time_limit=5.0)
    cluster.connect()
    assert_clean(cluster)


def test_a_second_announcement_is_answered_and_not_delivered(engine: ModuleType) -> None:
    """The answer of instance 3 to the origin is lost with its connection to instance 2."""
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    to_origin = (address_of(3), address_of(0))
    cluster.run_for(0.01)
    cluster.network.set_link(*to_origin, Link(loss=1.0))
    cluster.run_until(partial(have_it, cluster, 3), time_limit=2.0)
    cluster.kill(2)
    cluster.run_for(2.0)  # instance 3 is not lost yet
    cluster.network.set_link(*to_origin, LINK)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=3.0)
    assert endings(cluster.instances[0])[transfers[3]] == ["BufferSent"]
    assert len(cluster.instances[3].seen(BufferArrived)) == 1
    assert_clean(cluster)


def test_two_origins_at_once(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    for index in (1, 2, 3):
        cluster.claim(index, "a", 0)
    for index in (0, 1, 2):
        cluster.claim(index, "b", 3)
    first = cluster.send_chain(0, [1, 2, 3], "a", CONTENT)
    second = cluster.send_chain(3, [2, 1, 0], "b", CONTENT[::-1])
    cluster.run_until(
        lambda: all_ended(cluster, first, 0) and all_ended(cluster, second, 3), time_limit=5.0
    )
    for index, instance in cluster.instances.items():
        wanted = {key_of("a", 0): CONTENT, key_of("b", 3): CONTENT[::-1]}
        assert instance.contents == {key: wanted[key] for key in wanted if key.source != index}
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


def test_a_chain_is_a_buffer_of_any_collective(engine: ModuleType) -> None:
    cluster = CoreCluster(engine, count=3, link=LINK)
    cluster.connect()
    broadcast(cluster)
    cluster.run_until(partial(have_it, cluster, 1, 2), time_limit=5.0)
    for index in (1, 2):
        (arrived,) = cluster.instances[index].seen(BufferArrived)
        assert arrived.message_type is MessageType.DISTRIBUTE_BUFFER_BROADCAST


@pytest.mark.parametrize("size", [0, 1, 899, 2_000])
def test_small_payloads_go_along_a_chain_too(engine: ModuleType, size: int) -> None:
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    transfers = cluster.send_chain(0, [1, 2, 3], "a", CONTENT[:size])
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=5.0)
    for index in (1, 2, 3):
        assert cluster.instances[index].contents == {key_of("a", 0): CONTENT[:size]}
    assert_clean(cluster)
