"""Values and bytes: every kind of message round-trips, every bound is checked, nothing escapes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Protocol

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comfy_cluster import fastpath, wire
from comfy_cluster.errors import LocalProtocolError, RemoteProtocolError
from comfy_cluster.wire import messages_pb2 as pb


class Packable(Protocol):
    def pack(self) -> bytes: ...


KEY = wire.TransferKey("job-1", "12:3.0.0.1", list_index=2, occurrence=1, source=3)
ANNOUNCE = wire.Announce(
    cluster_id="default",
    instance_index=1,
    instance_count=4,
    role=wire.InstanceRole.FOLLOWER,
    boot_id=(1 << 64) - 1,
    session_id=(1 << 32) - 1,
    echo_session_id=7,
    is_connected=True,
    packet_size=65_507,
    software_version="0.1.0",
    engine="compiled",
)
ANNOUNCEMENT = wire.BufferAnnouncement(
    buffer_id=1 << 63, size=1 << 40, chunk_size=1_148, digest=bytes(range(16)), key=KEY
)
ROUTE = wire.Route(payload_id=3 << 48, number=2, relay_to=(4, 0, 65_534))
SHARED = replace(ANNOUNCEMENT, chunk_size=0, digest=b"", is_shared=True)
INLINE = replace(ANNOUNCEMENT, size=3, chunk_size=0, inline_payload=b"abc")
MESSAGE = wire.Message(
    message_id=(1 << 64) - 1,
    message_type=wire.MessageType.FREE_MEMORY,
    sender_instance=0,
    target_instance=65_534,
    require_ack=True,
    payload=b"\x00\xff",
)
VALUES: list[Packable] = [
    MESSAGE,
    ANNOUNCE,
    wire.Ack((0, 1, (1 << 64) - 1)),
    wire.Goodbye("left"),
    ANNOUNCEMENT,
    INLINE,
    replace(ANNOUNCEMENT, size=0, chunk_size=0, inline_payload=b""),
    replace(ANNOUNCEMENT, size=0),
    replace(ANNOUNCEMENT, size=100, chunk_size=100),
    replace(ANNOUNCEMENT, attempt=2),
    replace(ANNOUNCEMENT, route=ROUTE),
    SHARED,
    replace(ANNOUNCEMENT, route=wire.Route(1, 1)),
    wire.BufferFailed(2, wire.FailureCode.NOT_RELAYED, route=7),
    wire.BufferAccept(1),
    wire.BufferDone((1 << 64) - 1),
    wire.BufferFailed(2, wire.FailureCode.CORRUPT, "digest differs"),
    wire.BufferCancel(3, "job ended"),
    wire.BufferCancel(3, "job ended", KEY),
]
KINDS: list[Any] = sorted({type(value) for value in VALUES}, key=lambda kind: kind.__name__)


def name_of(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_value_survives_packing_and_parsing(value: Any) -> None:
    assert type(value).parse(value.pack()) == value


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (MESSAGE, {"message_id": -1}),
        (MESSAGE, {"message_id": 1 << 64}),
        (MESSAGE, {"sender_instance": 65_535}),
        (MESSAGE, {"target_instance": -1}),
        (MESSAGE, {"payload": bytes(wire.LARGEST_MESSAGE_PAYLOAD + 1)}),
        (ANNOUNCE, {"protocol_version": 0}),
        (ANNOUNCE, {"cluster_id": "x" * 513}),
        (ANNOUNCE, {"cluster_id": "\ud800"}),
        (ANNOUNCE, {"instance_count": 0, "instance_index": 0}),
        (ANNOUNCE, {"instance_index": 4}),
        (ANNOUNCE, {"instance_count": 65_536}),
        (ANNOUNCE, {"boot_id": 0}),
        (ANNOUNCE, {"session_id": 0}),
        (ANNOUNCE, {"session_id": 1 << 32}),
        (ANNOUNCE, {"echo_session_id": 1 << 32}),
        (ANNOUNCE, {"packet_size": 1_199}),
        (ANNOUNCE, {"packet_size": 65_508}),
        (ANNOUNCE, {"engine": "x" * 65}),
        (wire.Ack((1,)), {"message_ids": ()}),
        (wire.Ack((1,)), {"message_ids": tuple(range(wire.LARGEST_ACK + 1))}),
        (wire.Ack((1,)), {"message_ids": (1 << 64,)}),
        (wire.Goodbye(), {"reason": "x" * 257}),
        (KEY, {"job_id": "x" * 256}),
        (KEY, {"node_id": "\u00e9" * 128}),
        (KEY, {"list_index": 1 << 32}),
        (KEY, {"occurrence": -1}),
        (KEY, {"source": 65_535}),
        (ANNOUNCEMENT, {"buffer_id": 0}),
        (ANNOUNCEMENT, {"size": -1}),
        (ANNOUNCEMENT, {"size": (1 << 40) + 1}),
        (ANNOUNCEMENT, {"chunk_size": 0}),
        (ANNOUNCEMENT, {"chunk_size": 65_456}),
        (ANNOUNCEMENT, {"chunk_size": 1_147}),
        (ANNOUNCEMENT, {"chunk_size": 1_147, "size": 1_148}),
        (ANNOUNCEMENT, {"chunk_size": 99, "size": 100}),
        (ANNOUNCEMENT, {"attempt": 0}),
        (ANNOUNCEMENT, {"attempt": 3}),
        (ANNOUNCEMENT, {"digest": b"short"}),
        (INLINE, {"size": 4}),
        (INLINE, {"chunk_size": 1}),
        (INLINE, {"route": ROUTE}),
        (SHARED, {"digest": bytes(16)}),
        (SHARED, {"chunk_size": 1148}),
        (SHARED, {"size": 0}),
        (SHARED, {"inline_payload": b""}),
        (SHARED, {"route": ROUTE}),
        (ANNOUNCEMENT, {"digest": b""}),
        (ROUTE, {"payload_id": 0}),
        (ROUTE, {"payload_id": 1 << 64}),
        (ROUTE, {"number": 0}),
        (ROUTE, {"number": 1 << 32}),
        (ROUTE, {"relay_to": (1, 2, 1)}),
        (ROUTE, {"relay_to": (65_535,)}),
        (ROUTE, {"relay_to": tuple(range(wire.LARGEST_RELAY + 1))}),
        (wire.BufferFailed(1, wire.FailureCode.NOT_RELAYED), {"route": -1}),
        (wire.BufferAccept(1), {"buffer_id": 0}),
        (wire.BufferDone(1), {"buffer_id": 1 << 64}),
        (wire.BufferFailed(1, wire.FailureCode.CORRUPT), {"buffer_id": 0}),
        (wire.BufferCancel(1), {"buffer_id": 0}),
    ],
)
def test_value_out_of_bounds_cannot_be_made(base: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        replace(base, **changes)


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        (wire.Message, pb.ClusterMessage(message_id=1)),  # unspecified type
        (wire.Message, pb.ClusterMessage(message_type=pb.ACK, sender_instance=1 << 31)),
        (wire.Announce, pb.Announce()),
        (wire.Ack, pb.Ack()),
        (wire.Ack, pb.Ack(message_ids=range(1_000))),
        (wire.Goodbye, pb.Goodbye(reason="x" * 257)),
        (wire.BufferAnnouncement, pb.BufferAnnouncement()),
        (wire.BufferAnnouncement, pb.BufferAnnouncement(buffer_id=1, size=5, chunk_size=5)),
        (wire.BufferAccept, pb.BufferAccept()),
        (wire.BufferFailed, pb.BufferFailed(buffer_id=1)),
        (wire.BufferFailed, pb.BufferFailed(buffer_id=1, code=pb.CORRUPT, reason="x" * 513)),
        (wire.BufferCancel, pb.BufferCancel(buffer_id=1, reason="x" * 513)),
    ],
)
def test_valid_protobuf_with_bad_meaning_is_refused(kind: Any, packet: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        kind.parse(packet.SerializeToString())


def test_unknown_message_type_is_named_in_the_error() -> None:
    data = MESSAGE.pack().replace(b"\x10\x26", b"\x10\x7b", 1)
    with pytest.raises(RemoteProtocolError, match="unknown MessageType 123"):
        wire.Message.parse(data)


def test_fields_of_a_later_version_are_ignored() -> None:
    later = wire.BufferDone(5).pack() + b"\xfa\x01\x03new"
    assert wire.BufferDone.parse(later) == wire.BufferDone(5)


def test_announce_of_another_protocol_version_is_parsed_so_that_it_can_be_refused_by_name() -> None:
    other = replace(ANNOUNCE, protocol_version=9)
    assert wire.Announce.parse(other.pack()).protocol_version == 9


@pytest.mark.parametrize("kind", [wire.BufferFailed, wire.BufferCancel])
def test_long_reason_is_cut_without_breaking_a_character(kind: Any) -> None:
    arguments = [1, wire.FailureCode.TOO_MANY] if kind is wire.BufferFailed else [1]
    parsed = kind.parse(kind(*arguments, "\u00e9" * 400 + "\ud800").pack())
    assert parsed.reason == "\u00e9" * 256


def test_longest_announcement_fits_one_message_packet() -> None:
    key = wire.TransferKey("j" * 255, "n" * 255, (1 << 32) - 1, (1 << 32) - 1, 65_534)
    announcement = replace(ANNOUNCEMENT, buffer_id=(1 << 64) - 1, key=key)
    assert len(replace(MESSAGE, payload=announcement.pack()).pack()) <= 1_168


def test_largest_chunk_is_the_engine_s() -> None:
    largest = fastpath.chunk_size_for(fastpath.MAX_PACKET_SIZE)
    assert replace(ANNOUNCEMENT, chunk_size=largest).chunk_size == largest
    with pytest.raises(LocalProtocolError):
        replace(ANNOUNCEMENT, chunk_size=largest + 1)


def test_smallest_chunk_is_what_the_smallest_packet_holds() -> None:
    assert fastpath.chunk_size_for(fastpath.MIN_PACKET_SIZE) == wire.bounds.SMALLEST_CHUNK


def test_longest_ack_and_announce_fit_one_message_packet() -> None:
    ack = wire.Ack(tuple((1 << 64) - 1 - index for index in range(wire.LARGEST_ACK)))
    announce = replace(ANNOUNCE, cluster_id="c" * 512, software_version="v" * 64, engine="e" * 64)
    for value in (ack, announce):
        assert len(replace(MESSAGE, payload=value.pack()).pack()) <= 1_168


def parse_quietly(kind: Any, data: bytes) -> None:
    """Parse; a success must give a value that packs again. Any other exception fails the test."""
    try:
        value = kind.parse(data)
    except RemoteProtocolError:
        return
    assert kind.parse(value.pack()) == value


@settings(max_examples=150, deadline=None)
@example(b"")
@example(b"\xff" * 20)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_remote_protocol_error(data: bytes) -> None:
    for kind in KINDS:
        parse_quietly(kind, data)


def test_mutated_messages_raise_nothing_but_remote_protocol_error() -> None:
    rng = random.Random(1)
    packed = [value.pack() for value in VALUES]
    for _ in range(2_000):
        data = bytearray(rng.choice(packed))
        for _ in range(rng.randint(1, 4)):
            mutate(data, rng)
        parse_quietly(rng.choice(KINDS), bytes(data))


def test_truncated_messages_raise_nothing_but_remote_protocol_error() -> None:
    for value in VALUES:
        packed = value.pack()
        for length in range(len(packed)):
            parse_quietly(type(value), packed[:length])


def test_deep_nesting_is_refused() -> None:
    data = b""
    for _ in range(2_000):
        size = len(data)
        data = b"\x2a" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + data
    parse_quietly(wire.BufferAnnouncement, data)


def mutate(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    choice = rng.randrange(3)
    if choice == 0 or place == len(data):
        data[place:place] = rng.randbytes(rng.randint(1, 4))
    elif choice == 1:
        data[place] = rng.randrange(256)
    else:
        del data[place : place + rng.randint(1, 4)]


def test_the_longest_announcement_of_a_route_fits_one_packet() -> None:
    text = "x" * wire.LONGEST_KEY_TEXT
    key = wire.TransferKey(text, text, (1 << 32) - 1, (1 << 32) - 1, 65_534)
    route = wire.Route(
        (1 << 64) - 1, (1 << 32) - 1, tuple(range(65_534 - wire.LARGEST_RELAY, 65_534))
    )
    announcement = replace(ANNOUNCEMENT, key=key, route=route, chunk_size=65_455, attempt=2)
    message = replace(
        MESSAGE, message_type=wire.MessageType.DISTRIBUTE_BUFFER_GATHER, payload=announcement.pack()
    )
    assert len(message.pack()) <= fastpath.MESSAGE_PAYLOAD_LIMIT
    cancel = wire.BufferCancel((1 << 64) - 1, text * 3, key)
    message = replace(message, message_type=wire.MessageType.BUFFER_CANCEL, payload=cancel.pack())
    assert len(message.pack()) <= fastpath.MESSAGE_PAYLOAD_LIMIT
