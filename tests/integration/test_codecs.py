"""Every codec over real sockets on 127.0.0.1.

There the choice would be to send all raw, so a codec is forced in each cluster here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.endurance.usage import pending
from comfy_cluster import codec as codecs
from comfy_cluster.cluster import Cluster, CollectiveKey
from comfy_cluster.cluster.collectives import Kind
from comfy_cluster.config import Codec, ImagePrecision, SharedMemory
from comfy_cluster.errors import PeerLost, TransferCancelled
from comfy_cluster.runtime import build_cluster
from comfy_cluster.transport import assembly
from comfy_cluster.transport.handle import Handle
from tests.integration.clusters import READY_TIMEOUT, configs, running_clusters
from tests.integration.codec_tensors import (
    noise,
    noisy_levels,
    photographs,
    rounded,
    same_bits,
    special_floats,
    tensors_of_all_kinds,
)

pytestmark = pytest.mark.integration

WAIT = 60.0  # seconds; a bound for a broken build, never waited for in a good one
LADDER = [each for each in Codec if each not in (Codec.AUTO, Codec.RAW)]
OVER_UDP = {"shared_memory": SharedMemory.OFF}


@pytest.fixture(params=LADDER, ids=str)
def codec(request: pytest.FixtureRequest) -> Codec:
    """One codec after the other."""
    chosen: Codec = request.param
    if str(chosen) not in codecs.available_codecs():
        pytest.skip(f"{chosen} does not work here")
    return chosen


def key(name: str, job_id: str = "job") -> CollectiveKey:
    return CollectiveKey(job_id, name)


def wait_until(condition: Callable[[], bool], *, told: Callable[[], object] = str) -> None:
    """`told`: what to say where it does not come true."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"it does not come true: {told()}"
        time.sleep(0.001)


def count_of(cluster: Cluster, name: str) -> int:
    return cluster.info().stats[name]


def check(handle: Handle[torch.Tensor], wanted: torch.Tensor, name: str) -> None:
    got = handle.result(WAIT)
    assert same_bits(got, wanted), f"{name}: {list(got.shape)} {got.dtype}"


# What arrives


@pytest.mark.parametrize("count", [2, 3])
def test_photographs_go_through_every_collective_at_once(codec: Codec, count: int) -> None:
    batch = photographs()
    own = [photographs(1, shift=100 * index) for index in range(count)]
    with running_clusters(count, codec=codec, **OVER_UDP) as clusters:
        started = [
            (
                each.broadcast(key("broadcast"), batch if each.is_leader else None),
                each.fan_out(key("fan-out"), batch if each.is_leader else None),
                each.fan_in(key("fan-in"), own[each.instance_index]),
                each.all_gather(key("all-gather"), own[each.instance_index]),
            )
            for each in clusters
        ]
        slices = torch.tensor_split(batch, count)
        joined = [torch.cat(own), *own[1:]]
        for index, (sent, sliced, fanned_in, gathered) in enumerate(started):
            check(sent, batch, "broadcast")
            check(sliced, slices[index], "fan-out")
            check(fanned_in, joined[index], "fan-in")
            pairs = zip(gathered.result(WAIT), own, strict=True)
            assert all(same_bits(*pair) for pair in pairs), "all-gather"
        for cluster in clusters:
            # The leader: a broadcast, its slices and the all-gather. The others: the last two.
            tensor_count = count + 1 if cluster.is_leader else 2
            assert count_of(cluster, f"codec_{codec}") == tensor_count
            assert count_of(cluster, "codec_choices_forced") == tensor_count
            assert count_of(cluster, "codec_raw") == 0


@pytest.mark.parametrize("count", [2, 3])
def test_a_broadcast_goes_in_parts_and_is_smaller_than_its_tensor(codec: Codec, count: int) -> None:
    batch = photographs()
    part_count = len(codecs.parts_of(batch))
    assert part_count > 2
    with running_clusters(count, codec=codec, **OVER_UDP) as (leader, *followers):
        received = [each.broadcast(key("1")) for each in followers]
        assert leader.broadcast(key("1"), batch).result(WAIT) is batch
        for handle in received:
            check(handle, batch, "broadcast")
        for follower in followers:
            assert count_of(follower, "buffers_arrived") == part_count
            # A level instead of a float is a quarter; the rest is for packets that are sent again.
            bytes_received = sum(peer.bytes_received for peer in follower.info().peers)
            assert bytes_received < count * batch.nbytes / 2
        # All but the last of a chain send on what they get.
        wait_until(
            lambda: (
                sum(count_of(each, "buffers_relayed") for each in followers)
                == part_count * (count - 2)
            )
        )


def test_tensors_of_all_kinds_arrive_bit_for_bit(codec: Codec) -> None:
    tensors = tensors_of_all_kinds()
    with running_clusters(3, codec=codec, **OVER_UDP) as clusters:
        source = clusters[1]
        sent = {
            name: source.broadcast(key(name), tensor, source=1) for name, tensor in tensors.items()
        }
        for receiver in (clusters[2], clusters[0]):
            received = {name: receiver.broadcast(key(name), source=1) for name in tensors}
            for name, handle in received.items():
                check(handle, tensors[name], name)
        for handle in sent.values():
            handle.result(WAIT)
        assert count_of(source, "codec_choices_forced") == len(tensors)
        assert count_of(source, f"codec_{codec}") == len(tensors)


@pytest.mark.parametrize("codec", [Codec.RAW, *LADDER], indirect=True, ids=str)
def test_images_are_rounded_and_nothing_else_is(codec: Codec) -> None:
    images = noise(3, 300, 700, 3) / 3.0 + 0.5
    images[:, :3, :3] = special_floats()[0, 2, 20]  # NaN among them
    sent = {
        "images": (images, True, rounded(images)),
        "masks": (images[..., 0].contiguous(), True, rounded(images[..., 0])),
        "levels": (photographs(1), True, photographs(1)),
        "special": (special_floats(), True, rounded(special_floats())),
        "latents": (noise(2, 4, 90, 90), False, noise(2, 4, 90, 90)),
        "no images by name": (images, False, images),
    }
    settings = {"codec": codec, "image_precision": ImagePrecision.UINT8, **OVER_UDP}
    with running_clusters(3, **settings) as (leader, *followers):
        handles = [
            leader.broadcast(key(name), tensor, is_image=is_image)
            for name, (tensor, is_image, _) in sent.items()
        ]
        for follower in followers:
            for name, (_, is_image, wanted) in sent.items():
                check(follower.broadcast(key(name), is_image=is_image), wanted, name)
        for handle, (tensor, _, _) in zip(handles, sent.values(), strict=True):
            assert handle.result(WAIT) is tensor, "the source keeps what it has"


# What goes wrong


class Stalled:
    """A broadcast of the leader that stays in the middle of a tensor in parts.

    Instance 2 asks for it. Instance 1, from which it gets its parts, does not: so it keeps the
    first one and has no room for the next, until it asks too.
    """

    BUDGET = 8 << 20  # a quarter is for what nobody asked for: one part of 8-bit noise, not two

    def __init__(self, clusters: list[Cluster], job_id: str) -> None:
        self.key = key("stalled", job_id)
        self.tensor = noisy_levels(5, 512, 1024, 3)
        assert len(codecs.parts_of(self.tensor)) == 5
        leader, self.relay, last = clusters
        self.sent = leader.broadcast(self.key, self.tensor)
        self.received = last.broadcast(self.key)
        wait_until(lambda: all(count_of(each, "buffers_arrived") for each in clusters[1:]))
        assert not self.sent.done() and not self.received.done()

    def go_on(self) -> Handle[torch.Tensor]:
        """What instance 1 gets, which asks now."""
        return self.relay.broadcast(self.key)


def check_both_ways(leader: Cluster, follower: Cluster, job_id: str) -> None:
    """Two tensors that each need all the memory there is: none of it was lost."""
    there, back = noisy_levels(2, 512, 1024, 3, seed=1), noisy_levels(2, 512, 1024, 3, seed=2)
    sent = leader.send_value(key("there", job_id), there, [1], kind=Kind.BROADCAST)
    received = follower.receive_value(key("there", job_id), 0, kind=Kind.BROADCAST)
    follower.fan_in(key("back", job_id), back)
    check(leader.fan_in(key("back", job_id), None, sources=[1]), back, "back")
    check(received, there, "there")
    sent.result(WAIT)


def check_nothing_is_left(clusters: list[Cluster], job_ids: list[str]) -> None:
    for cluster in clusters:
        for job_id in job_ids:
            cluster.end_job(job_id)
    wait_until(lambda: not left(clusters), told=lambda: left(clusters))


def left(clusters: list[Cluster]) -> dict[int, dict[str, int]]:
    """What each of them still holds."""
    found = {number: pending(each) for number, each in enumerate(clusters)}
    return {
        number: {name: count for name, count in counts.items() if count}
        for number, counts in found.items()
        if any(counts.values())
    }


def test_a_receiver_lost_in_the_middle_of_a_tensor_keeps_it_from_no_other(codec: Codec) -> None:
    settings = {"codec": codec, "memory_budget": Stalled.BUDGET, **OVER_UDP}
    with running_clusters(3, **settings) as clusters:
        leader, follower, lost = clusters
        stalled = Stalled(clusters, "job")
        lost.close()
        assert stalled.received.exception(WAIT) is not None
        check(stalled.go_on(), stalled.tensor, "broadcast")
        error = stalled.sent.exception(WAIT)
        assert isinstance(error, PeerLost) and error.peer == 2
        check_both_ways(leader, follower, "next job")
        assert count_of(leader, "codec_choices_forced") == count_of(leader, f"codec_{codec}")
        check_nothing_is_left([leader, follower], ["job", "next job"])


def test_a_job_that_ends_in_the_middle_of_a_tensor_makes_room_for_the_next(codec: Codec) -> None:
    settings = {"codec": codec, "memory_budget": Stalled.BUDGET, **OVER_UDP}
    with running_clusters(3, **settings) as clusters:
        leader = clusters[0]
        stalled = Stalled(clusters, "ended")
        other = noisy_levels(2, 512, 1024, 3, seed=3)
        sent = leader.broadcast(key("1", "other"), other)
        received = [each.broadcast(key("1", "other")) for each in clusters[1:]]
        leader.end_job("ended")
        assert isinstance(stalled.sent.exception(WAIT), TransferCancelled)
        for handle in received:
            check(handle, other, "the other job's")
        assert sent.result(WAIT) is other
        for each in clusters[1:]:
            each.end_job("ended")
        assert isinstance(stalled.received.exception(WAIT), TransferCancelled)
        check_both_ways(leader, clusters[1], "next job")
        check_nothing_is_left(clusters, ["other", "next job"])


# Who lacks a codec


@contextlib.contextmanager
def without(codec: Codec, where: object) -> Iterator[None]:
    """What is asked there has no such codec."""
    names = tuple(name for name in codecs.available_codecs() if name != str(codec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, "available_codecs", lambda: names)
        yield


@contextlib.contextmanager
def clusters_of_which_one_lacks(codec: Codec) -> Iterator[list[Cluster]]:
    """Three, of which instance 1 announces all codecs but that one."""
    with contextlib.ExitStack() as stack:
        clusters = [build_cluster(each) for each in configs(3, codec=codec, **OVER_UDP)]
        for cluster in clusters:
            lacks = cluster.instance_index == 1
            with without(codec, assembly) if lacks else contextlib.nullcontext():
                stack.enter_context(cluster)
        for cluster in clusters:
            cluster.wait_until_ready(READY_TIMEOUT)
        yield clusters


def test_who_lacks_the_codec_is_sent_raw_and_sends_raw(codec: Codec) -> None:
    batch = photographs()
    own = list(torch.tensor_split(batch, 3))
    with clusters_of_which_one_lacks(codec) as clusters:
        sent = [
            each.fan_out(key("fan-out"), batch if each.is_leader else None) for each in clusters
        ]
        sent += [each.broadcast(key("1"), batch if each.is_leader else None) for each in clusters]
        for handle, wanted in zip(sent, [*own, *[batch] * 3], strict=True):
            check(handle, wanted, "from the leader")
        with without(codec, codecs):
            parts = [each.fan_in(key("fan-in"), own[each.instance_index]) for each in clusters]
        check(parts[0], batch, "fan-in")
        # To instance 1 and to both raw, to instance 2 not.
        assert counts_of(clusters[0], codec) == (1, 2, 3)
        assert counts_of(clusters[1], codec) == (0, 1, 1)


def counts_of(cluster: Cluster, codec: Codec) -> tuple[int, int, int]:
    """Tensors sent by that codec, raw, and for which a codec was forced."""
    stats = cluster.info().stats
    return stats[f"codec_{codec}"], stats["codec_raw"], stats["codec_choices_forced"]
