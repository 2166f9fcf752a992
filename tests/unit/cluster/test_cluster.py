"""Cluster: its life, its jobs, what it shows, and a cluster of one."""

from __future__ import annotations

import threading

import pytest
import torch

from comfy_cluster.cluster import Cluster, CollectiveKey, InstanceState
from comfy_cluster.config import ClusterConfig, Codec
from comfy_cluster.discovery import FailureListener, MemberListener
from comfy_cluster.errors import (
    DiscoveryError,
    LocalProtocolError,
    TransferCancelled,
    TransferError,
)
from comfy_cluster.protocol.events import StrangerHeard
from tests.unit.cluster.fake_transport import FakeClusters, FakeDiscovery, FakeTransport

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one
KEY = CollectiveKey("job", "7")


def test_cluster_of_one_returns_its_input_and_starts_no_thread(config: ClusterConfig) -> None:
    before = threading.enumerate()
    tensor = torch.zeros(3, 2)
    with Cluster(config) as cluster:
        assert cluster.state is InstanceState.IDLE
        assert cluster.broadcast(KEY, tensor).result(0) is tensor
        assert cluster.fan_out(KEY, tensor).result(0) is tensor
        assert cluster.fan_in(KEY, tensor).result(0) is tensor
        assert cluster.all_gather(KEY, tensor).result(0) == [tensor]
        cluster.wait_until_ready(0)
        cluster.end_job("job")
        assert threading.enumerate() == before
        assert "Connected: 1/1 instances" in cluster.info().text()


def test_cluster_of_one_still_needs_a_tensor(config: ClusterConfig) -> None:
    with Cluster(config) as cluster, pytest.raises(LocalProtocolError, match="got None"):
        cluster.fan_out(KEY)


def test_several_instances_need_a_transport() -> None:
    config = ClusterConfig.static(0, [("127.0.0.1", 1), ("127.0.0.1", 2)])
    with pytest.raises(LocalProtocolError, match="transport"):
        Cluster(config)


def test_life_of_an_instance() -> None:
    with FakeClusters(2) as joined:
        cluster = joined.clusters[0]

        def state() -> str:
            return cluster.state.value

        assert state() == "POPULATING"
        assert joined.network.transports[0].members == {1: ("127.0.0.1", 9001)}
        joined.connect_all(WAIT)
        assert state() == "IDLE"
        with cluster.job("a"):
            assert state() == "EXECUTING"
            with cluster.job("b"):
                pass
            assert state() == "EXECUTING"
        assert state() == "IDLE"
        assert joined.network.transports[0].ended_jobs == ["b", "a"]
        joined.network.lose(1)
        joined.network.connect(0, 1)
        assert joined.network.flush(WAIT)
        assert state() == "IDLE"
        assert joined.discoveries[0].calls == [("connected", 1), ("lost", 1), ("connected", 1)]
    assert joined.network.transports[0].is_closed and joined.discoveries[0].is_closed


def test_a_job_ends_with_its_context_also_after_an_error() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        cluster = joined.clusters[0]
        with pytest.raises(ZeroDivisionError), cluster.job("a"):
            handle = cluster.fan_in(KEY, torch.zeros(1))
            with pytest.raises(LocalProtocolError, match="'a' is under way"), cluster.job("a"):
                pass
            left = cluster.fan_in(CollectiveKey("a", "1"), torch.zeros(1))
            raise ZeroDivisionError
        assert isinstance(left.exception(0), TransferCancelled)
        assert not handle.done()
        assert cluster.state is InstanceState.IDLE


def test_no_job_before_enough_are_connected() -> None:
    with FakeClusters(2) as joined:
        cluster = joined.clusters[0]
        with pytest.raises(LocalProtocolError, match="POPULATING"), cluster.job("a"):
            pass
        joined.connect_all(WAIT)
        with cluster.job("a"):
            pass


def test_min_instances_are_enough() -> None:
    with FakeClusters(3, min_instances=2) as joined:
        joined.network.connect(0, 2)
        joined.clusters[0].wait_until_ready(WAIT)
        assert joined.clusters[0].info().connected_count == 2
        assert not joined.clusters[1].ready.done()


def test_not_ready_names_who_is_missing_and_why() -> None:
    with FakeClusters(4) as joined:
        joined.network.connect(0, 1)
        assert joined.network.flush(WAIT)
        expected = (
            r"Not ready\. Connected: 2/4 instances, 4 are needed; missing: "
            r"instance 2 \(127\.0\.0\.1:9002\), "
            r"instance 3 \(127\.0\.0\.1:9003\) \[cannot resolve its name\]"
        )
        with pytest.raises(DiscoveryError, match=expected):
            joined.clusters[0].wait_until_ready(0)


def test_a_follower_that_loses_the_leader_waits_for_it_again() -> None:
    with FakeClusters(3, min_instances=2) as joined:
        joined.connect_all(WAIT)
        follower = joined.clusters[1]

        def state() -> str:
            return str(follower.state.value)

        with follower.job("a"):
            joined.network.lose(0)
            assert joined.network.flush(WAIT)
            assert state() == "POPULATING" and not follower.ready.done()
            assert joined.clusters[0].state is InstanceState.IDLE
            joined.network.connect(0, 1)
            follower.wait_until_ready(WAIT)
            assert state() == "EXECUTING"  # the old job is not over
        assert state() == "IDLE"
        with follower.job("b"):
            pass
        joined.network.lose(0)
        assert joined.network.flush(WAIT)
        with pytest.raises(DiscoveryError, match=r"missing: instance 0"):
            follower.wait_until_ready(0)
        with pytest.raises(LocalProtocolError, match="POPULATING"), follower.job("c"):
            pass


def test_a_job_of_a_lost_leader_ends_while_it_is_waited_for() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        follower = joined.clusters[1]
        with follower.job("a"):
            joined.network.lose(0)
            assert joined.network.flush(WAIT)
        assert follower.state is InstanceState.POPULATING


def test_followers_are_not_ready_without_the_leader() -> None:
    with FakeClusters(3, min_instances=2) as joined:
        joined.network.connect(1, 2)
        assert joined.network.flush(WAIT)
        assert not joined.clusters[1].ready.done()


def test_what_discovery_cannot_get_over_ends_the_instance() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        cluster = joined.clusters[1]
        handle = cluster.all_gather(KEY, torch.zeros(1))
        joined.discoveries[1].fail(DiscoveryError("index 1 belongs to 10.0.0.9"))
        assert cluster.state is InstanceState.ERROR
        assert isinstance(handle.exception(WAIT), TransferCancelled)
        with pytest.raises(DiscoveryError, match=r"belongs to 10\.0\.0\.9"), cluster.job("b"):
            pass
        assert joined.network.transports[1].is_closed


def test_strangers_are_the_business_of_discovery() -> None:
    with FakeClusters(2) as joined:
        joined.network.transports[0].report(StrangerHeard(1, ("10.0.0.9", 1)))
        looking = StrangerHeard(1, ("10.0.0.8", 1), is_observer=True)
        joined.network.transports[0].report(looking)
        calls = [("heard at 10.0.0.9", 1), ("observer heard at 10.0.0.8", 1)]
        assert joined.discoveries[0].calls == calls


def test_closing_wakes_who_waits_for_the_others() -> None:
    with FakeClusters(2) as joined:
        errors: list[BaseException | None] = []
        ready = joined.clusters[0].ready
        thread = threading.Thread(target=lambda: errors.append(ready.exception(WAIT)))
        thread.start()
        joined.clusters[0].close()
        thread.join()
        assert isinstance(errors[0], TransferCancelled)


def test_collectives_before_start_say_so() -> None:
    joined = FakeClusters(2)
    with pytest.raises(LocalProtocolError, match="start"):
        joined.clusters[0].broadcast(KEY, torch.zeros(1))


def test_a_failed_start_leaves_nothing_open() -> None:
    class BrokenDiscovery(FakeDiscovery):
        def start(self, on_member: MemberListener, on_failure: FailureListener) -> None:
            raise DiscoveryError("no network")

    joined = FakeClusters(2)
    transport = FakeTransport(joined.network, 0)
    cluster = Cluster(joined.clusters[0].config, transport, BrokenDiscovery(0, 2))
    with pytest.raises(DiscoveryError, match="no network"):
        cluster.start()
    assert cluster.state is InstanceState.ERROR
    assert transport.is_closed


def test_a_failed_transport_is_an_error_of_the_instance() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        cluster = joined.clusters[0]
        with cluster.job("a"):
            joined.network.transports[0].failure = OSError("the socket is gone")
            assert cluster.info().state is InstanceState.ERROR
        assert cluster.state is InstanceState.ERROR
        with pytest.raises(LocalProtocolError, match="ERROR"), cluster.job("b"):
            pass


def test_a_failed_transport_wakes_who_waits_for_the_others() -> None:
    with FakeClusters(2) as joined:
        cluster = joined.clusters[0]
        ready = cluster.ready
        joined.network.transports[0].fail(OSError("the socket is gone"))
        assert cluster.state is InstanceState.ERROR
        for failed in (ready, cluster.ready, cluster.ended):
            with pytest.raises(TransferError, match="the socket is gone"):
                failed.result(WAIT)
        with pytest.raises(TransferError, match="the socket is gone"):
            cluster.wait_until_ready(WAIT)


@pytest.mark.parametrize("is_lost_first", [False, True])
def test_a_failed_transport_wakes_who_waits_for_a_lost_leader(is_lost_first: bool) -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        follower, transport = joined.clusters[1], joined.network.transports[1]
        if is_lost_first:
            joined.network.lose(0)
            assert joined.network.flush(WAIT)
            assert not follower.ready.done()
        transport.fail(OSError("the socket is gone"))
        if not is_lost_first:  # the control thread lives on, and hears nothing of anybody any more
            joined.network.lose(0)
            assert joined.network.flush(WAIT)
        assert follower.ready.done()
        assert isinstance(follower.ended.exception(0), TransferError)
        assert follower.state is InstanceState.ERROR


def test_whatever_ends_an_instance_is_told_once() -> None:
    with FakeClusters(3) as joined:
        closed, refused, left = joined.clusters
        joined.network.transports[0].fail(OSError("the socket is gone"))
        joined.discoveries[1].fail(DiscoveryError("index 1 belongs to 10.0.0.9"))
        joined.network.transports[2].close()  # as at an exit
        errors = [each.ended.exception(0) for each in joined.clusters]
        assert [type(each) for each in errors] == [TransferError, DiscoveryError, TransferCancelled]
        assert left.state is InstanceState.POPULATING
        closed.close()
        refused.close()
        assert [each.ended.exception(0) for each in joined.clusters] == errors


def test_closing_ends_an_instance(config: ClusterConfig) -> None:
    with FakeClusters(2) as joined, Cluster(config) as alone:
        assert not joined.clusters[0].ended.done() and not alone.ended.done()
    for cluster in (joined.clusters[0], alone):
        with pytest.raises(TransferCancelled, match="closed on this instance"):
            cluster.ended.result(0)


def test_info_shows_the_cluster_to_its_user() -> None:
    with FakeClusters(3) as joined:
        joined.connect_all(WAIT)
        info = joined.clusters[1].info()
        numbers = "connected, UDP, RTT 1.00 ms, sent 12.3 MB, received 0 B, resent 0 chunks"
        assert (info.instance_index, info.instance_count, info.engine) == (1, 3, "fake")
        assert info.text().splitlines() == [
            "Instance 1 of 3 (FOLLOWER), IDLE",
            "Connected: 3/3 instances (work starts with 3)",
            "Cluster default, registration static, engine fake",
            f"Instance 0 (LEADER): 127.0.0.1:9000, {numbers}",
            f"Instance 2 (FOLLOWER): 127.0.0.1:9002, {numbers}",
            "replayed 2",
        ]


def test_ten_fan_outs_hold_no_more_encoded_copies_than_the_budget_allows() -> None:
    levels = torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3) // 97 % 256
    batch = levels.to(torch.uint8).repeat(2, 1, 1, 1)
    copy_size = 64 * 64 * 3  # bytes that one encoded slice may take
    with FakeClusters(2, memory_budget=2 * (2 * copy_size), codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        network, (leader, follower) = joined.network, joined.clusters
        network.hold()
        keys = [CollectiveKey("job", str(number)) for number in range(10)]
        sent = [leader.fan_out(key, batch) for key in keys]
        assert network.wait_for_parcels(2, WAIT)
        network.let_go()
        received = [follower.fan_out(key) for key in keys]
        assert all(torch.equal(each.result(WAIT), batch[1:]) for each in received)
        assert all(torch.equal(each.result(WAIT), batch[:1]) for each in sent)
        assert 0 < network.largest_encoded_bytes <= 2 * copy_size
        assert network.wait_for_no_copies(WAIT)


def test_what_waits_for_the_budget_can_be_cancelled() -> None:
    batch = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with FakeClusters(2, memory_budget=2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.network.hold()
        leader, follower = joined.clusters
        first, second, third = (
            leader.fan_out(CollectiveKey("job", str(number)), batch) for number in range(3)
        )
        assert joined.network.wait_for_parcels(1, WAIT)
        assert second.cancel() and first.cancel()
        joined.network.let_go()
        assert len(follower.fan_out(CollectiveKey("job", "2")).result(WAIT)) == 1
        assert len(third.result(WAIT)) == 1


def test_raw_payloads_are_the_tensors_memory_and_wait_for_nobody() -> None:
    with FakeClusters(2, memory_budget=2, codec=Codec.RAW) as joined:
        joined.connect_all(WAIT)
        joined.network.hold()
        tensor = torch.zeros(5, 5, 5, 5, 5)
        for number in range(10):
            joined.clusters[0].broadcast(CollectiveKey("job", str(number)), tensor)
        assert joined.network.wait_for_parcels(10, WAIT)
        tensor.fill_(1.0)
        seen = [
            torch.frombuffer(each.payload.body, dtype=torch.float32)
            for each in joined.network.parcels
        ]
        assert all(bool(each.eq(1.0).all()) for each in seen)


def test_codec_work_is_not_done_in_the_callers_thread() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        before = {each.name for each in threading.enumerate()}
        joined.clusters[0].broadcast(KEY, torch.zeros(1))
        joined.clusters[1].broadcast(KEY).result(WAIT)
        assert {each.name for each in threading.enumerate()} - before == {"comfy-cluster-codec-0"}


def test_who_is_told_that_the_cluster_is_ready_can_begin_a_job() -> None:
    found: list[InstanceState] = []
    joined = FakeClusters(2)
    leader = joined.clusters[0]
    leader.ready.add_done_callback(lambda _: found.append(leader.state))
    with joined:
        joined.connect_all(WAIT)
        assert joined.network.flush(WAIT)
        assert found == [InstanceState.IDLE]
