"""The twin's ring of sent packets and its two kinds of buffer; the compiled ones are C structures
that the differential test covers."""

from __future__ import annotations

import random

import pytest

from comfy_cluster._fastpath_py.buffers import IncomingBuffer, OutgoingBuffer, check_layout
from comfy_cluster._fastpath_py.sent import (
    FIRST_CAPACITY,
    IN_FLIGHT,
    LOST,
    MAX_CAPACITY,
    RESERVE,
    SentEntry,
    SentPackets,
)


def buffer_of(size: int = 10_000_000, buffer_id: int = 1) -> OutgoingBuffer:
    return OutgoingBuffer(buffer_id, b"", memoryview(bytes(size)), 100)


def send_chunk(sent: SentPackets, buffer: OutgoingBuffer, index: int = 0) -> SentEntry:
    entry = SentEntry(sent.take_counter(), buffer, index, size=136, sent_at=1.0)
    sent.put(entry)
    return entry


def test_ring_behaves_as_a_dictionary() -> None:
    """Against a dict of what is in flight, while packets are sent, acknowledged and lost."""
    rng = random.Random(4)
    sent, buffer = SentPackets(), buffer_of()
    flying: dict[int, SentEntry] = {}
    for number in range(5000):
        if rng.random() < 0.55 and sent.has_room:
            entry = send_chunk(sent, buffer, number)
            flying[entry.counter] = entry
        elif rng.random() < 0.3:
            assert sent.get(sent.take_counter()) is None
        elif flying:
            counter = rng.choice([min(flying), rng.choice(list(flying))])
            found = sent.get(counter)
            assert found is flying.pop(counter)
            assert found.state == IN_FLIGHT
            (sent.on_acked if rng.random() < 0.7 else sent.on_lost)(found)
        assert sent.bytes_in_flight == 136 * len(flying)
        first = sent.first_in_flight()
        assert (first.counter if first else None) == min(flying, default=None)


def test_lost_packet_is_still_found_until_it_is_overwritten() -> None:
    sent, buffer = SentPackets(), buffer_of()
    entry = send_chunk(sent, buffer)
    sent.on_lost(entry)
    assert sent.get(0) is entry and entry.state == LOST
    assert sent.bytes_in_flight == 0
    for _ in range(FIRST_CAPACITY):
        sent.take_counter()
    assert sent.get(0) is None


def test_ring_grows_while_the_oldest_packet_is_in_flight() -> None:
    sent, buffer = SentPackets(), buffer_of()
    oldest = send_chunk(sent, buffer)
    for _ in range(10 * FIRST_CAPACITY):
        sent.take_counter()
    assert sent.get(0) is oldest
    assert sent.first_in_flight() is oldest


def test_chunks_leave_room_for_other_packets() -> None:
    sent, buffer = SentPackets(), buffer_of()
    send_chunk(sent, buffer)
    while sent.has_room:
        sent.take_counter()
    assert sent.next_counter == MAX_CAPACITY - RESERVE
    for _ in range(RESERVE):
        assert not sent.is_full
        sent.take_counter()
    assert sent.is_full


def test_forgetting_a_buffer_leaves_the_others() -> None:
    sent, one, other = SentPackets(), buffer_of(), buffer_of(buffer_id=2)
    kept = [send_chunk(sent, buffer) for buffer in (one, other, one, other)][1::2]
    sent.forget_buffer(one)
    assert sent.bytes_in_flight == 136 * 2
    assert sent.first_in_flight() is kept[0]


@pytest.mark.parametrize("split", [0, 1, 99, 100, 101, 250])
def test_chunks_of_a_buffer_join_to_its_payload(split: int) -> None:
    payload = bytes(number % 251 for number in range(250))
    buffer = OutgoingBuffer(1, payload[:split], memoryview(payload)[split:], 100)
    assert [buffer.chunk_length(index) for index in range(3)] == [100, 100, 50]
    assert b"".join(buffer.chunk(index) for index in range(buffer.chunk_count)) == payload


def test_chunk_is_placed_once_and_only_where_it_belongs() -> None:
    memory = bytearray(250)
    buffer = IncomingBuffer(1, 1, memoryview(memory), size=250, chunk_size=100)
    assert buffer.place(2, 3, 100, b"c" * 50) == 1
    assert buffer.place(2, 3, 100, b"x" * 50) == 0
    for index, total, chunk_size, size in [(3, 3, 100, 50), (0, 4, 100, 100), (0, 3, 99, 99)]:
        assert buffer.place(index, total, chunk_size, b"x" * size) == -1
    for size in (0, 49, 51, 100):
        assert buffer.place(2, 3, 100, b"x" * size) == -1
    assert memory == bytes(200) + b"c" * 50


@pytest.mark.parametrize(("size", "chunk_size"), [(-1, 100), (2**32, 1), (10, 0), (10, 101)])
def test_layout_that_the_header_cannot_describe_is_refused(size: int, chunk_size: int) -> None:
    with pytest.raises(ValueError, match=r"chunk"):
        check_layout(size, chunk_size, 100)
