"""Packet layout: pack and parse, and the one place where a packet is sealed and opened.

docs/protocol.md is the normative text. Nothing here keeps state, and parsing never raises: what
is not a valid packet gives None.
"""

from __future__ import annotations

import struct

KIND_HELLO = 0xC0
KIND_MESSAGE = 0xC1
KIND_CHUNK = 0xC2
KIND_SACK = 0xC3
KIND_PROBE = 0xC4

HEADER_SIZE = 16
CHUNK_HEADER_SIZE = 20
SACK_HEADER_SIZE = 20
TAG_SIZE = 16  # bytes that sealing may add; always left free so that the chunk size never moves
MIN_PACKET_SIZE = 1200  # UDP payload that every path carries (RFC 9000 section 14)
MAX_PACKET_SIZE = 65_507  # the largest UDP payload over IPv4
MESSAGE_PAYLOAD_LIMIT = MIN_PACKET_SIZE - HEADER_SIZE - TAG_SIZE
SACK_MAX_WORDS = 128  # 8,192 packets, one kilobyte: a SACK always fits MIN_PACKET_SIZE

_HEADER = struct.Struct("!BBHIQ")
_CHUNK_HEADER = struct.Struct("!QIII")
_SACK_HEADER = struct.Struct("!QIIHH")


def chunk_size_for(packet_size: int) -> int:
    """Return the payload bytes of a chunk in packets of `packet_size` bytes of UDP payload."""
    return packet_size - HEADER_SIZE - CHUNK_HEADER_SIZE - TAG_SIZE


def pack_header(kind: int, session: int, counter: int) -> bytes:
    """Return the 16-byte packet header with epoch 0 (not sealed) and no flags."""
    return _HEADER.pack(kind, 0, 0, session, counter)


def parse_header(packet: bytes) -> tuple[int, int, int] | None:
    """Return (kind, session, counter), or None for anything but a packet of this protocol."""
    if len(packet) < HEADER_SIZE:
        return None
    kind, epoch, flags, session, counter = _HEADER.unpack_from(packet)
    if not KIND_HELLO <= kind <= KIND_PROBE or epoch or flags or counter >> 63:
        return None
    return kind, session, counter


def check_message_size(payload: bytes) -> None:
    """Raises ValueError."""
    if len(payload) > MESSAGE_PAYLOAD_LIMIT:
        raise ValueError(
            f"a message payload holds at most {MESSAGE_PAYLOAD_LIMIT} bytes, not {len(payload)}"
        )


def seal_packet(packet: bytes) -> bytes:
    """Protect a whole packet before it is sent. Epoch 0, the only one yet, adds nothing."""
    return packet


def open_packet(packet: bytes) -> bytes | None:
    """Return what follows the header, once authentic. Epoch 0, the only one yet, proves nothing."""
    return packet[HEADER_SIZE:]


def pack_chunk_header(
    buffer_id: int, chunk_index: int, total_chunks: int, chunk_size: int
) -> bytes:
    """Return the 20 bytes in front of a chunk's payload (spec.md section 7)."""
    return _CHUNK_HEADER.pack(buffer_id, chunk_index, total_chunks, chunk_size)


def parse_chunk_header(payload: bytes) -> tuple[int, int, int, int] | None:
    """Return (buffer_id, chunk_index, total_chunks, chunk_size), or None when it is cut short."""
    if len(payload) < CHUNK_HEADER_SIZE:
        return None
    return _CHUNK_HEADER.unpack_from(payload)


def pack_sack(largest: int, ack_delay_us: int, receive_window: int, words: list[int]) -> bytes:
    """Return a SACK payload.

    Bit i of words[j] stands for packet counter 64 * (largest // 64 - len(words) + 1 + j) + i.
    """
    header = _SACK_HEADER.pack(largest, ack_delay_us, receive_window, len(words), 0)
    return header + struct.pack(f"!{len(words)}Q", *words)


def parse_sack(payload: bytes) -> tuple[int, int, int, list[int]] | None:
    """Return (largest, ack_delay_us, receive_window, words), or None when it is not a SACK."""
    if len(payload) < SACK_HEADER_SIZE:
        return None
    largest, ack_delay_us, receive_window, word_count, reserved = _SACK_HEADER.unpack_from(payload)
    if reserved or not 1 <= word_count <= SACK_MAX_WORDS or word_count > largest // 64 + 1:
        return None
    if len(payload) != SACK_HEADER_SIZE + 8 * word_count:
        return None
    words = list(struct.unpack_from(f"!{word_count}Q", payload, SACK_HEADER_SIZE))
    if words[-1] >> (largest % 64) != 1:  # `largest` itself was received, and nothing above it
        return None
    return largest, ack_delay_us, receive_window, words
