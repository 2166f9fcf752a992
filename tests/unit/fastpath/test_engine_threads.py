"""PacketEngine under several threads at once: each call is whole, and nothing is lost."""

from __future__ import annotations

import threading
import time
from types import ModuleType
from typing import Any

from tests.engine_instance import address_of, connect

A, B, C = address_of(0), address_of(1), address_of(2)


def test_threads_may_call_at_the_same_time(engine: ModuleType) -> None:
    """Two engines exchange buffers over queues while other threads ask, open and close."""
    cores = [engine.PacketEngine(), engine.PacketEngine()]
    for index, core in enumerate(cores):
        core.connect_peer(
            1 - index,
            address_of(1 - index),
            local_session=5 + index,
            remote_session=6 - index,
            packet_size=1200,
            now=0.0,
        )
    payload = bytes(range(256)) * 400
    memories = [bytearray(len(payload)) for _ in range(6)]
    for number, memory in enumerate(memories):
        source = number % 2
        cores[1 - source].open_incoming(source, number, memory, size=len(payload), chunk_size=1000)
        cores[source].open_outgoing(1 - source, number, b"", payload, chunk_size=1000)
    done = threading.Event()
    errors: list[BaseException] = []
    events: list[Any] = []
    works = (
        lambda: pump(cores, 0, done, events),
        lambda: pump(cores, 1, done, events),
        lambda: disturb(cores, done),
    )
    threads = [threading.Thread(target=guard(errors, done, w), daemon=True) for w in works]
    for thread in threads:
        thread.start()
    is_done = done.wait(60.0)
    done.set()
    for thread in threads:
        thread.join(10.0)
    assert not errors
    assert is_done
    assert all(memory == payload for memory in memories)


def guard(errors: list[BaseException], done: threading.Event, work: Any) -> Any:
    """Run `work` in a thread; what it raises ends all threads and is kept."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            done.set()

    return run


def pump(cores: list[Any], index: int, done: threading.Event, events: list[Any]) -> None:
    """Carry packets from one engine to the other until every buffer has come and gone."""
    while not done.is_set():
        now = time.monotonic()
        for address, packet in cores[index].packets_to_send(now):
            if address == address_of(1 - index):
                cores[1 - index].receive_packet(packet, address_of(index), time.monotonic())
        events.extend(cores[index].take_events())
        if len(events) >= 12:
            done.set()


def disturb(cores: list[Any], done: threading.Event) -> None:
    """Call everything else, on buffers and peers of its own."""
    number = 0
    while not done.is_set():
        number += 1
        peer = 50 + number % 5
        for index, core in enumerate(cores):
            connect(core, peer, now=time.monotonic())
            core.open_outgoing(peer, 10**6 + number, b"", bytes(3000), chunk_size=1000)
            core.open_incoming(peer, 10**6 + number, bytearray(30), size=30, chunk_size=10)
            core.send_message(peer, b"x")
            core.peer_stats(1 - index)
            core.stats()
            core.next_timer()
            core.close_outgoing(10**6 + number)
            core.disconnect_peer(peer)
