"""Tensors in parts, between several clusters of one process."""

from __future__ import annotations

import threading

import pytest
import torch

from comfy_cluster import codec as codec_module
from comfy_cluster.cluster import CollectiveKey
from comfy_cluster.cluster.budget import ByteBudget
from comfy_cluster.cluster.codec_pool import CodecPool
from comfy_cluster.cluster.sending import Sending
from comfy_cluster.codec import EncodedPayload, Part, available_codecs, parts_of
from comfy_cluster.config import Codec
from comfy_cluster.errors import (
    CorruptPayload,
    PeerLost,
    TransferCancelled,
    UnsupportedTensor,
)
from comfy_cluster.transport.handle import Handle
from tests.unit.cluster.fake_transport import FakeClusters

WAIT = 30.0  # seconds; a bound for a broken build
KEY = CollectiveKey("job", "7")


def images(count: int = 5) -> torch.Tensor:
    """8-bit images of 6 MiB each, as ComfyUI makes them, that can be compressed."""
    levels = torch.arange(1024 * 512 * 3).reshape(1, 1024, 512, 3) // 97 % 251
    shifted = torch.cat([levels + number for number in range(count)])
    return shifted.to(torch.float32).div_(torch.full((1,), 255.0))


PART_COUNT = len(parts_of(images()))


def test_the_images_are_worth_parts() -> None:
    assert PART_COUNT == 5


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.LZ4, Codec.RAW8])
def test_a_batch_arrives_whole(codec: Codec) -> None:
    batch = images()
    with FakeClusters(2, codec=codec) as joined:
        joined.connect_all(WAIT)
        leader, follower = joined.clusters
        received = leader.fan_in(KEY, batch[:0], sources=[1])
        sent = follower.fan_in(KEY, batch)
        assert torch.equal(received.result(WAIT), batch)
        assert torch.equal(sent.result(WAIT), batch)
        parts = sorted(joined.network.sent)
        assert parts == [(0, part, str(codec)) for part in range(PART_COUNT)]
        assert len(joined.network.transports[0].released_sizes) == PART_COUNT
        assert joined.network.wait_for_no_copies(WAIT)


def test_a_latent_arrives_whole_in_parts() -> None:
    latent = torch.arange(3 << 20).reshape(3, 16, 256, 256).to(torch.float32)
    with FakeClusters(2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, latent)
        assert torch.equal(joined.clusters[1].broadcast(KEY).result(WAIT), latent)
        sent.result(WAIT)
        assert {codec for _, _, codec in joined.network.sent} == {"zstd"}


def test_a_tensor_of_any_strides_goes_in_parts_even_raw() -> None:
    turned = images().permute(0, 3, 1, 2)
    with FakeClusters(2, codec=Codec.RAW) as joined:
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, turned)
        assert torch.equal(joined.clusters[1].broadcast(KEY).result(WAIT), turned)
        sent.result(WAIT)
        assert len(joined.network.sent) == PART_COUNT


def test_the_first_part_leaves_while_the_last_one_waits_for_memory() -> None:
    batch = images()
    part_size = 1024 * 512 * 3 * 4
    with FakeClusters(2, codec=Codec.ZSTD, memory_budget=2 * part_size) as joined:
        joined.connect_all(WAIT)
        joined.network.hold()
        sent = joined.clusters[0].broadcast(KEY, batch)
        assert joined.network.wait_for_parcels(1, WAIT)
        assert not sent.done()
        received = joined.clusters[1].broadcast(KEY)
        joined.network.let_go()
        assert torch.equal(received.result(WAIT), batch)
        sent.result(WAIT)
        assert 0 < joined.network.largest_encoded_bytes <= part_size


def test_parts_that_come_before_anybody_asks_are_kept() -> None:
    batch = images()
    with FakeClusters(2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.clusters[0].broadcast(KEY, batch).result(WAIT)
        assert torch.equal(joined.clusters[1].broadcast(KEY).result(WAIT), batch)


def test_a_receiver_that_is_lost_keeps_no_other_from_its_tensor() -> None:
    batch = images()
    with FakeClusters(3, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.network.hold()
        sent = joined.clusters[0].broadcast(KEY, batch)
        received = joined.clusters[1].broadcast(KEY)
        assert joined.network.wait_for_parcels(2, WAIT)
        joined.network.lose(2)
        assert joined.network.flush(WAIT)
        joined.network.let_go()
        assert torch.equal(received.result(WAIT), batch)
        with pytest.raises(PeerLost, match="instance 2"):
            sent.result(WAIT)
        assert joined.network.wait_for_no_copies(WAIT)


def test_a_lost_sender_fails_the_receiver_and_frees_what_it_has() -> None:
    with FakeClusters(2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.network.loses = lambda key: key.part > 1
        received = joined.clusters[1].broadcast(KEY)
        joined.clusters[0].broadcast(KEY, images())
        assert joined.network.wait_for_lost(PART_COUNT - 2, WAIT)
        joined.network.lose(0)
        with pytest.raises(PeerLost, match="instance 0"):
            received.result(WAIT)
        assert joined.network.flush(WAIT)  # the handles of its parts fail one by one
        assert not joined.network.transports[1].claims


def test_one_damaged_part_fails_the_tensor_and_says_whose_it_is() -> None:
    def damage(data: bytes) -> bytes:
        return data if b"first\x00" in data[:200] else data[:-1]

    with FakeClusters(2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.network.transports[1].damage = damage
        joined.clusters[0].broadcast(KEY, images())
        with pytest.raises(CorruptPayload, match="from instance 0: corrupt payload"):
            joined.clusters[1].broadcast(KEY).result(WAIT)


def test_a_job_that_ends_cancels_all_parts_on_both_sides() -> None:
    with FakeClusters(2, codec=Codec.ZSTD) as joined:
        joined.connect_all(WAIT)
        joined.network.loses = lambda key: key.part > 1
        received = joined.clusters[1].broadcast(KEY)
        sent = joined.clusters[0].broadcast(KEY, images())
        assert joined.network.wait_for_lost(PART_COUNT - 2, WAIT)
        for cluster in joined.clusters:
            cluster.end_job("job")
        for handle in (sent, received):
            with pytest.raises(TransferCancelled):
                handle.result(WAIT)
        assert not joined.network.transports[1].claims
        assert joined.network.wait_for_no_copies(WAIT)


def test_who_announces_nothing_gets_one_payload_that_it_can_read() -> None:
    batch = images()
    with FakeClusters(2) as joined:
        joined.network.hostname = "10.0.0.1"
        joined.network.codecs[1] = ()
        joined.network.transports[0].bandwidths[1] = 1e4
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, batch)
        assert torch.equal(joined.clusters[1].broadcast(KEY).result(WAIT), batch)
        sent.result(WAIT)
        assert joined.network.sent == [(1, 0, "png")]


def test_several_receivers_are_sent_what_all_of_them_know() -> None:
    batch = images()
    with FakeClusters(3) as joined:
        joined.network.hostname = "10.0.0.1"
        joined.network.codecs[1] = ("raw", "raw8", "zstd")
        joined.network.codecs[2] = ("raw", "raw8", "lz4", "a later one")
        joined.network.transports[0].bandwidths |= {1: 1e4, 2: 1e4}
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, batch)
        for cluster in joined.clusters[1:]:
            assert torch.equal(cluster.broadcast(KEY).result(WAIT), batch)
        sent.result(WAIT)
        assert {codec for _, _, codec in joined.network.sent} == {"raw8"}


def test_a_forced_codec_that_a_receiver_lacks_gives_way_to_raw() -> None:
    with FakeClusters(2, codec=Codec.WEBP) as joined:
        joined.network.codecs[1] = tuple(set(available_codecs()) - {"webp"})
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, images())
        assert torch.equal(joined.clusters[1].broadcast(KEY).result(WAIT), images())
        sent.result(WAIT)
        assert joined.network.sent == [(1, 0, "raw")]


def test_a_part_that_cannot_be_encoded_fails_the_tensor_and_frees_the_budget() -> None:
    encoded: list[int] = []

    def encode(part: Part) -> EncodedPayload:
        encoded.append(part.index)
        if part.index == 1:
            raise MemoryError("no memory for a copy")
        return codec_module.encode(part.values, codec="zstd", place=part.place)

    pool = CodecPool(1)
    budget = ByteBudget(2 * images(1).nbytes)
    unsent: list[Handle[None]] = []

    def transfer(part: Part, payload: EncodedPayload, peers: object) -> dict[int, Handle[None]]:
        unsent.append(Handle("transfer"))
        return {1: unsent[-1]}

    sent = Sending(
        parts_of(images()),
        [1],
        cost_of=lambda part: part.values.nbytes,
        encode=encode,
        transfer=transfer,
        executor=pool,
        budget=budget,
    ).start()
    with pytest.raises(MemoryError, match="no memory for a copy"):
        sent.result(WAIT)
    pool.close()
    assert budget.used == 0 and budget.waiting_count == 0
    assert len(encoded) <= 2 and all(handle.done() for handle in unsent)


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("cost", [0, 1])
def test_many_parts_are_given_up_one_beside_the_other(cost: int, is_closed: bool) -> None:
    """Not one inside of the other: there may be more parts than Python nests calls."""
    pool = CodecPool(1)
    budget = ByteBudget(1)
    is_free = threading.Event()

    def encode(part: Part) -> EncodedPayload:
        is_free.wait(WAIT)
        raise MemoryError("no memory")

    sent = Sending(
        [Part(index, torch.zeros(4), None) for index in range(2000)],
        [1],
        cost_of=lambda part: cost,
        encode=encode,
        transfer=lambda part, payload, peers: {},
        executor=pool,
        budget=budget,
    ).start()
    if is_closed:
        pool.stop()
    is_free.set()
    # Closing ends those that have not begun, and perhaps they are the first ones to end.
    with pytest.raises((MemoryError, TransferCancelled) if is_closed else MemoryError):
        sent.result(WAIT)
    pool.close()
    assert budget.used == 0 and budget.waiting_count == 0


@pytest.mark.parametrize(
    "tensor",
    [[1.0], torch.zeros(4, 4).to_sparse(), torch.zeros(1 << 20, dtype=torch.complex64)],
    ids=["list", "sparse", "complex"],
)
def test_what_cannot_travel_fails_the_handle(tensor: object) -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        sent = joined.clusters[0].broadcast(KEY, tensor)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedTensor, match="cannot encode"):
            sent.result(WAIT)


def test_a_join_that_waits_for_the_pool_ends_with_the_cluster() -> None:
    with FakeClusters(2) as joined:
        joined.connect_all(WAIT)
        leader = joined.clusters[0]
        is_free = threading.Event()

        def occupy() -> None:
            is_free.wait(WAIT)

        for _ in range(8):
            leader._pool.submit(occupy)
        received = leader.fan_in(KEY, images(1), sources=[0])
        closer = threading.Thread(target=leader.close)
        closer.start()
        with pytest.raises(TransferCancelled):
            received.result(WAIT)
        is_free.set()
        closer.join()
