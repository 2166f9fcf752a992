"""The tests' own encoder and decoder of packets: written from the byte tables, not from our code.

docs/protocol.md has the tables. Imports nothing of comfy_cluster, so that a mistake there cannot
hide here.
"""

from __future__ import annotations

from dataclasses import dataclass

KIND_HELLO = 0xC0
KIND_MESSAGE = 0xC1
KIND_CHUNK = 0xC2
KIND_SACK = 0xC3


STUN_COOKIE = 0x2112A442


def u(value: int, size: int) -> bytes:
    """An unsigned integer in network order."""
    return value.to_bytes(size, "big")


def packet(
    kind: int, session: int, counter: int, payload: bytes = b"", *, epoch: int = 0, flags: int = 0
) -> bytes:
    """A whole packet: 16 bytes of header, then the payload."""
    return u(kind, 1) + u(epoch, 1) + u(flags, 2) + u(session, 4) + u(counter, 8) + payload


def hello(payload: bytes) -> bytes:
    return packet(KIND_HELLO, 0, 0, payload)


def stun(
    transaction_id: bytes, attributes: bytes = b"", *, kind: int = 0x0101, cookie: int = STUN_COOKIE
) -> bytes:
    """A STUN message (RFC 8489 section 5), a Binding success response unless `kind` says more."""
    return u(kind, 2) + u(len(attributes), 2) + u(cookie, 4) + transaction_id + attributes


def message(session: int, counter: int, payload: bytes) -> bytes:
    return packet(KIND_MESSAGE, session, counter, payload)


def chunk_header(buffer_id: int, chunk_index: int, total_chunks: int, chunk_size: int) -> bytes:
    return u(buffer_id, 8) + u(chunk_index, 4) + u(total_chunks, 4) + u(chunk_size, 4)


def chunk(
    session: int,
    counter: int,
    *,
    buffer_id: int,
    chunk_index: int,
    total_chunks: int,
    chunk_size: int,
    data: bytes,
) -> bytes:
    header = chunk_header(buffer_id, chunk_index, total_chunks, chunk_size)
    return packet(KIND_CHUNK, session, counter, header + data)


def sack_payload(
    received: set[int],
    *,
    ack_delay_us: int = 0,
    receive_window: int = 1 << 20,
    word_count: int | None = None,
) -> bytes:
    """A SACK of these counters; the last word ends at the largest, earlier ones hold 64 each."""
    largest = max(received)
    if word_count is None:
        word_count = largest // 64 - min(received) // 64 + 1
    first = 64 * (largest // 64 - word_count + 1)
    words = b""
    for start in range(first, largest + 1, 64):
        words += u(sum(1 << i for i in range(64) if start + i in received), 8)
    head = u(largest, 8) + u(ack_delay_us, 4) + u(receive_window, 4) + u(word_count, 2) + u(0, 2)
    return head + words


def sack(session: int, counter: int, received: set[int], **options: int) -> bytes:
    return packet(KIND_SACK, session, counter, sack_payload(received, **options))


@dataclass(frozen=True)
class Header:
    kind: int
    session: int
    counter: int


def header_of(data: bytes) -> Header:
    """The header of a packet that our side sent."""
    assert data[1:4] == bytes(3), "epoch and flags are 0 in this version"
    return Header(data[0], int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:16], "big"))


def chunk_header_of(data: bytes) -> tuple[int, int, int, int]:
    """Return (buffer_id, chunk_index, total_chunks, chunk_size) of a chunk packet."""
    fields = data[16:24], data[24:28], data[28:32], data[32:36]
    a, b, c, d = (int.from_bytes(field, "big") for field in fields)
    return a, b, c, d


def acked_counters(data: bytes) -> set[int]:
    """Return the packet counters that a SACK packet acknowledges."""
    payload = data[16:]
    largest = int.from_bytes(payload[:8], "big")
    word_count = int.from_bytes(payload[16:18], "big")
    assert len(payload) == 20 + 8 * word_count
    first = 64 * (largest // 64 - word_count + 1)
    counters = set()
    for number in range(word_count):
        word = int.from_bytes(payload[20 + 8 * number : 28 + 8 * number], "big")
        counters |= {first + 64 * number + bit for bit in range(64) if word >> bit & 1}
    return counters
