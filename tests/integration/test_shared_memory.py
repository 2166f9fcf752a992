"""Transports of one machine: what goes through shared memory, and what brings it over UDP."""

from __future__ import annotations

import errno
import gc
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comfy_cluster.codec.payload import EncodedPayload
from comfy_cluster.config import SharedMemory
from comfy_cluster.protocol import PeerLost
from comfy_cluster.transport.handle import Handle
from comfy_cluster.transport.memory import ReceivedBuffer
from comfy_cluster.transport.shared_memory import outgoing, records, system_calls
from comfy_cluster.transport.shared_memory.availability import why_unavailable
from comfy_cluster.transport.shared_memory.link import Link
from comfy_cluster.transport.shared_memory.records import (
    Accept,
    Dropped,
    Filled,
    GivenUp,
    Record,
    Released,
)
from comfy_cluster.transport.workers import THREAD_COUNT
from tests.integration.clusters import configs
from tests.integration.transports import (
    FANIN,
    WAIT,
    Instance,
    Instances,
    bytes_of,
    key_of,
    payload_of,
    wait_until,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(why_unavailable()), reason=f"no shared memory: {why_unavailable()}"),
]

ROOT = Path(__file__).parents[2]
Pair = tuple[Instance, Instance]
SIZE = 9_000_001  # above what one thread copies


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Instances(2) as (first, second):
        yield first, second


def start(
    sender: Instance, receiver: Instance, payload: EncodedPayload, number: int = 0
) -> tuple[Handle[None], Handle[ReceivedBuffer]]:
    key = key_of(sender.index, number, node=f"to {receiver.index}")
    received = receiver.transport.receive_buffer(key, peer=sender.index)
    sent = sender.transport.send_buffer(receiver.index, key, payload, message_type=FANIN)
    return sent, received


def pass_on(
    sender: Instance, receiver: Instance, payload: EncodedPayload, number: int = 0
) -> ReceivedBuffer:
    sent, received = start(sender, receiver, payload, number)
    buffer = received.result(WAIT)
    sent.result(WAIT)
    return buffer


def stat(instance: Instance, name: str) -> int:
    return instance.transport.stats().get(f"shared_memory_{name}", 0)


def mapping_count() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:comfy-cluster" in line for line in maps)


def link_of(instance: Instance, peer: int) -> Link:
    parts = instance.transport._parts
    assert parts is not None and parts.shared_memory is not None
    return parts.shared_memory._links[peer]


def test_payloads_need_no_packets(pair: Pair, rng: random.Random) -> None:
    payload = payload_of(rng, SIZE)
    buffer = pass_on(pair[0], pair[1], payload)
    assert buffer.data == bytes_of(payload) and not buffer.data.readonly
    (at_sender,), (at_receiver,) = (each.transport.peers() for each in pair)
    assert at_sender.shares_memory and at_receiver.shares_memory
    assert at_sender.shared_bytes_sent == at_receiver.shared_bytes_received == SIZE
    assert at_sender.bytes_sent < SIZE // 10
    assert stat(pair[0], "bytes_sent") == stat(pair[1], "bytes_received") == SIZE


def test_one_segment_serves_all_receivers_and_each_writes_its_own(rng: random.Random) -> None:
    payload = payload_of(rng, SIZE)
    expected = bytes_of(payload)
    with Instances(4) as (source, *receivers):
        started = [start(source, each, payload) for each in receivers]
        buffers = [received.result(WAIT) for _, received in started]
        for sent, _ in started:
            sent.result(WAIT)
        assert stat(source, "segments_made") == 1
        np.asarray(buffers[0].data)[:] = 1
        buffers[1].data[SIZE - 1] ^= 255
        assert buffers[2].data == expected == bytes_of(payload)
        assert buffers[1].data[:-1] == expected[:-1]
        assert set(np.asarray(buffers[0].data)) == {1}


def test_a_segment_is_filled_again_only_when_nobody_sees_it(pair: Pair, rng: random.Random) -> None:
    payloads = [payload_of(rng, SIZE) for _ in range(4)]
    first = pass_on(*pair, payloads[0], 0)
    view = np.asarray(first.data)[5:]
    first.release()
    del first
    second = pass_on(*pair, payloads[1], 1)
    assert bytes(view) == bytes_of(payloads[0])[5:]
    assert (stat(pair[0], "segments_made"), stat(pair[0], "segments_reused")) == (2, 0)
    del view
    wait_until(lambda: released(pair[0]) == 1, "the release of the first segment")
    third = pass_on(*pair, payloads[2], 2)
    assert (stat(pair[0], "segments_made"), stat(pair[0], "segments_reused")) == (2, 1)
    assert stat(pair[1], "mappings_reused") == 1
    assert second.data == bytes_of(payloads[1])
    assert third.data == bytes_of(payloads[2])


def released(sender: Instance) -> int:
    """How many segments wait for their next payload."""
    parts = sender.transport._parts
    assert parts is not None and parts.shared_memory is not None
    idle = list(parts.shared_memory._sender.pool._idle.values())  # at once: others change it
    return sum(map(len, idle))


def test_what_a_receiver_wrote_never_shows_in_a_later_payload(
    pair: Pair, rng: random.Random
) -> None:
    for number in range(6):
        payload = payload_of(rng, SIZE)
        buffer = pass_on(*pair, payload, number)
        assert buffer.data == bytes_of(payload)
        buffer.data[number * 1_000_000] ^= 255
        del buffer
        wait_until(lambda: released(pair[0]) == 1, "the release")
    assert stat(pair[0], "segments_made") == 1
    assert stat(pair[1], "mappings_reused") == 0


def is_at_rest(instance: Instance) -> bool:
    """Every segment waits for its next payload, and no mapping is looked at."""
    parts = instance.transport._parts
    assert parts is not None and parts.shared_memory is not None
    receiver = parts.shared_memory._receiver
    is_looking = bool(receiver._looking or receiver._unseen)
    return not is_looking and released(instance) == stat(instance, "segments")


def holdings() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), mapping_count()


def test_two_hundred_transfers_leave_nothing(rng: random.Random) -> None:
    payloads = [payload_of(rng, size) for size in (70_000, 300_000, 1_000_003)]
    before = holdings()
    early = before
    with Instances(2) as (first, second):
        pair = (first, second)
        for number in range(200):
            buffer = pass_on(pair[number % 2], pair[1 - number % 2], payloads[number % 3], number)
            if number % 5 == 0:
                buffer.data[100] ^= 255
            del buffer
            wait_until(lambda: all(map(is_at_rest, pair)), "rest")
            if number == 30:
                early = holdings()
        late = holdings()
        assert late[0] == early[0]
        assert late[1] <= early[1] + 2  # mappings that were written to are made anew
        assert sum(stat(each, "segments_made") for each in pair) == 6  # a size class a direction
    assert holdings() == before


def test_mappings_that_nobody_came_to_unmap_go_with_the_transport(rng: random.Random) -> None:
    before = holdings()
    with Instances(2) as (first, second):
        buffer = pass_on(first, second, payload_of(rng, SIZE))
        del buffer
        wait_until(lambda: released(first) == 1, "the release")
        parts = second.transport._parts
        assert parts is not None
        workers = parts.workers
        for _ in range(THREAD_COUNT):  # busy until the pool is closed
            workers.run(lambda: wait_until(lambda: workers._is_closed, "the end of the workers"))
        first.transport.close()
        second.wait_for(lambda: not second.connected, "the loss of the first")
    assert holdings() == before


@pytest.mark.parametrize("index", [0, 1])
def test_what_a_busy_worker_keeps_from_being_freed_goes_after_it(
    rng: random.Random, index: int
) -> None:
    before = holdings()
    release = threading.Event()
    with Instances(2) as pair:
        buffer = pass_on(pair[0], pair[1], payload_of(rng, SIZE))
        del buffer
        wait_until(lambda: released(pair[0]) == 1, "the release")
        parts = pair[index].transport._parts
        assert parts is not None
        parts.workers.run(lambda: release.wait(WAIT))
        wait_until(lambda: parts.workers._jobs.empty(), "the job's begin")
        pair[index].transport.close()
        assert holdings() != before
    release.set()
    wait_until(lambda: holdings() == before, "the end of all that was held")


# What brings a payload over UDP


def test_one_side_off_is_both_off(rng: random.Random) -> None:
    first, second = configs(2)
    instances = [Instance(first), Instance(replace(second, shared_memory=SharedMemory.OFF))]
    try:
        for each in instances:
            each.start()
        for each in instances:
            each.wait_until_connected(1)
        payload = payload_of(rng, SIZE)
        assert pass_on(instances[0], instances[1], payload).data == bytes_of(payload)
        assert pass_on(instances[1], instances[0], payload).data == bytes_of(payload)
        assert not any(each.transport.shares_memory(1 - each.index) for each in instances)
        assert stat(instances[0], "links_made") == 0
    finally:
        for each in instances:
            each.transport.close()


@pytest.mark.parametrize("loser", [0, 1])
def test_a_lost_link_stops_nothing(pair: Pair, rng: random.Random, loser: int) -> None:
    payloads = [payload_of(rng, SIZE) for _ in range(6)]
    started = [start(*pair, payload, number) for number, payload in enumerate(payloads)]
    started[0][1].result(WAIT)
    link_of(pair[loser], 1 - loser)._sock.shutdown(socket.SHUT_RDWR)
    for payload, (sent, received) in zip(payloads, started, strict=True):
        assert received.result(WAIT).data == bytes_of(payload)
        sent.result(WAIT)
    late = payload_of(rng, SIZE)
    assert pass_on(*pair, late, 10).data == bytes_of(late)
    for each in pair:
        assert not each.transport.shares_memory(1 - each.index)
        assert [event for event in each.events if isinstance(event, PeerLost)] == []


def test_without_memory_for_a_segment_udp_brings_it(
    pair: Pair, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    payload = payload_of(rng, SIZE)
    monkeypatch.setattr(system_calls, "create_segment", refuse)
    assert pass_on(*pair, payload).data == bytes_of(payload)
    assert stat(pair[0], "buffers_given_up") == 1
    assert pair[0].transport.stats()["buffers_unshared"] == 1
    monkeypatch.undo()
    assert pass_on(*pair, payload, 1).data == bytes_of(payload)
    assert stat(pair[1], "buffers_received") == 1


def test_without_pages_for_a_segment_udp_brings_it(
    pair: Pair, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("no pages")

    payload = payload_of(rng, SIZE)
    monkeypatch.setattr(system_calls, "populate", refuse)
    assert pass_on(*pair, payload).data == bytes_of(payload)
    assert (stat(pair[0], "buffers_given_up"), stat(pair[0], "segments")) == (1, 0)


def test_pages_that_no_payload_had_before_are_asked_for_when_a_segment_is_used_again(
    pair: Pair, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    populate = system_calls.populate

    def note(address: int, size: int) -> None:
        asked.append(size)
        populate(address, size)

    monkeypatch.setattr(system_calls, "populate", note)
    sizes = [(2 << 20) - 100_000, (2 << 20) - 10_000, (2 << 20) - 50_000]
    for number, size in enumerate(sizes):
        payload = payload_of(rng, size)
        assert pass_on(*pair, payload, number).data == bytes_of(payload)
        wait_until(lambda: released(pair[0]) == 1, "the release")
    assert stat(pair[0], "segments_made") == 1
    assert len(asked) == 2 and asked[1] > sizes[1] - sizes[0] - 1


@pytest.mark.parametrize("what", ["unsealed", "too small", "of another kind"])
def test_a_segment_that_is_not_safe_is_refused_and_udp_brings_it(
    pair: Pair, rng: random.Random, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    payload = payload_of(rng, SIZE)
    if what == "unsealed":
        monkeypatch.setattr(system_calls, "seal", lambda fd: None)
    elif what == "too small":
        create = system_calls.create_segment
        monkeypatch.setattr(system_calls, "create_segment", lambda size: create(size // 2))
        monkeypatch.setattr(system_calls, "populate", lambda address, size: None)
        monkeypatch.setattr(outgoing, "_copy_range", lambda *_: None)  # it would fault
    else:
        send = Link.send

        def send_another(link: Link, record: Record, fd: int | None = None) -> None:
            with open(os.devnull) as file:
                send(link, record, None if fd is None else file.fileno())

        monkeypatch.setattr(Link, "send", send_another)
    assert pass_on(*pair, payload).data == bytes_of(payload)
    assert stat(pair[1], "refused_segments") == 1
    assert stat(pair[1], "buffers_received") == 0
    assert all(each.transport.shares_memory(1 - each.index) for each in pair)


@pytest.mark.parametrize("data", [b"garbage", records.pack(Accept(bytes(16)))])
def test_a_peer_that_breaks_the_rules_loses_its_link(
    pair: Pair, rng: random.Random, data: bytes
) -> None:
    link_of(pair[0], 1)._sock.send(data)
    wait_until(lambda: not pair[1].transport.shares_memory(0), "the end of the link")
    assert stat(pair[1], "refused_record") == 1
    payload = payload_of(rng, SIZE)
    assert pass_on(*pair, payload).data == bytes_of(payload)


def test_payloads_that_nobody_asked_for_change_nothing(pair: Pair, rng: random.Random) -> None:
    before = mapping_count()
    fd = system_calls.create_segment(4096)
    system_calls.seal(fd)
    for number in range(20):
        link_of(pair[0], 1).send(Filled(number, 1000 + number, 4096, 4096), fd)
        link_of(pair[0], 1).send(GivenUp(number))
        link_of(pair[0], 1).send(Dropped(number))
        link_of(pair[1], 0).send(Released(1000 + number, 1))
    os.close(fd)
    payload = payload_of(rng, SIZE)
    assert pass_on(*pair, payload).data == bytes_of(payload)
    assert stat(pair[1], "buffers_received") == 1
    assert all(each.transport.shares_memory(1 - each.index) for each in pair)
    wait_until(lambda: mapping_count() <= before + 2, "the end of what nobody asked for")


# Ends


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREPARED + script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT * 2,
    )


PREPARED = """
import gc, os, random
import torch
from tests.integration.transports import Instances, payload_of
from tests.integration.test_shared_memory import bytes_of, pass_on, released, stat, wait_until
rng = random.Random(1)
payloads = [payload_of(rng, 9_000_001) for _ in range(3)]
"""


def test_a_process_ends_with_tensors_alive() -> None:
    done = run("""
instances = Instances(2)
pair = instances.__enter__()
buffers = [pass_on(*pair, each, number) for number, each in enumerate(payloads)]
tensors = [torch.frombuffer(each.data, dtype=torch.uint8) for each in buffers]
assert stat(pair[1], "buffers_received") == 3
print(int(tensors[0].sum()))
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_tensors_outlive_their_transport() -> None:
    done = run("""
with Instances(2) as pair:
    buffer = pass_on(*pair, payloads[0])
tensor = torch.frombuffer(buffer.data, dtype=torch.uint8)
del buffer
gc.collect()
assert bytes(tensor.numpy()) == bytes_of(payloads[0])
tensor += 1
with open("/proc/self/maps") as maps:
    assert sum("memfd:" in line for line in maps) == 1
del tensor
gc.collect()
with open("/proc/self/maps") as maps:
    assert sum("memfd:" in line for line in maps) == 0
""")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_child_of_a_fork_sees_does_not_change() -> None:
    done = run("""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
with Instances(2) as pair:
    buffer = pass_on(*pair, payloads[0])
    go, ready = os.pipe()
    child = os.fork()
    if not child:
        os.close(ready)
        os.read(go, 1)  # until the parent has received others
        os._exit(0 if buffer.data == bytes_of(payloads[0]) else 1)
    os.close(go)
    del buffer
    wait_until(lambda: stat(pair[0], "segments") == 0, "the end of the segment")
    for number in (1, 2):
        assert pass_on(*pair, payloads[number], number).data == bytes_of(payloads[number])
    os.close(ready)
    assert os.waitpid(child, 0)[1] == 0
""")
    assert (done.returncode, done.stderr) == (0, "")
