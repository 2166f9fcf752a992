"""The four collectives between several clusters of one process, over a transport in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from comfy_cluster import batches
from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.config import ImagePrecision
from comfy_cluster.errors import (
    CorruptPayload,
    LocalProtocolError,
    PeerLost,
    TransferCancelled,
    UnsupportedTensor,
    WorkflowError,
)
from comfy_cluster.protocol import events
from comfy_cluster.transport.handle import Handle
from comfy_cluster.wire import MessageType
from tests.unit.cluster.fake_transport import FakeClusters

WAIT = 20.0  # seconds; a bound for a broken build, never waited for in a good one


def images(count: int, *, seed: int = 0, size: int = 8) -> torch.Tensor:
    """A batch of 8-bit images as ComfyUI makes them."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, size, size, 3), generator=generator)
    return levels.to(torch.float32) / 255.0


def latents(count: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 6, 5, generator=generator)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("source", [0, 2])
def test_broadcast_reaches_every_instance(source: int) -> None:
    tensor = images(2)
    with FakeClusters(4) as joined:
        handles = [
            each.broadcast(
                CollectiveKey("job", "7"),
                tensor if each.instance_index == source else None,
                source=source,
            )
            for each in joined.clusters
        ]
        assert all(same_bits(handle.result(WAIT), tensor) for handle in handles)
        assert joined.network.sent_types == [MessageType.DISTRIBUTE_BUFFER_BROADCAST] * 3


@pytest.mark.parametrize("item_count", [0, 1, 4, 10])
def test_fan_out_gives_each_its_slice(item_count: int) -> None:
    batch = images(item_count)
    expected = torch.tensor_split(batch, 4)
    with FakeClusters(4) as joined:
        handles = [
            each.fan_out(CollectiveKey("job", "7"), batch if each.is_leader else None)
            for each in joined.clusters
        ]
        slices = [handle.result(WAIT) for handle in handles]
        assert all(same_bits(*pair) for pair in zip(slices, expected, strict=True))
        assert joined.network.sent_types == [MessageType.DISTRIBUTE_BUFFER_FANOUT] * 3


def test_fan_in_joins_in_instance_order_whatever_arrives_first() -> None:
    parts = [latents(count, seed=count) for count in (3, 3, 2, 0)]
    with FakeClusters(4, seed=5) as joined:
        key = CollectiveKey("job", "9")
        handles = [each.fan_in(key, parts[each.instance_index]) for each in joined.clusters[::-1]]
        results = [handle.result(WAIT) for handle in handles[::-1]]
        assert same_bits(results[0], torch.cat(parts))
        assert all(results[index] is parts[index] for index in (1, 2, 3))


def test_fan_in_waits_for_its_sources_only() -> None:
    parts = [latents(1, seed=index) for index in range(4)]
    with FakeClusters(4) as joined:
        handles = [
            each.fan_in(CollectiveKey("job", "9"), parts[each.instance_index], sources=[3, 1])
            for each in joined.clusters
        ]
        assert same_bits(handles[0].result(WAIT), torch.cat([parts[1], parts[3]]))
        assert handles[2].result(WAIT) is parts[2]
        assert joined.network.sent_types == [MessageType.DISTRIBUTE_BUFFER_FANIN] * 2


def test_all_gather_gives_everyone_everything() -> None:
    tensors = [images(1, seed=index, size=4 + index) for index in range(3)]
    with FakeClusters(3) as joined:
        key = CollectiveKey("job", "11")
        handles = [each.all_gather(key, tensors[each.instance_index]) for each in joined.clusters]
        for handle in handles:
            gathered = handle.result(WAIT)
            assert all(same_bits(*pair) for pair in zip(gathered, tensors, strict=True))
        assert joined.network.sent_types == [MessageType.DISTRIBUTE_BUFFER_GATHER] * 6


@dataclass(frozen=True)
class Call:
    """One collective of the mixed test: what every instance does, and what it must get."""

    kind: str
    key: CollectiveKey
    parts: list[torch.Tensor]

    @property
    def whole(self) -> torch.Tensor:
        return torch.cat(self.parts)

    def start(self, cluster: Cluster) -> Handle[list[torch.Tensor]]:
        own = self.parts[cluster.instance_index]
        if self.kind == "all_gather":
            return cluster.all_gather(self.key, own)
        if self.kind == "broadcast":
            handle = cluster.broadcast(self.key, self.whole)
        elif self.kind == "fan_out":
            handle = cluster.fan_out(self.key, self.whole)
        else:
            handle = cluster.fan_in(self.key, own)
        return handle.then(lambda result: [result])

    def expected(self, index: int) -> list[torch.Tensor]:
        if self.kind == "all_gather":
            return self.parts
        if self.kind == "broadcast" or (self.kind == "fan_in" and index == 0):
            return [self.whole]
        return [self.parts[index]]


def make_call(number: int, count: int, rng: random.Random) -> Call:
    kind = rng.choice(["broadcast", "fan_out", "fan_in", "all_gather"])
    # Many of them differ in list index or occurrence only.
    key = CollectiveKey("job", kind, list_index=number % 6, occurrence=number // 6)
    whole = rng.choice([images, latents])(rng.randrange(9), seed=number)
    return Call(kind, key, list(torch.tensor_split(whole, count)))


@pytest.mark.parametrize("seed", range(4))
def test_many_collectives_at_once_in_another_order_everywhere(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([2, 3, 5])
    calls = [make_call(number, count, rng) for number in range(24)]
    turns = [(call, index) for call in calls for index in range(count)]
    with FakeClusters(count, seed=seed) as joined:
        started = [
            (call, index, call.start(joined.clusters[index]))
            for call, index in rng.sample(turns, len(turns))
        ]
        for call, index, handle in started:
            pairs = zip(handle.result(WAIT), call.expected(index), strict=True)
            assert all(same_bits(*pair) for pair in pairs), (call.kind, index)


def test_handles_can_be_awaited() -> None:
    tensor = images(1)

    async def run(joined: FakeClusters) -> list[torch.Tensor]:
        key = CollectiveKey("job", "7")
        return await asyncio.gather(*[each.broadcast(key, tensor) for each in joined.clusters])

    with FakeClusters(3) as joined:
        assert all(same_bits(each, tensor) for each in asyncio.run(run(joined)))


def test_received_buffers_are_released_once_decoded() -> None:
    with FakeClusters(2) as joined:
        key = CollectiveKey("job", "7")
        received = joined.clusters[1].broadcast(key)
        joined.clusters[0].broadcast(key, latents(2)).result(WAIT)
        tensor = received.result(WAIT)
        assert len(joined.network.transports[1].released_sizes) == 1
        assert same_bits(tensor, latents(2))  # the memory outlives the budget


def test_image_hint_is_for_images_only() -> None:
    tensor = torch.full((1, 4, 4, 3), 0.3)
    with FakeClusters(2, image_precision=ImagePrecision.UINT8) as joined:
        results = []
        for node_id, is_image in (("latent", False), ("image", True)):
            key = CollectiveKey("job", node_id)
            joined.clusters[0].broadcast(key, tensor, is_image=is_image)
            results.append(joined.clusters[1].broadcast(key, is_image=is_image).result(WAIT))
        assert same_bits(results[0], tensor)
        assert not same_bits(results[1], tensor)
        assert torch.allclose(results[1], tensor, atol=1 / 255)


def test_a_lost_peer_fails_what_needs_it_and_nothing_else() -> None:
    with FakeClusters(3) as joined:
        joined.connect_all(WAIT)
        leader, first, _ = joined.clusters
        fan_in = leader.fan_in(CollectiveKey("job", "9"), latents(1))
        other = leader.fan_in(CollectiveKey("job", "10"), latents(1), sources=[0, 1])
        joined.network.lose(2)
        with pytest.raises(
            PeerLost, match=r"fan-in \(job job, node 9\).*instance 2.*silent"
        ) as info:
            fan_in.result(WAIT)
        assert info.value.peer == 2
        assert not joined.network.transports[0].claims.keys() & {
            CollectiveKey("job", "9").from_source(1)
        }
        first.fan_in(CollectiveKey("job", "10"), latents(1))
        assert len(other.result(WAIT)) == 2


def test_a_peer_that_leaves_after_its_payload_arrived_is_not_missed() -> None:
    part = images(2, size=300)  # decoded slower than the loss is noticed
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        transport = joined.network.transports[0]
        transport.after_arrival = lambda: transport.report(events.PeerLost(1, "left"))
        handle = joined.clusters[0].fan_in(CollectiveKey("job", "9"), part)
        joined.clusters[1].fan_in(CollectiveKey("job", "9"), part)
        assert same_bits(handle.result(WAIT), torch.cat([part, part]))


def test_a_peer_that_leaves_after_it_got_its_payload_does_not_fail_the_others() -> None:
    with FakeClusters(3) as joined:
        joined.connect_all(WAIT)
        network, leader = joined.network, joined.clusters[0]
        network.hold()
        handle = leader.broadcast(CollectiveKey("job", "9"), latents(1))
        assert network.wait_for_parcels(2, WAIT)
        first = next(each for each in network.parcels if each.receiver == 1)
        first.handle.set_result(None)
        network.lose(1, "left")
        assert network.flush(WAIT) and not handle.done()
        network.let_go()
        handle.result(WAIT)


def test_a_lost_peer_ends_the_broadcast_to_no_other_one() -> None:
    with FakeClusters(4) as joined:
        joined.connect_all(WAIT)
        network, clusters = joined.network, joined.clusters
        network.hold()
        key = CollectiveKey("job", "9")
        sent = clusters[0].broadcast(key, latents(1))
        received = [clusters[index].broadcast(key) for index in (1, 3)]
        assert network.wait_for_parcels(3, WAIT)
        network.lose(2, "left")
        assert network.flush(WAIT) and not sent.done()
        network.let_go()
        for each in received:
            assert same_bits(each.result(WAIT), latents(1))
        with pytest.raises(PeerLost, match=r"broadcast .*instance 2") as info:
            sent.result(WAIT)
        assert info.value.peer == 2


def test_large_tensors_go_along_a_chain_and_small_ones_do_not() -> None:
    large = torch.rand(1, 300, 300, 3, generator=torch.Generator().manual_seed(1))
    with FakeClusters(4) as joined:
        joined.connect_all(WAIT)
        for node, tensor in (("1", large), ("2", latents(1))):
            key = CollectiveKey("job", node)
            spread = CollectiveKey("job", node + "b")
            gathered = [each.all_gather(key, tensor) for each in joined.clusters]
            received = [each.broadcast(spread, tensor, source=2) for each in joined.clusters]
            for handle in gathered:
                handle.result(WAIT)
            for each in received:
                each.result(WAIT)
        chains = {index: each.chains for index, each in joined.network.transports.items()}
        assert chains == {0: [(1, 2, 3)], 1: [(2, 3, 0)], 2: [(3, 0, 1)] * 2, 3: [(0, 1, 2)]}


def test_a_job_gets_nothing_more_from_a_peer_that_it_has_lost() -> None:
    with FakeClusters(2, heartbeat_interval=0.05) as joined:
        joined.connect_all(WAIT)
        leader, follower = joined.clusters
        key = CollectiveKey("job", "1")
        leader.broadcast(key, latents(1))
        follower.broadcast(key).result(WAIT)
        joined.network.lose(1, "restarted")
        joined.network.connect(0, 1)
        assert joined.network.flush(WAIT)
        with pytest.raises(PeerLost, match="instance 1 was lost: restarted"):
            leader.fan_in(CollectiveKey("job", "2"), latents(1)).result(WAIT)
        with pytest.raises(PeerLost, match="instance 1 was lost: restarted"):
            leader.broadcast(CollectiveKey("job", "3"), latents(1)).result(WAIT)
        leader.end_job("job")
        later = CollectiveKey("another job", "1")
        sent = leader.broadcast(later, latents(1))
        follower.broadcast(later).result(WAIT)
        sent.result(WAIT)


def test_what_had_arrived_from_a_peer_that_left_is_still_used() -> None:
    with FakeClusters(2, heartbeat_interval=0.05) as joined:
        joined.connect_all(WAIT)
        leader, follower = joined.clusters
        with leader.job("job"):
            follower.fan_in(CollectiveKey("job", "9"), latents(1)).result(WAIT)
            joined.network.lose(1, "left")
            assert joined.network.flush(WAIT)
            joined_parts = leader.fan_in(CollectiveKey("job", "9"), latents(1))
            assert len(joined_parts.result(WAIT)) == 2
            missing = leader.fan_in(CollectiveKey("job", "10"), latents(1))
            with pytest.raises(PeerLost, match=r"fan-in .*instance 1 was lost: left"):
                missing.result(WAIT)


def test_a_peer_lost_between_the_begin_of_a_job_and_its_first_collective_is_missed() -> None:
    with FakeClusters(2, heartbeat_interval=0.05) as joined:
        joined.connect_all(WAIT)
        leader = joined.clusters[0]
        with leader.job("job"):
            joined.network.lose(1, "restarted")
            joined.network.connect(0, 1)
            assert joined.network.flush(WAIT)
            handle = leader.fan_in(CollectiveKey("job", "9"), latents(1))
            with pytest.raises(PeerLost, match="instance 1 was lost: restarted"):
                handle.result(WAIT)


def test_the_lost_instance_is_blamed_and_not_the_one_that_noticed_first() -> None:
    with FakeClusters(3) as joined:
        joined.connect_all(WAIT)
        key = CollectiveKey("job", "9")
        handle = joined.clusters[0].all_gather(key, latents(1))
        claim = joined.network.transports[0].claims[key.from_source(1)]
        claim.set_exception(TransferCancelled("instance 1 gave up job/9", peer=1))
        joined.network.lose(2)
        with pytest.raises(PeerLost, match="instance 2 was lost: silent") as info:
            handle.result(WAIT)
        assert info.value.peer == 2


def test_nobody_waits_for_an_instance_without_items() -> None:
    batch = latents(2)
    with FakeClusters(3) as joined:
        joined.connect_all(WAIT)
        network, (leader, first, second) = joined.network, joined.clusters
        key = CollectiveKey("job", "9")
        network.hold()
        handle = leader.fan_out(key, batch)
        assert network.wait_for_parcels(2, WAIT)
        network.lose(2, "left")
        assert network.flush(WAIT)
        network.let_go()
        assert same_bits(handle.result(WAIT), batch[:1])
        assert same_bits(first.fan_out(key).result(WAIT), batch[1:])
        sources = batches.instances_with_items(len(batch), 3)
        first.fan_in(key, batch[1:])
        second.fan_in(key, batch[2:])
        parts = leader.fan_in(key, batch[:1], sources=sources)
        assert same_bits(parts.result(WAIT), batch)


def test_empty_slices_reach_whoever_asks_for_them() -> None:
    with FakeClusters(3) as joined:
        key = CollectiveKey("job", "9")
        received = joined.clusters[2].fan_out(key)
        joined.clusters[0].fan_out(key, latents(1)).result(WAIT)
        assert len(received.result(WAIT)) == 0


def test_cancel_cancels_the_transfers() -> None:
    with FakeClusters(3) as joined:
        joined.network.hold()
        leader = joined.clusters[0]
        fan_in = leader.fan_in(CollectiveKey("job", "9"), latents(1))
        broadcast = leader.broadcast(CollectiveKey("job", "10"), latents(1))
        assert joined.network.wait_for_parcels(2, WAIT)
        assert fan_in.cancel() and broadcast.cancel()
        for handle in (fan_in, broadcast):
            with pytest.raises(TransferCancelled):
                handle.result(0)
        assert joined.network.transports[0].claims == {}
        assert all(parcel.handle.done() for parcel in joined.network.parcels)


def test_closing_fails_every_waiting_handle() -> None:
    with FakeClusters(2) as joined:
        leader = joined.clusters[0]
        handles = [leader.fan_in(CollectiveKey("job", str(n)), latents(1)) for n in range(5)]
        leader.close()
        for handle in handles:
            with pytest.raises(TransferCancelled, match="closed on this instance"):
                handle.result(0)
        with pytest.raises(LocalProtocolError, match="closed"):
            leader.fan_in(CollectiveKey("job", "9"), latents(1))


def test_end_job_cancels_that_job_only() -> None:
    with FakeClusters(2) as joined:
        leader, follower = joined.clusters
        ended = leader.fan_in(CollectiveKey("ended", "9"), latents(1))
        goes_on = leader.fan_in(CollectiveKey("goes on", "9"), latents(1))
        leader.end_job("ended")
        with pytest.raises(TransferCancelled, match="job 'ended' has ended"):
            ended.result(0)
        follower.fan_in(CollectiveKey("goes on", "9"), latents(1))
        assert len(goes_on.result(WAIT)) == 2
        assert joined.network.transports[0].ended_jobs == ["ended"]


def test_encoding_errors_come_out_of_the_handle() -> None:
    with FakeClusters(2) as joined:
        handle = joined.clusters[0].broadcast(
            CollectiveKey("job", "7"), torch.zeros(2, dtype=torch.complex64)
        )
        with pytest.raises(UnsupportedTensor, match="complex64"):
            handle.result(WAIT)


def test_a_corrupt_payload_names_its_sender() -> None:
    with FakeClusters(2) as joined:
        joined.network.transports[0].damage = lambda data: data[:-1]
        handle = joined.clusters[0].fan_in(CollectiveKey("job", "9"), latents(1))
        joined.clusters[1].fan_in(CollectiveKey("job", "9"), latents(1))
        with pytest.raises(CorruptPayload, match="from instance 1"):
            handle.result(WAIT)
        assert len(joined.network.transports[0].released_sizes) == 1


def test_parts_that_do_not_fit_together_are_named() -> None:
    with FakeClusters(2) as joined:
        handle = joined.clusters[0].fan_in(CollectiveKey("job", "9"), images(1, size=8))
        joined.clusters[1].fan_in(CollectiveKey("job", "9"), images(1, size=9))
        with pytest.raises(WorkflowError, match=r"fan-in \(job job, node 9\).*part 1.*9, 9, 3"):
            handle.result(WAIT)


def test_wrong_calls_raise_at_once() -> None:
    key = CollectiveKey("job", "9")
    with FakeClusters(2) as joined:
        leader, follower = joined.clusters
        calls: list[Callable[[], object]] = [
            lambda: leader.broadcast(key),
            lambda: leader.broadcast(key, latents(1), source=2),
            lambda: leader.fan_out(key),
            lambda: follower.fan_in(key, None),
            lambda: leader.fan_in(key, latents(1), sources=[]),
            lambda: leader.fan_in(key, latents(1), sources=[0, 5]),
        ]
        for call in calls:
            with pytest.raises(LocalProtocolError):
                call()


def test_leader_without_part_joins_the_others() -> None:
    with FakeClusters(2) as joined:
        handle = joined.clusters[0].fan_in(CollectiveKey("job", "9"), None, sources=[1])
        joined.clusters[1].fan_in(CollectiveKey("job", "9"), latents(2), sources=[1])
        assert same_bits(handle.result(WAIT), latents(2))
