"""Packing and parsing: every field at its place, every length checked, no input raises."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import packets

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
COUNTERS = st.integers(0, 2**63 - 1)
KINDS = st.sampled_from([0xC0, 0xC1, 0xC2, 0xC3, 0xC4])
CASES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_constants_are_the_protocols(engine: ModuleType) -> None:
    assert engine.HEADER_SIZE == 16
    assert engine.CHUNK_HEADER_SIZE == 20
    assert engine.SACK_HEADER_SIZE == 20
    assert engine.TAG_SIZE == 16
    assert engine.MIN_PACKET_SIZE == 1200
    assert engine.MAX_PACKET_SIZE == 65_507
    assert engine.MESSAGE_PAYLOAD_LIMIT == 1168
    assert engine.SACK_MAX_WORDS == 128
    names = ("HELLO", "MESSAGE", "CHUNK", "SACK", "PROBE")
    kinds = tuple(getattr(engine, f"KIND_{name}") for name in names)
    assert kinds == (0xC0, 0xC1, 0xC2, 0xC3, 0xC4)


@pytest.mark.parametrize("packet_size", [1200, 1472, 8900, 65_507])
def test_chunk_fills_the_packet_but_for_headers_and_tag(
    engine: ModuleType, packet_size: int
) -> None:
    assert engine.chunk_size_for(packet_size) == packet_size - 16 - 20 - 16


@given(kind=KINDS, session=U32, counter=COUNTERS)
@CASES
def test_header_round_trip(engine: ModuleType, kind: int, session: int, counter: int) -> None:
    data = engine.pack_header(kind, session, counter)
    assert data == packets.packet(kind, session, counter)
    assert engine.parse_header(data) == (kind, session, counter)
    assert engine.parse_header(data + b"payload") == (kind, session, counter)


@given(fields=st.tuples(U64, U32, U32, U32))
@CASES
def test_chunk_header_round_trip(engine: ModuleType, fields: tuple[int, int, int, int]) -> None:
    data = engine.pack_chunk_header(*fields)
    assert data == packets.chunk_header(*fields)
    assert engine.parse_chunk_header(data + b"data") == fields


@given(
    received=st.sets(st.integers(0, 8191), min_size=1, max_size=60),
    offset=st.integers(0, 2**40),
    delay=U32,
    window=U32,
)
@CASES
def test_sack_round_trip(
    engine: ModuleType, received: set[int], offset: int, delay: int, window: int
) -> None:
    counters = {64 * offset + counter for counter in received}
    expected = packets.sack_payload(counters, ack_delay_us=delay, receive_window=window)
    parsed = engine.parse_sack(expected)
    assert parsed[:3] == (max(counters), delay, window)
    assert engine.pack_sack(*parsed) == expected
    first = 64 * (max(counters) // 64 - len(parsed[3]) + 1)
    found = {first + 64 * n + i for n, w in enumerate(parsed[3]) for i in range(64) if w >> i & 1}
    assert found == counters


@given(data=st.binary(max_size=1300))
@CASES
def test_no_bytes_raise(engine: ModuleType, data: bytes) -> None:
    assert engine.parse_header(data) is None or data[0] >= 0xC0
    assert (engine.parse_chunk_header(data) is None) == (len(data) < 20)
    engine.parse_sack(data)


def test_header_refuses_every_other_first_byte(engine: ModuleType) -> None:
    for kind in set(range(256)) - {0xC0, 0xC1, 0xC2, 0xC3, 0xC4}:
        assert engine.parse_header(packets.packet(kind, 1, 1)) is None


@pytest.mark.parametrize("size", range(16))
def test_header_refuses_less_than_itself(engine: ModuleType, size: int) -> None:
    assert engine.parse_header(packets.message(1, 2, b"")[:size]) is None


def test_parsers_agree_on_damaged_packets(both_engines: tuple[ModuleType, ModuleType]) -> None:
    """Every parser of both engines, over packets with one byte changed or cut off."""
    rng = random.Random(17)
    sources = [
        packets.message(7, 70, b"payload"),
        packets.chunk(
            7, 71, buffer_id=1, chunk_index=0, total_chunks=1, chunk_size=9, data=b"012345678"
        ),
        packets.sack(7, 72, {1, 64, 65, 190}),
    ]
    for _ in range(3000):
        data = bytearray(rng.choice(sources))
        data[rng.randrange(len(data))] = rng.randrange(256)
        damaged = bytes(data[: rng.choice([len(data), rng.randrange(len(data) + 1)])])
        results: list[Any] = [
            (
                engine.parse_header(damaged),
                engine.parse_chunk_header(damaged[16:]),
                engine.parse_sack(damaged[16:]),
            )
            for engine in both_engines
        ]
        assert results[0] == results[1], damaged.hex()
