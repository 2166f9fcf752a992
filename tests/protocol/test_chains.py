"""One payload along a chain of instances: each gets it once, whoever drops out or corrupts it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType

import pytest

from comfy_cluster import errors
from comfy_cluster.protocol import (
    BufferArrived,
    BufferFailed,
    BufferSent,
    IncomingFailed,
)
from comfy_cluster.wire import MessageType
from tests.chains import (
    CONTENT,
    LINK,
    SIZE,
    STATED_TIME,
    all_ended,
    assert_clean,
    broadcast,
    have_it,
    sent_by_origin,
)
from tests.core_instance import CoreCluster, address_of, endings, key_of, only_error
from tests.simnet import Link


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
    """Of a payload that is long beside the packets that each hop holds back."""
    link = Link(delay=0.002, rate=6_250_000.0, queue_size=400_000)
    content = CONTENT * (1_000_000 // SIZE)
    moments = []
    for targets in ([1], [1, 2, 3, 4, 5, 6, 7]):
        cluster = CoreCluster(engine, count=8, link=link)
        cluster.connect()
        started = cluster.now
        for index in targets:
            cluster.claim(index, "a", 0)
        transfers = cluster.send_chain(0, targets, "a", content)
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


def test_who_is_behind_one_that_has_everything_needs_no_other_route(engine: ModuleType) -> None:
    """Instance 1 leaves while 2, which has everything, still sends to 3."""
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    slow = Link(delay=0.002, rate=50_000.0, queue_size=20_000)
    cluster.network.set_link(address_of(2), address_of(3), slow)
    transfers = broadcast(cluster)
    origin = cluster.instances[0]
    cluster.run_until(lambda: len(origin.seen(BufferSent)) == 2, time_limit=2.0)
    cluster.instances[1].endpoint.close(cluster.now)
    cluster.run_until(partial(all_ended, cluster, transfers), time_limit=10.0)
    assert len(origin.seen(BufferSent)) == 3
    assert origin.endpoint.stats.routes_broken == 0


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
    assert_told_by_the_origin(cluster)
    assert_clean(cluster)


def test_a_cancel_that_comes_after_the_neighbour_s(engine: ModuleType) -> None:
    """Instance 2 has dropped its half when the origin tells it that nothing more comes."""
    cluster = CoreCluster(engine, count=4, link=LINK)
    cluster.connect()
    transfers = broadcast(cluster)
    cluster.run_for(0.08)
    for index in (2, 3):
        cluster.network.set_link(address_of(0), address_of(index), replace(LINK, delay=0.4))
    for transfer_id in transfers.values():
        assert cluster.instances[0].endpoint.cancel_buffer(transfer_id, cluster.now)
    cluster.run_for(0.2)
    assert not cluster.instances[2].memory.used
    cluster.run_for(1.0)
    assert_told_by_the_origin(cluster)
    assert_clean(cluster)


def assert_told_by_the_origin(cluster: CoreCluster) -> None:
    """Whoever waited knows that nothing comes."""
    for index in range(1, cluster.count):
        error = only_error(cluster.instances[index].seen(IncomingFailed))
        assert isinstance(error, errors.TransferCancelled) and "instance 0" in str(error)


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
