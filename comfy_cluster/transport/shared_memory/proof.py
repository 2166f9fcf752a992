"""How two processes on one machine show that they are the two peers of one connection.

Who connects to the right name may be anybody of the same user. The two session ids of a connection
are known to its two ends (and to whoever reads their packets, which is no more than what UDP has):
each side sends a keyed hash over its part, so that neither id is given away to the wrong one.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from comfy_cluster.protocol import PeerProof

TAG_SIZE = 16  # bytes

_KEY = struct.Struct(">IIQQ")


def name_of(boot_id: int) -> bytes:
    """The abstract name at which the instance with this boot id listens."""
    return b"\0comfy-cluster-%016x" % boot_id


@dataclass(frozen=True, slots=True)
class Tags:
    """What the two sides of one link must say."""

    connector: bytes
    listener: bytes

    @classmethod
    def for_connector(cls, proof: PeerProof, *, own_boot_id: int) -> Tags:
        return cls._of(proof.local_session, proof.remote_session, own_boot_id, proof.boot_id)

    @classmethod
    def for_listener(cls, proof: PeerProof, *, own_boot_id: int) -> Tags:
        return cls._of(proof.remote_session, proof.local_session, proof.boot_id, own_boot_id)

    @classmethod
    def _of(cls, connector: int, listener: int, connector_boot: int, listener_boot: int) -> Tags:
        key = _KEY.pack(connector, listener, connector_boot, listener_boot)
        return cls(_tag(key, b"connector"), _tag(key, b"listener"))


def _tag(key: bytes, side: bytes) -> bytes:
    return hashlib.blake2b(side, key=key, digest_size=TAG_SIZE).digest()


def are_equal(tag: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(tag, expected)
