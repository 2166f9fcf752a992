"""The contract of PacketEngine, call by call: what is refused, what is queued, what is freed."""

from __future__ import annotations

import gc
import weakref
from types import ModuleType
from typing import Any

import pytest

from tests import packets
from tests.engine_instance import address_of, connect
from tests.simnet import Address

A, B, C = address_of(0), address_of(1), address_of(2)
NEVER_SENT = 10**9


def connected(engine: ModuleType, **options: int) -> Any:
    core = engine.PacketEngine(**options)
    connect(core, 1)
    return core


def kinds(sent: list[tuple[Address, bytes]]) -> list[int]:
    return [packet[0] for _, packet in sent]


# Connections


@pytest.mark.parametrize("peer", [-1, 4096])
def test_peer_index_out_of_range_is_refused(engine: ModuleType, peer: int) -> None:
    core = engine.PacketEngine()
    with pytest.raises(ValueError, match="peer index"):
        core.connect_peer(peer, B, local_session=1, remote_session=2, packet_size=1200, now=0.0)


@pytest.mark.parametrize("packet_size", [0, 1199, 65_508])
def test_packet_size_out_of_range_is_refused(engine: ModuleType, packet_size: int) -> None:
    with pytest.raises(ValueError, match="packet_size"):
        connect(engine.PacketEngine(), 1, packet_size=packet_size)


def test_session_of_another_peer_is_refused_and_that_peer_stays(engine: ModuleType) -> None:
    core = connected(engine)
    with pytest.raises(ValueError, match="belongs to peer 1"):
        connect(core, 2, local_session=11)
    core.receive_packet(packets.message(11, 0, b"still here"), B, 1.0)
    assert core.take_events() == [(engine.EVENT_MESSAGE, 1, b"still here")]


def test_refused_connection_leaves_the_old_one_of_that_peer(engine: ModuleType) -> None:
    core = connected(engine)
    connect(core, 2)
    with pytest.raises(ValueError, match="belongs to peer 1"):
        connect(core, 2, local_session=11)
    core.receive_packet(packets.message(12, 0, b"x"), C, 1.0)
    assert core.take_events() == [(engine.EVENT_MESSAGE, 2, b"x")]


@pytest.mark.parametrize("call", ["peer_stats", "open_outgoing", "open_incoming"])
def test_unconnected_peer_is_refused(engine: ModuleType, call: str) -> None:
    core = engine.PacketEngine()
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, int]]] = {
        "peer_stats": ((1,), {}),
        "open_outgoing": ((1, 5, b"", b"x"), {"chunk_size": 100}),
        "open_incoming": ((1, 5, bytearray(1)), {"size": 1, "chunk_size": 100}),
    }
    positional, named = arguments[call]
    with pytest.raises(ValueError, match="peer 1 is not connected"):
        getattr(core, call)(*positional, **named)


def test_disconnecting_nobody_is_no_error(engine: ModuleType) -> None:
    engine.PacketEngine().disconnect_peer(7)


def test_old_session_is_unknown_after_reconnecting(engine: ModuleType) -> None:
    core = connected(engine)
    connect(core, 1, local_session=99)
    core.receive_packet(packets.message(11, 0, b"old"), B, 1.0)
    core.receive_packet(packets.message(99, 0, b"new"), B, 1.0)
    assert core.stats()["unknown_session"] == 1
    assert core.take_events() == [(engine.EVENT_MESSAGE, 1, b"new")]


def test_reconnecting_starts_counters_and_numbers_anew(engine: ModuleType) -> None:
    core = connected(engine)
    core.send_message(1, b"x")
    core.packets_to_send(0.0)
    core.receive_packet(packets.message(11, 500, b"x"), B, 3.0)
    connect(core, 1, local_session=99, remote_session=77, now=5.0)
    stats = core.peer_stats(1)
    assert stats["packets_sent"] == stats["packets_received"] == 0
    assert stats["last_received_at"] == 5.0
    core.send_message(1, b"y")
    assert packets.header_of(core.packets_to_send(5.0)[0][1]) == packets.Header(0xC1, 77, 0)


def test_reconnecting_drops_what_waited_for_the_old_connection(engine: ModuleType) -> None:
    core = connected(engine)
    core.send_message(1, b"x")
    core.open_outgoing(1, 5, b"", bytes(5000), chunk_size=1000)
    connect(core, 1)
    assert core.packets_to_send(1.0) == []
    assert core.next_timer() is None


# Messages and HELLOs


def test_hellos_messages_and_chunks_go_in_this_order(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_outgoing(1, 5, b"", bytes(1500), chunk_size=1000)
    core.send_message(1, b"m")
    core.send_hello(C, b"h")
    sent = core.packets_to_send(0.0)
    assert kinds(sent) == [0xC0, 0xC1, 0xC2, 0xC2]
    assert sent[0] == (C, packets.hello(b"h"))
    assert sent[1] == (B, packets.message(21, 0, b"m"))
    assert [packets.header_of(packet).counter for _, packet in sent[2:]] == [1, 2]


def test_messages_pass_chunks_that_wait_for_the_window(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_outgoing(1, 5, b"", bytes(1_000_000), chunk_size=1148)
    assert len(core.packets_to_send(0.0)) == 10
    assert core.packets_to_send(0.0) == []
    core.send_message(1, b"urgent")
    assert core.next_timer() == 0.0
    assert kinds(core.packets_to_send(0.0)) == [0xC1]


def test_sacks_go_before_chunks(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_outgoing(1, 5, b"", bytes(5000), chunk_size=1000)
    core.open_incoming(1, 6, bytearray(8), size=8, chunk_size=8)
    core.receive_packet(
        packets.chunk(
            11, 0, buffer_id=6, chunk_index=0, total_chunks=1, chunk_size=8, data=b"12345678"
        ),
        B,
        0.0,
    )
    assert kinds(core.packets_to_send(0.0))[:2] == [0xC3, 0xC2]


def test_limit_cuts_and_nothing_is_lost(engine: ModuleType) -> None:
    core = connected(engine, burst_size=3)
    for number in range(5):
        core.send_message(1, bytes([number]))
    assert len(core.packets_to_send(0.0, limit=2)) == 2
    assert len(core.packets_to_send(0.0)) == 3
    assert core.packets_to_send(0.0) == []


@pytest.mark.parametrize("size", [1169, 5000])
def test_payload_over_the_limit_is_refused(engine: ModuleType, size: int) -> None:
    core = connected(engine)
    with pytest.raises(ValueError, match="at most 1168 bytes"):
        core.send_message(1, bytes(size))
    with pytest.raises(ValueError, match="at most 1168 bytes"):
        core.send_hello(B, bytes(size))
    assert core.packets_to_send(0.0) == []


def test_message_to_nobody_is_not_queued(engine: ModuleType) -> None:
    core = connected(engine)
    assert core.send_message(1, b"x") is True
    assert core.send_message(2, b"x") is False


def test_queues_are_bounded(engine: ModuleType) -> None:
    """A socket that takes nothing must not fill the memory; messages are sent again anyway."""
    core = connected(engine)
    accepted = sum(core.send_message(1, b"x") for _ in range(5000))
    for _ in range(5000):
        core.send_hello(C, b"x")
    assert accepted == 1024
    assert len(core.packets_to_send(0.0, limit=20_000)) == 2 * 1024


def test_hello_comes_only_from_allowed_addresses(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    core.receive_packet(packets.hello(b"1"), C, 0.0)
    core.allow_address(C)
    core.allow_address(C)
    core.receive_packet(packets.hello(b"2"), C, 0.0)
    core.disallow_address(C)
    core.disallow_address(C)
    core.receive_packet(packets.hello(b"3"), C, 0.0)
    assert core.take_events() == [(engine.EVENT_HELLO, C, b"2")]
    assert core.stats()["unknown_address"] == 2


def test_strangers_are_heard_so_many_a_second(engine: ModuleType) -> None:
    core = engine.PacketEngine(strangers_per_second=2.0)
    strangers = [("10.0.0.77", 9000), ("10.0.0.78", 9001), ("2001:db8::7", 9002)]
    for number, address in enumerate(strangers):
        core.receive_packet(packets.hello(bytes([number])), address, 1.0)
    core.receive_packet(packets.hello(b"later"), strangers[0], 1.5)
    events = core.take_events()
    assert [payload for _, _, payload in events] == [b"\0", b"\1", b"later"]
    assert events[0][:2] == (engine.EVENT_HELLO, strangers[0])
    assert core.stats()["unknown_address"] == 1


def test_ipv6_peers(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    address: Address = ("2001:db8::7", 9998)
    core.allow_address(address)
    core.connect_peer(1, address, local_session=1, remote_session=2, packet_size=1200, now=0.0)
    core.send_message(1, b"x")
    assert core.packets_to_send(0.0) == [(address, packets.message(2, 0, b"x"))]
    core.receive_packet(packets.hello(b"y"), address, 0.0)
    core.receive_packet(packets.message(1, 0, b"z"), address, 0.0)
    assert core.take_events() == [
        (engine.EVENT_HELLO, address, b"y"),
        (engine.EVENT_MESSAGE, 1, b"z"),
    ]


def test_any_valid_packet_is_a_sign_of_life_and_no_other(engine: ModuleType) -> None:
    core = connected(engine)
    core.receive_packet(packets.message(11, 0, b"x"), B, 2.0)
    assert core.peer_stats(1)["last_received_at"] == 2.0
    core.receive_packet(packets.message(11, 0, b"x"), B, 3.0)  # replayed
    core.receive_packet(packets.message(11, 1, b"x"), C, 3.0)  # wrong address
    core.receive_packet(packets.sack(11, 2, {5}), B, 3.0)  # of what was never sent
    assert core.peer_stats(1)["last_received_at"] == 2.0


# Buffers


def test_empty_buffer_is_complete_at_once_and_sends_nothing(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_incoming(1, 5, bytearray(0), size=0, chunk_size=100)
    core.open_outgoing(1, 6, b"", b"", chunk_size=100)
    assert core.take_events() == [
        (engine.EVENT_INCOMING_COMPLETE, 1, 5),
        (engine.EVENT_OUTGOING_ACKED, 1, 6),
    ]
    assert core.next_timer() is None


@pytest.mark.parametrize("chunk_size", [-1, 0, 1149])
def test_chunk_size_that_no_packet_holds_is_refused(engine: ModuleType, chunk_size: int) -> None:
    core = connected(engine)
    with pytest.raises(ValueError, match="chunk_size"):
        core.open_outgoing(1, 5, b"", bytes(10), chunk_size=chunk_size)
    core.open_outgoing(1, 5, b"", bytes(10), chunk_size=1148)


def test_destination_must_be_writable_and_large_enough(engine: ModuleType) -> None:
    core = connected(engine)
    for destination in (bytes(10), bytearray(9)):
        with pytest.raises(ValueError, match="read-only or too small"):
            core.open_incoming(1, 5, destination, size=10, chunk_size=5)
    core.open_incoming(1, 5, bytearray(11), size=10, chunk_size=5)


def test_buffer_id_in_use_is_refused(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_outgoing(1, 5, b"", bytes(10), chunk_size=5)
    core.open_incoming(1, 5, bytearray(10), size=10, chunk_size=5)
    with pytest.raises(ValueError, match="being sent already"):
        core.open_outgoing(1, 5, b"", bytes(10), chunk_size=5)
    with pytest.raises(ValueError, match="being received already"):
        core.open_incoming(1, 5, bytearray(10), size=10, chunk_size=5)
    core.close_outgoing(5)
    core.close_incoming(5)
    core.open_outgoing(1, 5, b"", bytes(10), chunk_size=5)
    core.open_incoming(1, 5, bytearray(10), size=10, chunk_size=5)


def test_closing_what_is_not_open_is_no_error(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    core.close_outgoing(NEVER_SENT)
    core.close_incoming(NEVER_SENT)


@pytest.mark.parametrize("prefix_size", [0, 1, 399, 400, 401, 1000])
def test_chunks_are_cut_from_prefix_and_body(engine: ModuleType, prefix_size: int) -> None:
    core = connected(engine)
    payload = bytes(number % 251 for number in range(1000))
    core.open_outgoing(
        1, 5, payload[:prefix_size], memoryview(payload)[prefix_size:], chunk_size=400
    )
    sent = [packet for _, packet in core.packets_to_send(0.0)]
    assert [packets.chunk_header_of(packet) for packet in sent] == [
        (5, index, 3, 400) for index in range(3)
    ]
    assert b"".join(packet[36:] for packet in sent) == payload


def test_body_may_be_any_contiguous_buffer(engine: ModuleType) -> None:
    """Tensor memory arrives as a view of floats; bytes are bytes."""
    core = connected(engine)
    floats = memoryview(bytes(range(64))).cast("d")
    core.open_outgoing(1, 5, b"", floats, chunk_size=100)
    assert core.packets_to_send(0.0)[0][1][36:] == bytes(range(64))


def receive_chunk(core: Any, counter: int, index: int) -> None:
    packet = packets.chunk(
        11,
        counter,
        buffer_id=5,
        chunk_index=index,
        total_chunks=4,
        chunk_size=4,
        data=bytes([65 + index]) * 4,
    )
    core.receive_packet(packet, B, 1.0)


def test_chunks_are_placed_in_any_order_and_complete_once(engine: ModuleType) -> None:
    core = connected(engine)
    memory = bytearray(b"." * 20)
    core.open_incoming(1, 5, memory, size=16, chunk_size=4)
    for counter, index in enumerate([3, 0, 2]):
        receive_chunk(core, counter, index)
    assert memory == b"AAAA....CCCCDDDD...."
    assert core.take_events() == []
    receive_chunk(core, 3, 1)
    receive_chunk(core, 4, 1)
    assert memory == b"AAAABBBBCCCCDDDD...."
    assert core.take_events() == [(engine.EVENT_INCOMING_COMPLETE, 1, 5)]
    stats = core.peer_stats(1)
    assert (stats["chunks_received"], stats["chunks_duplicate"]) == (4, 1)


def test_closed_destination_is_never_written_again(engine: ModuleType) -> None:
    core = connected(engine)
    memory = bytearray(16)
    core.open_incoming(1, 5, memory, size=16, chunk_size=4)
    core.close_incoming(5)
    receive_chunk(core, 0, 0)
    assert memory == bytes(16)
    assert core.stats()["unknown_buffer"] == 1


def is_released(memory: bytearray) -> bool:
    """A bytearray that anybody holds a view of cannot be resized."""
    try:
        memory.append(0)
    except BufferError:
        return False
    return True


def test_memory_is_held_while_open_and_released_on_close(engine: ModuleType) -> None:
    core = connected(engine)
    source, destination = bytearray(5000), bytearray(5000)
    core.open_outgoing(1, 5, b"", source, chunk_size=1000)
    core.open_incoming(1, 6, destination, size=5000, chunk_size=1000)
    core.packets_to_send(0.0)
    assert not is_released(source)
    assert not is_released(destination)
    core.close_outgoing(5)
    core.close_incoming(6)
    assert is_released(source)
    assert is_released(destination)


@pytest.mark.parametrize("ending", ["disconnect", "reconnect", "delete"])
def test_memory_is_released_when_the_connection_ends(engine: ModuleType, ending: str) -> None:
    core = connected(engine)
    source, destination = bytearray(5000), bytearray(5000)
    core.open_outgoing(1, 5, b"", source, chunk_size=1000)
    core.open_incoming(1, 6, destination, size=5000, chunk_size=1000)
    core.packets_to_send(0.0)
    if ending == "disconnect":
        core.disconnect_peer(1)
    elif ending == "reconnect":
        connect(core, 1)
    else:
        del core
        gc.collect()
    assert is_released(source)
    assert is_released(destination)


def test_refused_buffer_holds_no_memory(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    memory = bytearray(10)
    with pytest.raises(ValueError, match="not connected"):
        core.open_outgoing(1, 5, b"", memory, chunk_size=5)
    with pytest.raises(ValueError, match="not connected"):
        core.open_incoming(1, 5, memory, size=10, chunk_size=5)
    gc.collect()
    assert is_released(memory)


def test_engine_is_collected(engine: ModuleType) -> None:
    """Nothing inside refers back to the engine in a way that keeps it."""

    class Watched(engine.PacketEngine):  # type: ignore[name-defined, misc]
        pass

    core = Watched()
    connect(core, 1)
    core.open_outgoing(1, 5, b"", bytes(5000), chunk_size=1000)
    core.packets_to_send(0.0)
    watcher = weakref.ref(core)
    del core
    gc.collect()
    assert watcher() is None


# Timers


def test_new_engine_waits_for_nothing(engine: ModuleType) -> None:
    core = engine.PacketEngine()
    assert core.next_timer() is None
    assert core.packets_to_send(0.0) == []
    assert core.take_events() == []


def test_single_chunk_is_acknowledged_after_a_short_delay(engine: ModuleType) -> None:
    core = connected(engine)
    core.open_incoming(1, 5, bytearray(16), size=16, chunk_size=4)
    receive_chunk(core, 0, 0)
    assert core.next_timer() == pytest.approx(1.001)
    assert core.packets_to_send(1.0005) == []
    assert kinds(core.packets_to_send(1.001)) == [0xC3]
    assert core.next_timer() is None


@pytest.mark.parametrize("counters", [(0, 1), (3,)])
def test_second_chunk_or_a_gap_is_acknowledged_at_once(
    engine: ModuleType, counters: tuple[int, ...]
) -> None:
    core = connected(engine)
    core.open_incoming(1, 5, bytearray(16), size=16, chunk_size=4)
    for counter in counters:
        receive_chunk(core, counter, counter)
    sent = core.packets_to_send(1.0)
    assert kinds(sent) == [0xC3]
    assert packets.acked_counters(sent[0][1]) == set(counters)


def test_messages_alone_cause_no_sack(engine: ModuleType) -> None:
    core = connected(engine)
    for counter in range(10):
        core.receive_packet(packets.message(11, counter, b"x"), B, 1.0)
    assert core.next_timer() is None
    assert core.packets_to_send(5.0) == []


# Keepalives


def test_silence_is_broken_by_a_sack_at_each_interval(engine: ModuleType) -> None:
    core = connected(engine, keepalive_interval=1)
    assert core.next_timer() is None  # nothing to acknowledge yet
    core.receive_packet(packets.message(11, 0, b"hello"), B, 0.25)
    assert core.next_timer() == 1.0
    assert core.packets_to_send(0.99) == []
    assert kinds(core.packets_to_send(1.0)) == [engine.KIND_SACK]
    assert core.next_timer() == 2.0
    core.send_message(1, b"a message does as well")
    assert kinds(core.packets_to_send(1.5)) == [engine.KIND_MESSAGE]
    assert core.next_timer() == 2.5


def test_keepalives_end_when_the_process_behind_the_engine_hangs(engine: ModuleType) -> None:
    core = connected(engine, keepalive_interval=1)
    core.receive_packet(packets.message(11, 0, b"hello"), B, 0.0)
    sent = 0
    while (now := core.next_timer()) is not None:
        sent += len(core.packets_to_send(now))
        assert sent <= 60
    assert sent == 60
    core.send_message(1, b"awake again")
    assert len(core.packets_to_send(100.0)) == 1
    assert core.next_timer() == 101.0


def test_keepalive_is_a_valid_sack_that_changes_nothing(engine: ModuleType) -> None:
    core = connected(engine)
    core.send_message(1, b"hello")
    core.packets_to_send(0.0)
    before = core.peer_stats(1)
    core.receive_packet(packets.sack(11, 0, {0}), B, 5.0)
    after = core.peer_stats(1)
    assert after["last_received_at"] == 5.0
    assert after["congestion_window"] == before["congestion_window"]
    assert after["min_rtt"] == 0.0
    assert core.stats() == dict.fromkeys(engine.COUNTERS, 0)
