"""The target for STUN's codec: any bytes are a message that keeps its word, or MalformedMessage.

How it works: the first byte says what the rest is: a packet as it is, or the attributes of a
Binding message whose header is right, with a right FINGERPRINT behind them if asked, since chance
makes no checksums.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib

from stun_server.binding.integrity import has_valid_integrity
from stun_server.binding.messages import (
    MalformedMessage,
    Message,
    encode_binding_success,
    is_stun_packet,
    parse_message,
)
from stun_server.binding.responder import answer_to

AS_IT_IS, FINGERPRINT = 0x80, 0x40  # in the first byte; its lowest bits are the message's class
ID = b"transaction!"


def fuzz_stun(data: bytes) -> bool:
    """A UDP payload; see above."""
    if not data:
        return False
    packet = data[1:] if data[0] & AS_IT_IS else _packet(data)
    try:
        message = parse_message(memoryview(packet))
    except MalformedMessage as error:
        assert 0 < len(str(error)) < 200, str(error)
        return False
    assert is_stun_packet(packet) and message.data == packet
    assert not has_valid_integrity(message, b"nobody's key")
    assert message.software is None or len(message.software) <= len(packet)
    assert not (message.is_binding_request and message.is_binding_response)
    _check_response(message)
    if message.is_binding_request:
        _check_answer(message)
    return True


def _packet(data: bytes) -> bytes:
    number = (0x0001, 0x0011, 0x0101, 0x0111)[data[0] & 3]
    attributes = data[1:] + bytes(-len(data[1:]) % 4)
    with_fingerprint = bool(data[0] & FINGERPRINT)
    size = (len(attributes) + 8 * with_fingerprint) & 0xFFFF
    packet = struct.pack(">HHI", number, size, 0x2112A442) + ID + attributes
    if with_fingerprint:
        packet += struct.pack(">HHI", 0x8028, 4, zlib.crc32(packet) ^ 0x5354554E)
    return packet


def _check_response(message: Message) -> None:
    for address in (message.xor_mapped_address, message.mapped_address):
        if address is None:
            continue
        again = parse_message(encode_binding_success(message.transaction_id, address))
        ip = ipaddress.ip_address(address[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        assert again.reflexive_address == (str(mapped or ip), address[1])
    assert message.error_code is None or 300 <= message.error_code <= 699
    assert len(message.reason) < 128


def _check_answer(request: Message) -> None:
    answer = answer_to(request, ("2001:db8::1", 9))
    assert len(answer) <= 2 * len(request.data) + 4
    parsed = parse_message(answer)
    assert parsed.is_response_to(request.transaction_id)
    assert parsed.rejected_attributes == request.unknown_attributes
