"""Bounds of single fields, and the one place where bytes meet the protobuf runtime.

Used inside `wire/` only. The checks raise LocalProtocolError, because a value is made here; where
the value came from the network, `parsing_of` turns that into RemoteProtocolError.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from comfy_cluster.errors import LocalProtocolError, RemoteProtocolError

LARGEST_U16 = (1 << 16) - 1
LARGEST_U32 = (1 << 32) - 1
LARGEST_U64 = (1 << 64) - 1
LARGEST_INSTANCE_INDEX = 65_534  # an index is 16 bits of a buffer id, and a count fits them too
SMALLEST_PACKET = 1_200  # UDP payload that every path carries (RFC 9000 section 14)
LARGEST_PACKET = 65_507  # UDP payload in one IPv4 packet: 65,535 - 20 - 8
LARGEST_CHUNK = LARGEST_PACKET - 16 - 20 - 16  # less header, chunk header and room for a tag
SMALLEST_CHUNK = SMALLEST_PACKET - 16 - 20 - 16  # less would cost a bitmap out of proportion

_ProtobufT = TypeVar("_ProtobufT", bound=ProtobufMessage)
_EnumT = TypeVar("_EnumT", bound=IntEnum)


def check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise LocalProtocolError(f"{name} is {value}, expected {low} to {high}")


def check_text(name: str, value: str, longest: int) -> None:
    """`longest` counts UTF-8 bytes, because that is what a packet has room for."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{name} is not valid Unicode: {error.reason}") from None
    if size > longest:
        raise LocalProtocolError(f"{name} has {size} bytes, expected at most {longest}")


def check_ip_literal(name: str, value: str) -> None:
    """An IP address, or nothing at all."""
    try:
        if value:
            ipaddress.ip_address(value)
    except ValueError:
        raise LocalProtocolError(f"{name} is {value[:80]!r}, expected an IP address") from None


def check_size(name: str, value: bytes, expected: int) -> None:
    if len(value) != expected:
        raise LocalProtocolError(f"{name} has {len(value)} bytes, expected {expected}")


def shorten(text: str, longest: int) -> str:
    """`text` cut to `longest` UTF-8 bytes, for texts that are shown and mean nothing else."""
    return text.encode("utf-8", "replace")[:longest].decode("utf-8", "ignore")


def decode(kind: type[_ProtobufT], data: bytes) -> _ProtobufT:
    """Parse `data`; RemoteProtocolError for anything that is not such a message."""
    try:
        return kind.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"not a {kind.__name__}: {error}") from None


def as_enum(kind: type[_EnumT], value: int) -> _EnumT:
    """The member of `kind`; unknown values and the unspecified 0 are RemoteProtocolError."""
    try:
        return kind(value)
    except ValueError:
        raise RemoteProtocolError(f"unknown {kind.__name__} {value}") from None


@contextmanager
def parsing_of(name: str) -> Iterator[None]:
    """Around making a value from parsed fields: out of bounds is then the peer's fault."""
    try:
        yield
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"{name}: {error}") from None
