"""The tests' own encoder of STUN messages, by the RFC's figures; it makes malformed ones too."""

from __future__ import annotations

import hmac
import struct
import zlib

ID = bytes(range(12))
REQUEST, INDICATION, SUCCESS, ERROR = 0x0001, 0x0011, 0x0101, 0x0111  # of Binding


def attribute(number: int, value: bytes, *, size: int | None = None, fill: bytes = b"\0") -> bytes:
    """RFC 8489, figure 5; `size` is a lie if it is given."""
    size = len(value) if size is None else size
    return struct.pack(">HH", number, size) + value + fill * (-len(value) % 4)


def message(number: int, *attributes: bytes, transaction_id: bytes = ID) -> bytes:
    """RFC 8489, figure 2."""
    body = b"".join(attributes)
    return struct.pack(">HHI", number, len(body), 0x2112A442) + transaction_id + body


def with_fingerprint(data: bytes) -> bytes:
    """A message with FINGERPRINT behind it."""
    data = data[:2] + struct.pack(">H", len(data) - 20 + 8) + data[4:]
    return data + attribute(0x8028, struct.pack(">I", zlib.crc32(data) ^ 0x5354554E))


def signed(data: bytes, key: bytes, *, digest: str = "sha1", size: int = 20) -> bytes:
    """A message with MESSAGE-INTEGRITY, or with the first bytes of MESSAGE-INTEGRITY-SHA256."""
    data = data[:2] + struct.pack(">H", len(data) - 20 + 4 + size) + data[4:]
    number = {"sha1": 0x0008, "sha256": 0x001C}[digest]
    return data + attribute(number, hmac.new(key, data, digest).digest()[:size])
