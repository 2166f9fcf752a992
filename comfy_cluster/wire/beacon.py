"""Beacons: datagrams that an instance broadcasts in the LAN, to be found.

A datagram is the magic bytes, a tag of 16 bytes and a Beacon. The tag is made with the cluster's
key (HMAC-SHA256, RFC 2104, of magic and Beacon); without a key it is zeros.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from comfy_cluster.errors import RemoteProtocolError
from comfy_cluster.wire import bounds
from comfy_cluster.wire import messages_pb2 as pb
from comfy_cluster.wire.announce import PROTOCOL_VERSION, check_introduction

BEACON_MAGIC = b"CCB1"
TAG_SIZE = 16
LARGEST_BEACON = 1_024  # bytes of a datagram
_NO_TAG = bytes(TAG_SIZE)
# Its own key, so that a tag says nothing of what else the cluster's key is used for.
_KEY_PURPOSE = b"comfy-cluster/v1|lan-announce|"


@dataclass(frozen=True, slots=True)
class Beacon:
    """Who an instance is, and where."""

    cluster_id: str
    instance_index: int
    instance_count: int
    boot_id: int
    """u64, not 0: the sender's own broadcasts come back to it, and it knows them by this."""
    port: int
    """UDP port of the instance."""
    hostname: str = ""
    """IP literal where the instance is; empty: where the datagram comes from."""
    age: int = 0
    """Milliseconds since it was started: of two with one index the younger one stops."""
    software_version: str = ""
    stops: int = 0
    """Boot id of the instance that has the sender's index too, and is to stop; 0: there is none."""
    is_observer: bool = False
    """The sender only looks: it is no member of the cluster."""
    protocol_version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        check_introduction(self)
        bounds.check_range("port", self.port, 1, bounds.LARGEST_U16)
        bounds.check_ip_literal("hostname", self.hostname)
        bounds.check_range("age", self.age, 0, bounds.LARGEST_U64)
        bounds.check_range("stops", self.stops, 0, bounds.LARGEST_U64)

    def pack(self, key: str | None) -> bytes:
        """The whole datagram, with a tag made with the cluster's `key`."""
        payload = pb.Beacon(
            protocol_version=self.protocol_version,
            cluster_id=self.cluster_id,
            instance_index=self.instance_index,
            instance_count=self.instance_count,
            boot_id=self.boot_id,
            port=self.port,
            hostname=self.hostname,
            age=self.age,
            software_version=self.software_version,
            stops=self.stops,
            is_observer=self.is_observer,
        ).SerializeToString()
        return BEACON_MAGIC + _tag(payload, key) + payload

    @classmethod
    def parse(cls, datagram: bytes) -> Beacon:
        """Any key and protocol version passes: see `is_tagged_with`."""
        if not datagram.startswith(BEACON_MAGIC) or len(datagram) > LARGEST_BEACON:
            raise RemoteProtocolError("no beacon")
        message = bounds.decode(pb.Beacon, datagram[len(BEACON_MAGIC) + TAG_SIZE :])
        with bounds.parsing_of("beacon"):
            return cls(
                protocol_version=message.protocol_version,
                cluster_id=message.cluster_id,
                instance_index=message.instance_index,
                instance_count=message.instance_count,
                boot_id=message.boot_id,
                port=message.port,
                hostname=message.hostname,
                age=message.age,
                software_version=message.software_version,
                stops=message.stops,
                is_observer=message.is_observer,
            )


def is_tagged_with(datagram: bytes, key: str | None) -> bool:
    """Whether the sender of a beacon has the same key, or has none where there is none here."""
    start = len(BEACON_MAGIC)
    found, payload = datagram[start : start + TAG_SIZE], datagram[start + TAG_SIZE :]
    return hmac.compare_digest(found, _tag(payload, key))


def _tag(payload: bytes, key: str | None) -> bytes:
    if key is None:
        return _NO_TAG
    secret = hmac.digest(key.encode(), _KEY_PURPOSE, hashlib.sha256)
    return hmac.digest(secret, BEACON_MAGIC + payload, hashlib.sha256)[:TAG_SIZE]
