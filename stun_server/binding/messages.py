"""STUN messages (RFC 8489): Binding requests and answers as bytes and as values.

No socket, no clock, no randomness: whoever asks brings the transaction id. It knows Binding and
what RFC 8489 itself says of attributes; no TURN, no ICE. Used by the responder, and by the
instances that ask it. All integers are big-endian; "size" is in bytes.

How it works: a message is a header of 20 bytes (type, size of what follows, magic cookie,
transaction id) and attributes (type, size, value, filled up to a multiple of 4). `parse_message`
gives a `Message` whose attributes are all within bounds and whose values can be used as they are;
anything else is MalformedMessage, the only exception that bytes from the network can cause.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

Address = tuple[str, int]
"""IP literal and port."""
Packet = bytes | bytearray | memoryview

MAGIC_COOKIE: Final = bytes.fromhex("2112a442")
"""RFC 8489, section 5: bytes 4 to 7 of every message."""
HEADER_SIZE: Final = 20
TRANSACTION_ID_SIZE: Final = 12
LARGEST_MESSAGE: Final = 1232
"""Largest message that is read: the smallest IPv6 MTU less IPv6 and UDP headers (section 6.1)."""
MOST_ATTRIBUTES: Final = 64
"""Most attributes that are read in a message; a Binding exchange has fewer than ten."""
BINDING: Final = 0x001
"""The only method of RFC 8489 (section 18.2)."""

BAD_REQUEST: Final = 400
UNKNOWN_ATTRIBUTE: Final = 420
_REASONS = {BAD_REQUEST: "Bad Request", UNKNOWN_ATTRIBUTE: "Unknown Attribute"}

_IPV4, _IPV6 = 0x01, 0x02  # address families, section 14.1
_PORT_MASK = int.from_bytes(MAGIC_COOKIE[:2], "big")
_FINGERPRINT_MASK = 0x5354554E  # section 14.7
_FINGERPRINT_SIZE = 8  # with its header
_LONGEST_TEXT = 127  # characters of SOFTWARE and of a reason phrase: fewer than 128


class MalformedMessage(ValueError):
    """These bytes are no STUN message of RFC 8489; the text says why."""


class MessageClass(enum.Enum):
    """The two class bits of the message type (RFC 8489, section 5)."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class AttributeType(enum.IntEnum):
    """The attributes of RFC 8489 that are understood here (section 18.3)."""

    MAPPED_ADDRESS = 0x0001
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    REALM = 0x0014
    NONCE = 0x0015
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028


_KNOWN = frozenset(map(int, AttributeType))
_FIRST_OPTIONAL = 0x8000  # section 14: below are the attributes that must be understood
# What counts behind an integrity attribute (sections 14.5 and 14.6); all else there is ignored.
_BEHIND_INTEGRITY = {
    AttributeType.MESSAGE_INTEGRITY: frozenset(
        (AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.FINGERPRINT)
    ),
    AttributeType.MESSAGE_INTEGRITY_SHA256: frozenset((AttributeType.FINGERPRINT,)),
}


# Bytes of their values: HMAC-SHA1; HMAC-SHA256, of which the end may be cut off.
_INTEGRITY_SIZES: dict[int, tuple[int, ...]] = {
    AttributeType.MESSAGE_INTEGRITY: (20,),
    AttributeType.MESSAGE_INTEGRITY_SHA256: (16, 20, 24, 28, 32),
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute as it was received (RFC 8489, section 14)."""

    type: int
    """0 to 65535; may be one that is not in AttributeType."""
    value: bytes
    """Without the padding."""
    offset: int
    """Where its header begins, in bytes from the begin of the message."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message with right framing, and a right FINGERPRINT if it has one (RFC 8489, section 5).

    Made by `parse_message` only. Its integrity is not checked: `integrity.py` does that.
    """

    message_class: MessageClass
    method: int
    """12 bits; `BINDING` is the one of RFC 8489."""
    transaction_id: bytes
    """12 bytes."""
    attributes: tuple[Attribute, ...]
    """Those that count, in their order: without what follows an integrity attribute."""
    data: bytes
    """The whole message as it was received."""
    xor_mapped_address: Address | None = None
    """XOR-MAPPED-ADDRESS of a success response (section 14.2)."""
    mapped_address: Address | None = None
    """MAPPED-ADDRESS of a success response (section 14.1); routers may have rewritten it."""
    error_code: int | None = None
    """300 to 699, of an error response (section 14.8)."""
    reason: str = ""
    """Beside the error code, for people; any text that the sender likes."""
    rejected_attributes: tuple[int, ...] = ()
    """UNKNOWN-ATTRIBUTES of an error response (section 14.13)."""

    @property
    def is_binding_request(self) -> bool:
        """The only thing that may ever be answered (RFC 8489, section 6.3)."""
        return self.message_class is MessageClass.REQUEST and self.method == BINDING

    @property
    def is_binding_response(self) -> bool:
        """A success or an error response; it is never answered."""
        is_response = self.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
        return is_response and self.method == BINDING

    @property
    def reflexive_address(self) -> Address | None:
        """Where the server saw the request come from: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS."""
        return self.xor_mapped_address or self.mapped_address

    @property
    def unknown_attributes(self) -> tuple[int, ...]:
        """Types that must be understood and are not, each once: error 420 (section 6.3.1)."""
        types = (each.type for each in self.attributes if each.type < _FIRST_OPTIONAL)
        return tuple(dict.fromkeys(each for each in types if each not in _KNOWN))

    @property
    def software(self) -> str | None:
        """SOFTWARE (section 14.14), for people; what is not UTF-8 in it is replaced."""
        attribute = self.first(AttributeType.SOFTWARE)
        return None if attribute is None else attribute.value.decode(errors="replace")

    def first(self, attribute_type: int) -> Attribute | None:
        """The first attribute of that type; later ones do not count (RFC 8489, section 14)."""
        found = (each for each in self.attributes if each.type == attribute_type)
        return next(found, None)

    def is_response_to(self, transaction_id: bytes) -> bool:
        """A Binding response to the request with that id (section 6.3.3); in constant time."""
        is_same = hmac.compare_digest(self.transaction_id, transaction_id)
        return is_same and self.is_binding_response


# Bytes of messages


def encode_binding_request(
    transaction_id: bytes, *, software: str | None = None, fingerprint: bool = False
) -> bytes:
    """A Binding request (RFC 8489, section 3): 20 bytes if nothing is added.

    The transaction id is 12 bytes that nobody can guess, for each request others; `software` has at
    most 127 characters. ValueError: it is not so.
    """
    attributes = _software(software)
    return _encode(MessageClass.REQUEST, transaction_id, attributes, fingerprint=fingerprint)


def encode_binding_success(
    transaction_id: bytes,
    address: Address,
    *,
    software: str | None = None,
    fingerprint: bool = False,
) -> bytes:
    """The answer with XOR-MAPPED-ADDRESS (RFC 8489, section 14.2): 32 bytes, or 44 for IPv6.

    `address` is an IP literal and a port from 1 to 65535. An IPv4 address that an IPv6 socket calls
    ::ffff:1.2.3.4 becomes IPv4; a scope (%eth0) is left out. ValueError: it is no such address.
    """
    value = _xored_address(address, transaction_id)
    attributes = [(int(AttributeType.XOR_MAPPED_ADDRESS), value), *_software(software)]
    return _encode(MessageClass.SUCCESS, transaction_id, attributes, fingerprint=fingerprint)


def encode_binding_error(
    transaction_id: bytes,
    code: int,
    *,
    unknown_attributes: Iterable[int] = (),
    reason: str | None = None,
    software: str | None = None,
    fingerprint: bool = False,
) -> bytes:
    """An error response with ERROR-CODE (RFC 8489, section 14.8), and UNKNOWN-ATTRIBUTES if any.

    `code` is 300 to 699; `reason` is the RFC's for 400 and 420 if left out, else empty; it has at
    most 127 characters; unknown attributes are 0 to 65535, at most 64. ValueError: it is not so.
    """
    if not 300 <= code <= 699:
        raise ValueError(f"Invalid STUN error code {code}: expected 300 to 699")
    text = _text(_REASONS.get(code, "") if reason is None else reason)
    attributes = [(int(AttributeType.ERROR_CODE), bytes((0, 0, *divmod(code, 100))) + text)]
    types = _types(unknown_attributes)
    if types:
        attributes.append((int(AttributeType.UNKNOWN_ATTRIBUTES), types))
    attributes += _software(software)
    return _encode(MessageClass.ERROR, transaction_id, attributes, fingerprint=fingerprint)


def _software(software: str | None) -> list[tuple[int, bytes]]:
    return [] if software is None else [(int(AttributeType.SOFTWARE), _text(software))]


def _text(text: str) -> bytes:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"Text of {len(text)} characters: expected at most {_LONGEST_TEXT}")
    return text.encode()


def _types(types: Iterable[int]) -> bytes:
    numbers = tuple(types)
    if len(numbers) > MOST_ATTRIBUTES or not all(0 <= each <= 0xFFFF for each in numbers):
        raise ValueError(f"Invalid types {numbers}: expected at most {MOST_ATTRIBUTES}, of 16 bits")
    return b"".join(each.to_bytes(2, "big") for each in numbers)


def _xored_address(address: Address, transaction_id: bytes) -> bytes:
    ip = ipaddress.ip_address(address[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    port = address[1]
    if not 1 <= port <= 0xFFFF:
        raise ValueError(f"Invalid port {port}: expected 1 to 65535")
    family = _IPV4 if ip.version == 4 else _IPV6
    xored_port = (port ^ _PORT_MASK).to_bytes(2, "big")
    return bytes((0, family)) + xored_port + _xor(ip.packed, MAGIC_COOKIE + transaction_id)


def _xor(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    number = int.from_bytes(data, "big") ^ int.from_bytes(mask[:size], "big")
    return number.to_bytes(size, "big")


def _encode(
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[tuple[int, bytes]],
    *,
    fingerprint: bool,
) -> bytes:
    if len(transaction_id) != TRANSACTION_ID_SIZE:
        raise ValueError(f"Transaction id of {len(transaction_id)} bytes: expected 12")
    payload = b"".join(_attribute(number, value) for number, value in attributes)
    size = len(payload) + fingerprint * _FINGERPRINT_SIZE
    class_bits = (message_class.value & 1) << 4 | (message_class.value & 2) << 7
    head = (class_bits | BINDING).to_bytes(2, "big") + size.to_bytes(2, "big")
    message = head + MAGIC_COOKIE + transaction_id + payload
    if fingerprint:
        message += _attribute(AttributeType.FINGERPRINT, _fingerprint(message))
    return message


def _attribute(attribute_type: int, value: bytes) -> bytes:
    head = attribute_type.to_bytes(2, "big") + len(value).to_bytes(2, "big")
    return head + value + bytes(-len(value) % 4)


def _fingerprint(message_before: bytes) -> bytes:
    """RFC 8489, section 14.7; the header's size must tell of FINGERPRINT already."""
    return (zlib.crc32(message_before) ^ _FINGERPRINT_MASK).to_bytes(4, "big")


# Messages of bytes


def is_stun_packet(data: Packet) -> bool:
    """Whether a packet on a shared socket is meant to be STUN (RFC 8489, section 6.3; RFC 7983).

    A look at the header only: two zero bits, the cookie, a size that is a multiple of 4. What is
    so may still be malformed; what is not so is another protocol's.
    """
    return (
        len(data) >= HEADER_SIZE
        and data[0] < 0x40
        and data[3] & 3 == 0
        and data[4:8] == MAGIC_COOKIE
    )


def parse_message(data: Packet) -> Message:
    """One UDP payload as a message (RFC 8489, sections 5, 6.3 and 14).

    MalformedMessage: a wrong header, an attribute that does not fit, a wrong FINGERPRINT, more than
    1232 bytes or 64 attributes, or a response whose address or error code makes no sense. Bytes
    cause no other exception. Attributes that it does not know are kept: `unknown_attributes`.
    """
    if len(data) > LARGEST_MESSAGE:
        raise MalformedMessage(f"{len(data)} bytes: more than {LARGEST_MESSAGE}")
    data = bytes(data)
    if not is_stun_packet(data):
        raise MalformedMessage(f"no STUN header in {len(data)} bytes")
    size = int.from_bytes(data[2:4], "big")
    if HEADER_SIZE + size != len(data):
        raise MalformedMessage(f"{len(data)} bytes, but {HEADER_SIZE + size} by its header")
    number = int.from_bytes(data[:2], "big")
    attributes = tuple(_counting(list(_read_attributes(data))))
    message = Message(
        MessageClass(number >> 4 & 1 | number >> 7 & 2),
        number & 0x000F | number >> 1 & 0x0070 | number >> 2 & 0x0F80,
        data[8:HEADER_SIZE],
        attributes,
        data,
    )
    return _with_values(message)


def _read_attributes(data: bytes) -> Iterator[Attribute]:
    """All of them, in their order."""
    offset = HEADER_SIZE
    for _ in range(MOST_ATTRIBUTES):
        if offset == len(data):
            return
        # The whole is a multiple of 4, and so is each: an attribute's header is always complete.
        attribute_type = int.from_bytes(data[offset : offset + 2], "big")
        start = offset + 4
        end = start + int.from_bytes(data[offset + 2 : start], "big")
        if end > len(data):
            raise MalformedMessage(f"attribute 0x{attribute_type:04x} ends behind the message")
        attribute = Attribute(attribute_type, data[start:end], offset)
        offset = end + -end % 4
        _check_attribute(attribute, data, is_last=offset == len(data))
        yield attribute
    if offset != len(data):
        raise MalformedMessage(f"more than {MOST_ATTRIBUTES} attributes")


def _check_attribute(attribute: Attribute, data: bytes, *, is_last: bool) -> None:
    if attribute.type == AttributeType.FINGERPRINT:
        if not is_last:
            raise MalformedMessage("FINGERPRINT is not the last attribute")
        if not hmac.compare_digest(attribute.value, _fingerprint(data[: attribute.offset])):
            raise MalformedMessage("wrong FINGERPRINT")
    sizes = _INTEGRITY_SIZES.get(attribute.type)
    if sizes is not None and len(attribute.value) not in sizes:
        name = AttributeType(attribute.type).name
        raise MalformedMessage(f"{name} of {len(attribute.value)} bytes: expected {sizes}")


def _counting(attributes: list[Attribute]) -> Iterator[Attribute]:
    """Those not to be ignored: what is behind an integrity attribute is not protected by it."""
    allowed: frozenset[int] | None = None
    for attribute in attributes:
        if allowed is None or attribute.type in allowed:
            yield attribute
            if attribute.type in _BEHIND_INTEGRITY:
                allowed = _BEHIND_INTEGRITY[AttributeType(attribute.type)]


def _with_values(message: Message) -> Message:
    """With what a response says, checked; in a request the same attributes mean nothing."""
    if message.method != BINDING:
        return message
    if message.message_class is MessageClass.SUCCESS:
        return replace(
            message,
            xor_mapped_address=_read_address(message, AttributeType.XOR_MAPPED_ADDRESS),
            mapped_address=_read_address(message, AttributeType.MAPPED_ADDRESS),
        )
    if message.message_class is MessageClass.ERROR:
        code, reason = _read_error(message)
        types = _read_types(message)
        return replace(message, error_code=code, reason=reason, rejected_attributes=types)
    return message


def _read_address(message: Message, attribute_type: AttributeType) -> Address | None:
    attribute = message.first(attribute_type)
    if attribute is None:
        return None
    value = attribute.value
    if (len(value), value[1:2]) not in ((8, b"\x01"), (20, b"\x02")):
        raise MalformedMessage(f"{attribute_type.name}: neither an IPv4 nor an IPv6 address")
    port, packed = value[2:4], value[4:]
    if attribute_type is AttributeType.XOR_MAPPED_ADDRESS:
        port = _xor(port, MAGIC_COOKIE)
        packed = _xor(packed, MAGIC_COOKIE + message.transaction_id)
    if not any(port):
        raise MalformedMessage(f"{attribute_type.name}: port 0")
    return str(ipaddress.ip_address(packed)), int.from_bytes(port, "big")


def _read_error(message: Message) -> tuple[int, str]:
    attribute = message.first(AttributeType.ERROR_CODE)
    if attribute is None:
        raise MalformedMessage("an error response without ERROR-CODE")
    value = attribute.value
    hundreds, rest = (value[2] & 7, value[3]) if len(value) >= 4 else (0, 0)
    if not 3 <= hundreds <= 6 or rest > 99:
        raise MalformedMessage("ERROR-CODE: expected a code from 300 to 699")
    return hundreds * 100 + rest, value[4:].decode(errors="replace")[:_LONGEST_TEXT]


def _read_types(message: Message) -> tuple[int, ...]:
    attribute = message.first(AttributeType.UNKNOWN_ATTRIBUTES)
    value = b"" if attribute is None else attribute.value
    if len(value) % 2:
        raise MalformedMessage("UNKNOWN-ATTRIBUTES: expected pairs of bytes")
    return tuple(int.from_bytes(value[at : at + 2], "big") for at in range(0, len(value), 2))
